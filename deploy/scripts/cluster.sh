#!/usr/bin/env bash
# The API server of the tests (controller/tests/cluster). `build` builds it, once and outside of the checkout, and prints
# where the program is; `start` starts it for a person. FW_KUBERNETES=newest takes the newest Kubernetes that we support in place of
# the oldest; KUBEBUILDER_ASSETS, a directory, takes etcd and kube-apiserver from there.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
source=$root/controller/tests/cluster
mod=$source/go
[ "${FW_KUBERNETES:-}" != newest ] || mod=$source/newest
tags=embedded
[ -z "${KUBEBUILDER_ASSETS:-}" ] || tags=assets

say() { echo "cluster: $*" >&2; }

# A go of 1.21 or later gets itself the toolchain that go.mod asks for. Debian 12's is older and knows no such line, but
# it can get the same toolchain, as the Go module that it is published as, checksum and all.
find_go() {
  local go version needed directory
  go=$(PATH="$PATH:/usr/local/go/bin" command -v go) || {
    say "Go is missing, and the API server of the tests is built with it: install Debian's golang-go, or any later Go"
    exit 1
  }
  version=$(cd / && "$go" version | awk '{ print $3 }')
  if printf 'go1.21\n%s\n' "$version" | sort -C -V; then
    echo "$go"
    return
  fi
  needed=$(awk '$1 == "go" { print $2 }' "$source/newest.mod")
  say "getting Go $needed: $version is too old"
  needed=golang.org/toolchain@v0.0.1-go$needed.$("$go" env GOOS)-$("$go" env GOARCH)
  directory=$(cd / && GO111MODULE=on "$go" mod download -json "$needed" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  # A module's files come without the bit that makes a program of them.
  chmod -R u+w "$directory"
  chmod +x "$directory"/bin/* "$directory"/pkg/tool/*/*
  echo "$directory/bin/go"
}

compile() {
  local go kubernetes major minor version=k8s.io/component-base/version
  go=$(find_go)
  kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$mod.mod")
  [ "$tags" = assets ] || say "building kube-apiserver $kubernetes with etcd: once, some minutes"
  IFS=. read -r major minor _ <<<"${kubernetes#v}"
  (cd "$source" && CGO_ENABLED=0 "$go" build -modfile="$mod.mod" -tags "$tags" -trimpath -buildvcs=false -o "$1" -ldflags \
    "-s -w -X $version.gitVersion=$kubernetes -X $version.gitMajor=$major -X $version.gitMinor=$minor" . >&2)
}

build() {
  local directory key program
  directory=${XDG_CACHE_HOME:-$HOME/.cache}/firewall-controller
  key=$(cat "$mod.mod" "$mod.sum" "$source"/*.go "$0" | sha256sum | cut -c1-16)
  program=$directory/cluster-$tags-$key
  if [ -x "$program" ]; then
    echo "$program"
    return
  fi
  mkdir -p "$directory"
  # One build at a time; who waited finds it done.
  exec 9>"$directory/lock"
  flock 9
  if [ ! -x "$program" ]; then
    compile "$program.new"
    mv "$program.new" "$program"
    # Those of older sources.
    find "$directory" -name 'cluster-*' -mtime +30 -delete
  fi
  exec 9>&-
  echo "$program"
}

# Applies what a cluster with this controller has, and says how to reach it.
follow() {
  local line config kubectl=(kubectl)
  command -v kubectl >/dev/null || kubectl=("$1" kubectl)
  while read -r line; do
    echo "$line"
    case $line in
      ready*) config=${line#ready } ;;
      *) continue ;;
    esac
    "${kubectl[@]}" --kubeconfig "$config" apply -k "$root/crds/"
    "${kubectl[@]}" --kubeconfig "$config" create namespace firewall
    printf '\nexport KUBECONFIG=%s\n\nCtrl-C ends it and removes its data.\n' "$config"
  done
}

start() {
  local program directory server
  program=$(build)
  directory=$(mktemp -d)
  # shellcheck disable=SC2064 # it is local, and gone at the exit
  trap "rm -rf '$directory'" EXIT
  "$program" serve --dir "$directory" > >(follow "$program") &
  server=$!
  trap 'kill "$server" 2>/dev/null' INT TERM
  # A signal ends the first wait, the server's end the second.
  wait "$server" || wait "$server" || true
}

case ${1:-} in
  build) build ;;
  start) start ;;
  *) say "usage: $0 build|start" && exit 2 ;;
esac

#!/usr/bin/env bash
# The API server of the tests (controller/tests/cluster). `build` builds it, once and outside of the checkout, and prints
# where the program is; `start` starts it for a person. FW_KUBERNETES=newest takes the newest Kubernetes that we support in place of
# the oldest; KUBEBUILDER_ASSETS, a directory, takes etcd and kube-apiserver from there.
set -euo pipefail
# shellcheck source=deploy/scripts/go.sh
. "$(dirname "$0")/go.sh"
source=$root/controller/tests/cluster
mod=$source/go
[ "${FW_KUBERNETES:-}" != newest ] || mod=$source/newest
tags=embedded
[ -z "${KUBEBUILDER_ASSETS:-}" ] || tags=assets

compile() {
  local go kubernetes major minor version=k8s.io/component-base/version
  go=$(find_go "the API server of the tests")
  kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$mod.mod")
  [ "$tags" = assets ] || say "building kube-apiserver $kubernetes with etcd: once, some minutes"
  IFS=. read -r major minor _ <<<"${kubernetes#v}"
  (cd "$source" && CGO_ENABLED=0 "$go" build -modfile="$mod.mod" -tags "$tags" -trimpath -buildvcs=false -o "$1" -ldflags \
    "-s -w -X $version.gitVersion=$kubernetes -X $version.gitMajor=$major -X $version.gitMinor=$minor" . >&2)
}

build() { build_once "cluster-$tags" "$mod.mod" "$mod.sum" "$source"/*.go; }

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

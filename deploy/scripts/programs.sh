#!/usr/bin/env bash
# etcd and kube-apiserver as programs of their own, of the versions that the API server of the tests links
# (controller/tests/cluster): what people have in KUBEBUILDER_ASSETS. Builds them, once and outside of the checkout, and
# prints the directory.
set -euo pipefail
# shellcheck source=deploy/scripts/go.sh
. "$(dirname "$0")/go.sh"
source=$root/controller/tests/cluster
etcd=go.etcd.io/etcd/server/v3

version_in() { awk -v module="$etcd" '$1 == module { print $2 } $1 == "require" && $2 == module { print $3 }' "$1"; }

compile() {
  local go linked
  linked=$(version_in "$source/go.mod")
  [ "$(version_in "$source/etcd.mod")" = "$linked" ] || {
    say "etcd.mod names another version of etcd than go.mod: put $linked into it"
    exit 1
  }
  go=$(find_go "etcd and kube-apiserver")
  say "building etcd and kube-apiserver: once, some minutes"
  mkdir -p "$1"
  cd "$source"
  CGO_ENABLED=0 "$go" build -modfile=etcd.mod -trimpath -o "$1/etcd" "$etcd" >&2
  CGO_ENABLED=0 "$go" build -modfile=go.mod -trimpath -o "$1/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver >&2
  ln -sf "$(command -v kubectl)" "$1/kubectl"
}

build_once programs "$source/go.mod" "$source/go.sum" "$source/etcd.mod" "$source/etcd.sum"

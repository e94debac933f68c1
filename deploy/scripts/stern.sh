#!/usr/bin/env bash
# stern (github.com/stern/stern), by which people see the drop log, for the test that they do. `build` builds it, once and
# outside of the checkout, and prints where the program is. Nothing of its sources is here: controller/tests/stern has the
# release (go.mod) and what the sources must be (go.sum), so that no database of checksums is asked.
set -euo pipefail
# shellcheck source=deploy/scripts/go.sh
. "$(dirname "$0")/go.sh"
source=$root/controller/tests/stern
package=github.com/stern/stern

compile() {
  local go version
  go=$(find_go "stern")
  version=$(awk -v package="$package" '$1 == package { print $2 }' "$source/go.mod")
  say "building stern $version: once, some minutes"
  (cd "$source" && CGO_ENABLED=0 "$go" build -trimpath -buildvcs=false -o "$1" -ldflags \
    "-s -w -X $package/cmd.version=${version#v}" "$package" >&2) || {
    say "stern $version is missing and cannot be built, because of what go says above;" \
      "the test of the drop log as people see it needs it: get Go its modules (\`go env GOPROXY\`), then run \`make stern\`"
    exit 1
  }
}

case ${1:-} in
  build) build_once stern "$source"/go.{mod,sum} ;;
  *) say "usage: $0 build" && exit 2 ;;
esac

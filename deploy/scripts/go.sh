# Sourced by the scripts here that build a Go program for the tests: once, and outside of the checkout.
shopt -s inherit_errexit
root=$(cd "$(dirname "$0")/../.." && pwd)

say() { echo "$(basename "$0" .sh): $*" >&2; }

# A go of 1.21 or later gets itself the toolchain that go.mod asks for. Debian 12's is older and knows no such line, but
# it can get the same toolchain, as the Go module that it is published as, checksum and all: that of the newest API server
# is new enough for everything here. The argument is what it is for.
find_go() {
  local go version needed directory
  go=$(PATH="$PATH:/usr/local/go/bin" command -v go) || {
    say "Go is missing, and $1 is built with it: install Debian's golang-go, or any later Go"
    exit 1
  }
  version=$(cd / && "$go" version | awk '{ print $3 }')
  if printf 'go1.21\n%s\n' "$version" | sort -C -V; then
    echo "$go"
    return
  fi
  needed=$(awk '$1 == "go" { print $2 }' "$root/controller/tests/cluster/newest.mod")
  say "getting Go $needed: $version is too old"
  needed=golang.org/toolchain@v0.0.1-go$needed.$("$go" env GOOS)-$("$go" env GOARCH)
  directory=$(cd / && GO111MODULE=on "$go" mod download -json "$needed" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p') || {
    say "cannot get $needed, which $1 is built with; \`go mod download $needed\` says why"
    exit 1
  }
  # A module's files come without the bit that makes a program of them.
  chmod -R u+w "$directory"
  chmod +x "$directory"/bin/* "$directory"/pkg/tool/*/*
  echo "$directory/bin/go"
}

# build_once NAME SOURCE...: prints where the program is. `compile PATH` of the caller makes it, unless one of the same
# sources is there.
build_once() {
  local name=$1 directory key program
  shift
  directory=${XDG_CACHE_HOME:-$HOME/.cache}/firewall-controller
  key=$(cat "$@" "$0" "$root/deploy/scripts/go.sh" | sha256sum | cut -c1-16)
  program=$directory/$name-$key
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
    find "$directory" -name "${name%%-*}-*" -mtime +30 -delete
  fi
  exec 9>&-
  echo "$program"
}

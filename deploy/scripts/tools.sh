#!/usr/bin/env bash
# Installs what building and testing take, unless it is there; says so first. Arguments are Debian packages; those that
# only backports have are written PACKAGE/backports.
set -euo pipefail
linker=0.13.0 # bpf-linker; its LLVM must be the major of the rustc that compiles the eBPF programs: 22 for Debian's
llvm=/usr/lib/llvm-22

missing=()
for package in "$@"; do
  dpkg-query -W -f '${db:Status-Status}\n' "${package%/backports}" 2>/dev/null | grep -qx installed ||
    missing+=("$package")
done
# Any Go will do; the modules of the API server and of stern name the toolchain that builds them.
PATH="$PATH:/usr/local/go/bin" command -v go >/dev/null || missing+=(golang-go)
if ! command -v cargo >/dev/null; then
  echo "tools: cargo is missing; install Rust with rustup (https://rustup.rs), then run this again" >&2
  exit 1
fi

# Debian's backports as a source of apt, from the mirror that the machine has its Debian from.
enable_backports() {
  local codename suite uri keys=/usr/share/keyrings/debian-archive-keyring.gpg
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  suite=$codename-backports
  list() { apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages'; }
  list | grep -q "^$suite " && return 0
  uri=$(list | sed -n "s/^$codename main //p" | head -n 1)
  if [ -z "$uri" ]; then
    echo "tools: no source of Debian $codename to take $suite from" >&2
    return 1
  fi
  echo "tools: adding $suite to the sources of apt"
  echo "deb [signed-by=$keys] $uri $suite main" >"/etc/apt/sources.list.d/$suite.list"
}

# Servers are for tests, which start their own: none of Debian's may run because of us, now or after a boot.
install_packages() {
  local policy=/usr/sbin/policy-rc.d service
  if [ ! -e "$policy" ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  local plain=() backports=()
  for package in "$@"; do
    case $package in
      */backports) backports+=("${package%/backports}") ;;
      *) plain+=("$package") ;;
    esac
  done
  [ "${#backports[@]}" -eq 0 ] || enable_backports
  apt-get update -qq
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends)
  [ "${#plain[@]}" -eq 0 ] || "${install[@]}" "${plain[@]}" >/dev/null
  # -t takes their dependencies from there too, where those of the release are too old for them.
  [ "${#backports[@]}" -eq 0 ] || "${install[@]}" -t "$(. /etc/os-release && echo "$VERSION_CODENAME")-backports" \
    "${backports[@]}" >/dev/null
  [ -d /run/systemd/system ] || return 0
  for package in "$@"; do
    case $package in
      bind9) service=named ;;
      unbound | knot | dnsmasq | prometheus) service=$package ;;
      suricata/backports) service=suricata ;;
      *) continue ;;
    esac
    systemctl disable --quiet --now "$service" || echo "tools: could not disable $service" >&2
  done
}

if [ "${#missing[@]}" -gt 0 ]; then
  echo "tools: installing ${missing[*]}"
  if [ "$(id -u)" -ne 0 ]; then
    echo "tools: that needs root; run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  install_packages "${missing[@]}"
fi

if ! PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin" command -v bpf-linker >/dev/null; then
  echo "tools: installing bpf-linker $linker into ${CARGO_HOME:-$HOME/.cargo}/bin (some minutes)"
  # LLVM_SYS_* is for its bindings, LLVM_PREFIX for its own build script, which otherwise takes the first llvm-config.
  LLVM_SYS_221_PREFIX=$llvm LLVM_PREFIX=$llvm \
    cargo install --quiet --locked bpf-linker --version "$linker" --no-default-features --features llvm-22
fi

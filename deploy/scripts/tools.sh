#!/usr/bin/env bash
# Installs the Debian packages named as arguments, unless they are there; says so first.
set -euo pipefail
missing=()
for package in "$@"; do
  dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if ! command -v cargo >/dev/null; then
  echo "tools: cargo is missing; install Rust with rustup (https://rustup.rs), then run this again" >&2
  exit 1
fi
[ "${#missing[@]}" -eq 0 ] && exit 0
echo "tools: installing ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
  echo "tools: that needs root; run: apt-get install ${missing[*]}" >&2
  exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null

#!/usr/bin/env bash
# Builds every fuzz target and runs each for some seconds (FUZZ_SECONDS, default 10). A crash, a panic, a hang or too
# much memory fails, and the input that did it stays in the target's folder artifacts/.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=0.13.2
seconds=${FUZZ_SECONDS:-10}
crates=(bpf/common/fuzz controller/netlink/fuzz controller/intake/fuzz controller/names/fuzz)
# One for all, so that libFuzzer is compiled once; corpora live there too and grow from run to run.
target="$PWD/target/fuzz"

if ! c++ --version >/dev/null 2>&1; then
  echo "fuzz: libFuzzer needs a C++ compiler; run: apt-get install clang" >&2
  exit 1
fi
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
  echo "fuzz: installing cargo-fuzz $version"
  cargo install --quiet --locked cargo-fuzz --version "$version"
fi

# What is fuzzed is safe Rust: it panics where C would overrun, overflow checks included. An address sanitizer would
# double the build for nothing (and need the nightly compiler).
options=(--sanitizer none --target-dir "$target")
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1

# What hostile manifests begin with: ours.
seed_manifests() {
  mkdir -p "$1"
  find deploy controller/ruleset/tests -name '*.yaml' -print0 |
    while IFS= read -r -d '' file; do cp "$file" "$1/${file//\//_}"; done
}

for crate in "${crates[@]}"; do
  names=$(cargo fuzz list --fuzz-dir "$crate")
  [ -n "$names" ] || { echo "fuzz: $crate has no targets" >&2; exit 1; }
  for name in $names; do
    echo "fuzz: $crate: $name, $seconds s"
    corpus="$target/corpus/$name"
    mkdir -p "$corpus"
    [ "$crate" != controller/intake/fuzz ] || seed_manifests "$corpus"
    log="$target/$name.log"
    if ! cargo fuzz run --fuzz-dir "$crate" "${options[@]}" "$name" "$corpus" -- \
      -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 >"$log" 2>&1; then
      tail -n 60 "$log" >&2
      echo "fuzz: $crate: $name failed; all of its output is in $log" >&2
      exit 1
    fi
    grep -E 'INFO: Seed|^Done' "$log"
  done
done

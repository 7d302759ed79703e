#!/usr/bin/env bash
# Fuzzes one target for some minutes, from its seeds and what earlier runs found worth keeping.
#
#   fuzz/run.sh TARGET MINUTES [libFuzzer's options…]
#
# Inputs kept go to fuzz/libfuzzer/corpus/TARGET ($LCOW_FUZZ_CORPUS/TARGET if that is set), findings to
# fuzz/libfuzzer/artifacts/TARGET. Says at the end how often the target ran and how much processor time that took.
set -euo pipefail
cd "$(dirname "$0")/libfuzzer"

target=${1:?usage: fuzz/run.sh TARGET MINUTES}
minutes=${2:?usage: fuzz/run.sh TARGET MINUTES}
shift 2

version=0.13.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/lcow-tools/cargo-fuzz-$version
if [ ! -x "$tools/bin/cargo-fuzz" ]; then
  echo "fuzz: building cargo-fuzz $version (once)"
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
  CARGO_TARGET_DIR=$build cargo install --quiet --locked --root "$tools" "cargo-fuzz@$version"
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
  echo "fuzz: a nightly compiler is needed: rustup toolchain install nightly" >&2
  exit 1
fi
# The code under test is safe Rust: what AddressSanitizer looks for can't be in it, and its cost would halve the inputs.
PATH=$tools/bin:$PATH cargo +nightly fuzz build --fuzz-dir . --sanitizer none "$target"
host=$(rustc -vV | sed -n 's/^host: //p')
corpus=${LCOW_FUZZ_CORPUS:-$PWD/corpus}/$target
mkdir -p "$corpus" "artifacts/$target"
folders=("$corpus")
for kind in seeds regressions; do
  [ ! -d "../$kind/$target" ] || folders+=("../$kind/$target")
done
# Images come and go with every input: memory that is kept needs no page faults.
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000
# A target holds each input to its own limit of processor time; this one is for what never ends, however busy the machine.
status=0
TIMEFORMAT='processor time: %U s user, %S s system'
time "target/$host/release/$target" -max_len=65536 -timeout=120 -rss_limit_mb=1024 -print_final_stats=1 \
  -max_total_time=$((minutes * 60)) -artifact_prefix="artifacts/$target/" "$@" "${folders[@]}" || status=$?
exit $status

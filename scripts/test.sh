#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, dependencies, all tests, the demo as root and as an
# ordinary user. Installs what it needs. Fails on any skipped test that this machine should have run.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }
started=$SECONDS
export LCOW_SKIPS
LCOW_SKIPS=$(mktemp)
trap 'rm -f "$LCOW_SKIPS"' EXIT

step "set-up"
if [ "$(id -u)" -eq 0 ]; then scripts/setup.sh test; else scripts/setup.sh demo; fi

step "format and lints"
cargo fmt --all --check
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
bash -n scripts/*.sh .ci/run

step "dependencies"
scripts/deny.sh

step "tests"
cargo test --workspace --locked

step "other projects' images, tars and disks"
make --no-print-directory corpora

step "the demo"
make --no-print-directory setup build
transcripts=$(mktemp -d)
scripts/demo.sh | tee "$transcripts/own"
scripts/check-transcript.sh "$transcripts/own"
if [ "$(id -u)" -eq 0 ]; then
  step "the demo, as an ordinary user"
  scripts/as-user.sh scripts/demo.sh | tee "$transcripts/user"
  scripts/check-transcript.sh "$transcripts/user"
fi
rm -r "$transcripts"

step "skips"
# Only what a machine of this kind can't have may be skipped here. Elsewhere a skip is only reported.
allowed='no corpora|advisory database'
sort -u "$LCOW_SKIPS"
if [ "$(id -u)" -eq 0 ] && grep -vE "$allowed" "$LCOW_SKIPS"; then
  echo "test: the tests above were skipped, and must not be" >&2
  exit 1
fi
echo "all passed in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"

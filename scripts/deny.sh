#!/usr/bin/env bash
# Holds the dependencies to deny.toml. cargo-deny is built once into the user's cache, where later clones find it.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
tools=${XDG_CACHE_HOME:-$HOME/.cache}/lcow-tools/cargo-deny-$version
if [ ! -x "$tools/bin/cargo-deny" ]; then
  echo "deny: building cargo-deny $version (once)"
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
  CARGO_TARGET_DIR=$build cargo install --quiet --locked --root "$tools" "cargo-deny@$version"
fi
deny=$tools/bin/cargo-deny
"$deny" --all-features check --hide-inclusion-graph bans licenses sources

# Advisories need a database that is fetched over the network, which not every machine may reach.
log=$(mktemp)
if "$deny" --all-features check --hide-inclusion-graph advisories >"$log" 2>&1; then
  echo "advisories ok"
elif grep -qE 'failed to fetch advisory database|unable to fetch|failed to load advisory' "$log"; then
  line="skipped: deny: the advisory database can't be fetched from here"
  echo "$line"
  [ -z "${LCOW_SKIPS:-}" ] || echo "$line" >>"$LCOW_SKIPS"
else
  cat "$log"
  exit 1
fi

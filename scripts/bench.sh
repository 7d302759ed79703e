#!/usr/bin/env bash
# Prepares inputs and peers under .bench/ (once; root), then prints the tables.
#
#   scripts/bench.sh [TABLE…]
#
# TABLE: convert, exact, shapes, start, mkfs, graph (all by default). INPUTS="minbase dev" chooses inputs, ROUNDS=3 how often each command runs.
# The inputs and what is made of them take 16 GB; docs/performance.md has what came out.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh bench
inputs=${INPUTS:-minbase dev source npm random}
# shellcheck disable=SC2086
scripts/bench-inputs.sh $inputs

# The mirror is the one that this machine's own apt uses.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }')
unpack() { # SUITE FOLDER PACKAGE…: packages of another suite, without touching the system
  local suite=$1 folder=$2 apt options
  shift 2
  apt=$(mktemp -d)
  mkdir -p "$apt/lists/partial"
  echo "deb $mirror $suite main" >"$apt/sources"
  options=(-qq -o Dir::Etc::SourceList="$apt/sources" -o Dir::Etc::SourceParts=/nonexistent -o Dir::State::Lists="$apt/lists"
           -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download "$@")
  for deb in "$apt"/*.deb; do dpkg -x "$deb" "$folder"; done
  rm -r "$apt"
}
# mke2fs reads tars from 1.47.1 on, which Debian 12 has in its backports.
if [ ! -x .bench/e2fsprogs/sbin/mke2fs ]; then
  unpack bookworm-backports .bench/e2fsprogs e2fsprogs libext2fs2 libcom-err2 libss2
fi
cat >.bench/mke2fs <<SH
#!/bin/sh
LD_LIBRARY_PATH=$PWD/.bench/e2fsprogs/usr/lib/x86_64-linux-gnu:$PWD/.bench/e2fsprogs/lib/x86_64-linux-gnu exec $PWD/.bench/e2fsprogs/sbin/mke2fs "\$@"
SH
# The newest mkfs.erofs runs with the C library of its own suite.
if [ ! -x .bench/erofs/usr/bin/mkfs.erofs ]; then
  unpack forky .bench/erofs erofs-utils libc6 libxml2-16 libdeflate0 liblz4-1 liblzma5 libzstd1 zlib1g libuuid1 libselinux1 \
    libxxhash0 libpcre2-8-0
fi
cat >.bench/mkfs.erofs <<SH
#!/bin/sh
libs=$PWD/.bench/erofs/usr/lib/x86_64-linux-gnu
exec \$libs/ld-linux-x86-64.so.2 --library-path \$libs $PWD/.bench/erofs/usr/bin/mkfs.erofs "\$@"
SH
chmod +x .bench/mke2fs .bench/mkfs.erofs
CARGO_TARGET_DIR=$PWD/.bench/peers cargo build --release --locked --quiet --manifest-path benches/peers/Cargo.toml

cargo build --release --locked --quiet --package lcow
cargo build --release --locked --quiet --package lcow-benches
for table in ${*:-convert exact shapes start mkfs graph}; do
  # shellcheck disable=SC2086
  target/release/lcow-benches "$table" --rounds "${ROUNDS:-5}" --lcow "$PWD/target/release/lcow" --dir "$PWD/.bench" $inputs
done

#!/usr/bin/env bash
# Makes the inputs of the benchmarks in .bench/, each once: NAME.tar, NAME.tar.gz, NAME.tar.zst.
#
#   scripts/bench-inputs.sh NAME…
#     minbase  Debian's minimal root file system, 170 MB
#     dev      Debian with compilers and libraries, 2 GB, 70,000 entries
#     source   the source of a kernel, 1.6 GB, 90,000 small files
#     npm      what npm installs for a list of well-known packages, 1.2 GB, 150,000 small files
#     random   one incompressible file of 1 GiB
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .bench
cd .bench
mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }')
tar_of() { tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 "$@"; }

debian() { # [PACKAGES]
  [ "$(id -u)" -eq 0 ] || { echo "bench: making a Debian tree needs root, once" >&2; exit 1; }
  echo "deb $mirror bookworm main" | mmdebstrap --quiet --variant=minbase ${1:+--include="$1"} bookworm part.tar -
}
make() {
  case $1 in
    minbase) debian ;;
    dev) debian build-essential,clang,llvm-dev,libboost-all-dev,default-jdk-headless,python3-dev,cmake,git ;;
    source)
      apt-get -qq -o APT::Sandbox::User=root download linux-source-6.12
      dpkg-deb --fsys-tarfile linux-source-6.12_*.deb | tar -xO --wildcards '*/linux-source-6.12.tar.xz' | xz -dc >part.tar
      rm linux-source-6.12_*.deb
      ;;
    npm)
      command -v npm >/dev/null || { echo "bench: no npm here" >&2; return 1; }
      mkdir -p npm-work
      echo '{ "name": "bench", "version": "1.0.0", "private": true }' >npm-work/package.json
      (cd npm-work && npm install --ignore-scripts --no-audit --no-fund --loglevel=error \
        @mui/icons-material@5 @mui/material@5 date-fns lodash lodash-es core-js rxjs typescript webpack eslint jest next \
        aws-sdk @aws-sdk/client-s3 @tabler/icons-react react react-dom antd @phosphor-icons/react googleapis \
        @angular/core @angular/common @angular/material @babel/preset-env storybook \
        @fortawesome/free-solid-svg-icons lucide-react)
      tar_of -C npm-work -cf part.tar node_modules
      rm -r npm-work
      ;;
    random)
      head -c 1073741824 /dev/zero |
        openssl enc -aes-128-ctr -nosalt -K 00112233445566778899aabbccddeeff -iv 00 2>/dev/null >random.bin
      tar_of -cf part.tar random.bin
      rm random.bin
      ;;
    *) echo "bench: no such input: $1" >&2; return 2 ;;
  esac
  mv part.tar "$1.tar"
}

for name in "$@"; do
  [ -e "$name.tar" ] || { echo "bench: making $name.tar"; make "$name"; }
  [ -e "$name.tar.zst" ] || { zstd -qf "$name.tar" -o part && mv part "$name.tar.zst"; }
  [ -e "$name.tar.gz" ] || { gzip -nc "$name.tar" >part && mv part "$name.tar.gz"; }
done

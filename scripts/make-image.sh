#!/usr/bin/env bash
# Makes the demo's image from Debian packages, as an OCI archive with three layers:
#   1. a minimal Debian root file system (plain tar, as mmdebstrap writes it),
#   2. what installing a package with dpkg changes in it (gzip),
#   3. hand-made changes: a replaced file, whiteouts of a file and of a directory, an opaque directory (zstd).
#
#   scripts/make-image.sh OUT.tar      as root, since files in it belong to root and dpkg wants chroot
set -euo pipefail

out=$(realpath -m "${1:?usage: scripts/make-image.sh OUT.tar}")
if [ "$(id -u)" -ne 0 ]; then
  echo "make-image: the demo's image is made once, as root: sudo make setup" >&2
  exit 1
fi
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
cd "$work"

# Layer 1. The mirror is the one that this machine's own apt uses.
apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' |
  awk '$2 ~ /^bookworm/ && $4 == "Debian" { print "deb", $1, $2, $3 }' >sources
[ -s sources ] || { echo "make-image: no bookworm mirror in this machine's apt sources" >&2; exit 1; }
mmdebstrap --quiet --variant=minbase bookworm layer1.tar - <sources

# Layer 2: unpack, install, and keep what changed after the stamp.
mkdir root
tar --numeric-owner --xattrs --xattrs-include='*' -xpf layer1.tar -C root
(cd root && find . | LC_ALL=C sort) >before
touch stamp
sleep 1.1
mkdir -m 777 debs
apt-cache show jq >/dev/null 2>&1 || apt-get -qq update
(cd debs && apt-get -qq -o APT::Sandbox::User=root download jq libjq1 libonig5)
cp -r debs root/debs
chroot root sh -c 'dpkg -i /debs/*.deb' >dpkg.log 2>&1 || { cat dpkg.log >&2; exit 1; }
rm -r root/debs
(cd root && find . | LC_ALL=C sort) >after
LC_ALL=C comm -23 before after | while read -r gone; do
  : >"root/$(dirname "$gone")/.wh.$(basename "$gone")"
done
(cd root && find . -cnewer ../stamp -print0 | LC_ALL=C sort -z |
  tar --null --no-recursion --numeric-owner --format=gnu -T - -cf ../layer2.tar)

# Layer 3. Its own directories carry the modes they have below.
mkdir -p three/etc/skel three/usr/share/doc three/opt
printf 'Welcome to the third layer.\n' >three/etc/motd
: >three/etc/.wh.issue.net
: >three/usr/share/doc/.wh.jq
: >three/etc/skel/.wh..wh..opq
printf 'new here\n' >three/etc/skel/welcome
truncate -s 3M three/opt/sparse
printf 'end\n' >>three/opt/sparse
ln three/etc/motd three/etc/motd.hardlink
ln -s ../etc/motd three/opt/link
chown -R 0:0 three
(cd three && tar --numeric-owner --format=pax --sparse -cf ../layer3.tar etc usr opt)

# The archive, by the OCI image specification.
blobs=oci/blobs/sha256
mkdir -p $blobs
digest() { sha256sum "$1" | cut -d' ' -f1; }
add() { # FILE MEDIA-TYPE → a descriptor on standard output, the file among the blobs
  local sum size
  sum=$(digest "$1") size=$(stat -c %s "$1")
  mv "$1" "$blobs/$sum"
  printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$2" "$sum" "$size"
}
diff1=$(digest layer1.tar) diff2=$(digest layer2.tar) diff3=$(digest layer3.tar)
gzip -n layer2.tar
zstd -q --rm layer3.tar
type=application/vnd.oci.image
layers=$(add layer1.tar $type.layer.v1.tar),$(add layer2.tar.gz $type.layer.v1.tar+gzip),$(add layer3.tar.zst $type.layer.v1.tar+zstd)
created=$(date -u +%Y-%m-%dT%H:%M:%SZ)
cat >config <<JSON
{"created":"$created","architecture":"amd64","os":"linux",
 "config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","DEMO=yes"],"Cmd":["/bin/bash"],"WorkingDir":"/root"},
 "rootfs":{"type":"layers","diff_ids":["sha256:$diff1","sha256:$diff2","sha256:$diff3"]},
 "history":[{"created":"$created","created_by":"mmdebstrap --variant=minbase bookworm"},
            {"created":"$created","created_by":"dpkg -i jq libjq1 libonig5"},
            {"created":"$created","created_by":"whiteouts, an opaque directory and new files"}]}
JSON
config=$(add config $type.config.v1+json)
printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' $type.manifest.v1+json "$config" "$layers" >manifest
manifest=$(add manifest $type.manifest.v1+json)
printf '{"schemaVersion":2,"manifests":[%s,"annotations":{"org.opencontainers.image.ref.name":"demo:latest"}}]}' \
  "${manifest%\}}" >oci/index.json
printf '{"imageLayoutVersion":"1.0.0"}' >oci/oci-layout
mkdir -p "$(dirname "$out")"
tar -C oci --owner=0 --group=0 -cf "$out.part" oci-layout index.json blobs
chmod 644 "$out.part"
mv "$out.part" "$out"

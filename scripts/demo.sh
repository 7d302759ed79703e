#!/usr/bin/env bash
# The main job on a real image, with lcow alone: load, look, run in a utility VM, diff, commit, save, and the proof that the
# layers came back as they were. Prints each command with its time. Needs target/release/lcow and .demo/image.tar (`make demo`
# makes both) and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

lcow=$PWD/target/release/lcow image=$PWD/.demo/image.tar
[ -x "$lcow" ] && [ -r "$image" ] || { echo "demo: run 'make demo', which builds what is missing" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
export LCOW_ROOT=$work/root
before=$(LC_ALL=C sort /proc/self/mounts)

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
lcow() { # runs lcow, shows the command and what it took; output goes on
  printf '%s$ lcow %s%s\n' "$bold" "$(quoted "$@")" "$plain"
  local start=$EPOCHREALTIME code=0
  "$lcow" "$@" || code=$?
  local took=$(((${EPOCHREALTIME/./} - ${start/./}) / 1000))
  printf '  (%d.%03d s)\n\n' $((took / 1000)) $((took % 1000))
  [ "$code" -eq 0 ] || { echo "demo: lcow $1 ended with $code" >&2; exit 1; }
}
quoted() {
  local arg out=()
  for arg in "$@"; do
    case $arg in
      *$'\n'*) out+=("'…'") ;;
      *[!A-Za-z0-9_/.:=-]*) out+=("'$arg'") ;;
      *) out+=("${arg#"$work"/}") ;;
    esac
  done
  printf '%s' "${out[*]}"
}
fail() { echo "demo: $*" >&2; exit 1; }

echo "lcow $("$lcow" --version | cut -d' ' -f2), as uid $(id -u), store in a new folder"
echo

lcow load "$image"
lcow images
lcow layer tree

script='
set -e
echo "layer 1: $(. /etc/os-release; echo $PRETTY_NAME)"
echo "layer 2: $(echo "{\"jq\":\"works\"}" | jq -r .jq)"
echo "layer 3: $(cat /etc/motd)"
test ! -e /etc/issue.net && test ! -e /usr/share/doc/jq && echo "whiteouts: honoured"
test "$(ls -A /etc/skel)" = welcome && echo "opaque directory: honoured"
echo "hello from the guest" > /srv/hello.txt
mkdir -p /srv/new/deep && echo deep > /srv/new/deep/file
rm /etc/debian_version
rm -r /usr/share/doc/libonig5
mv /etc/motd.hardlink /etc/motd.renamed
chmod 600 /etc/issue
uname -sr'
lcow run --name demo demo:latest /bin/bash -c "$script"
lcow diff demo
lcow commit demo demo:changed
lcow save demo:changed -o "$work/saved.tar"

echo "The proof:"
# Diff IDs, read out of both archives by the image specification alone.
diff_ids() {
  local index manifest config
  index=$(tar -xOf "$1" index.json)
  manifest=$(grep -o '"digest": *"sha256:[0-9a-f]*"' <<<"$index" | head -n 1 | grep -o '[0-9a-f]\{64\}')
  config=$(tar -xOf "$1" "blobs/sha256/$manifest" | tr -d ' \n' | grep -o '"config":{[^}]*}' | grep -o '[0-9a-f]\{64\}')
  tar -xOf "$1" "blobs/sha256/$config" | tr -d ' \n' | grep -o '"diff_ids":\[[^]]*\]' | grep -o 'sha256:[0-9a-f]*'
}
diff_ids "$image" >"$work/in"
diff_ids "$work/saved.tar" >"$work/out"
[ "$(wc -l <"$work/in")" = 3 ] || fail "the input should have three layers"
[ "$(wc -l <"$work/out")" = 4 ] || fail "the saved image should have four layers"
diff "$work/in" <(head -n 3 "$work/out") || fail "the original layers' diff IDs changed"
# The blobs themselves, hashed by another program, not only what the config says of them.
while read -r id; do
  sum=$(tar -xOf "$work/saved.tar" "blobs/sha256/${id#sha256:}" | sha256sum | cut -d' ' -f1)
  [ "sha256:$sum" = "$id" ] || fail "layer $id hashes to $sum"
done <"$work/out"
echo "  the 3 original layers have the same diff IDs in the saved archive, and the blobs hash to them"

tar -xOf "$work/saved.tar" "blobs/sha256/$(tail -n 1 "$work/out" | cut -d: -f2)" >"$work/committed.tar"
LC_ALL=C tar -tf "$work/committed.tar" | LC_ALL=C sort >"$work/holds"
LC_ALL=C sort >"$work/expected" <<'LIST'
./
etc/
etc/.wh.debian_version
etc/.wh.motd.hardlink
etc/issue
etc/motd.renamed
srv/
srv/hello.txt
srv/new/
srv/new/deep/
srv/new/deep/file
usr/
usr/share/
usr/share/doc/
usr/share/doc/.wh.libonig5
LIST
diff "$work/expected" "$work/holds" || fail "the committed layer does not hold exactly the changes"
[ "$(tar -xOf "$work/committed.tar" srv/hello.txt)" = "hello from the guest" ] || fail "the written file's contents"
[ "$(LC_ALL=C tar -tvf "$work/committed.tar" etc/issue | cut -c1-10)" = "-rw-------" ] || fail "the changed mode"
echo "  the committed layer holds exactly what was changed, and the directories on the way: $(wc -l <"$work/expected") entries"

[ "$(LC_ALL=C sort /proc/self/mounts)" = "$before" ] || fail "the host's mounts changed"
echo "  the host's mount table is what it was"
! pgrep -f "$work/root" >/dev/null || fail "a process is left over"
echo "  no process is left over"

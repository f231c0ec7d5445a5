#!/bin/sh
# Copies the models of a running server, or restores them: deploy/backup.sh FROM TO
#
# Every file that rsync reads is complete, because a model appears by one rename and is never written to again. But if
# a model is replaced after rsync has copied its metadata.json and before it copies its model, the copy has one file of the
# old model and one of the new. So each pass checks the digests of the models it has copied. If some do not match, there
# is another pass, which copies only the files that have changed. So there is when a version has become another directory
# meanwhile, because it was replaced as a whole: the copy may have some files of the old one and some of the new one.
set -eu
[ $# = 2 ] || { echo "usage: $0 FROM TO" >&2; exit 2; }
passes=20
name='[A-Za-z0-9_][A-Za-z0-9._+-]*'     # the server's grammar; it has no character that the shell would expand
scratch=$(mktemp -d)
copied=$scratch/copied
trap 'rm -rf "$scratch"' EXIT

path() {    # in a form that no tool takes for an option or for the name of another machine
    case $1 in /*) printf '%s\n' "${1%/}" ;; *) printf './%s\n' "${1%/}" ;; esac
}
from=$(path "$1") to=$(path "$2")

fits() {    # whether the two files of this model belong together; true if there is no digest to compare
    for file in "$1/model" "$1/metadata.json"; do
        [ -f "$file" ] && ! [ -L "$file" ] || return 0
    done
    digest=$(grep -oE '"sha256": ?"[0-9a-f]{64}"' "$1/metadata.json" | head -n 1 | grep -oE '[0-9a-f]{64}') || return 0
    [ "$(sha256sum <"$1/model")" = "$digest  -" ]
}

versions() {    # their inodes and paths; some directories may vanish meanwhile, or not be readable
    (cd "$from" && find . -maxdepth 3 -name .staging -prune -o -type d -exec stat -c '%i %n' {} + 2>/dev/null) |
        sed -nE 's#^([0-9]+) \./([^/]+/[^/]+/[^/]+)$#\1 \2#p'
}

holds() { [ -n "$(find "$1/" -mindepth 1 -maxdepth 1 ! -name .staging ! -name lost+found -print -quit)" ]; }

refuse() { echo "$1. Nothing was copied or deleted" >&2; exit 1; }

[ -d "$from" ] || refuse "$1 is not a directory"
mkdir -p "$to"
source=$(cd "$from" && pwd -P)/ copy=$(cd "$to" && pwd -P)/
# rsync would copy the copy as well, or delete what it copies, or all of the copy
case $source in "$copy"*) refuse "$1 is in $2" ;; esac
case $copy in "$source"*) refuse "$2 is in $1" ;; esac
if ! holds "$from" && holds "$to"; then
    refuse "there is nothing in $1, and something in $2: is the disk of $1 mounted?"
fi
# of the file system, empty or readable by root alone; a project of this name is copied
lost=--exclude=/lost+found
[ -z "$(ls -A "$from/lost+found" 2>/dev/null)" ] || lost=
while [ "$passes" -gt 0 ]; do
    passes=$((passes - 1))
    versions >"$scratch/before"
    # --modify-window=-1: two versions of the same size within one second differ. --safe-links, --no-D: links that lead
    # out of the tree, devices and fifos do not belong to the server. 24: a model was deleted in the meantime.
    rsync -a --safe-links --no-D --delete --modify-window=-1 --exclude=/.staging ${lost:+"$lost"} --out-format=%n \
        "$from/" "$to/" >"$copied" || [ $? = 24 ]
    versions >"$scratch/after"
    # of which there are two inodes
    sort -u "$scratch/before" "$scratch/after" | cut -d ' ' -f 2- | sort | uniq -d >"$scratch/replaced"
    cut -d / -f 1-3 "$copied" | sort -u | comm -12 - "$scratch/replaced" >"$scratch/mixed"
    sed 's/$/ was replaced while it was copied: copying it again/' "$scratch/mixed" >&2
    torn=$(wc -l <"$scratch/mixed")
    for model in $(sed -nE "s#^($name(/$name)+)/(model|metadata\.json)\$#\1#p" "$copied" | sort -u); do
        fits "$to/$model" || { torn=$((torn + 1)); echo "$model was replaced while it was copied: copying it again" >&2; }
    done
    [ "$torn" -gt 0 ] || exit 0
done
echo "models are replaced faster than they can be copied ($torn at last): copy a snapshot of the file system" >&2
exit 1

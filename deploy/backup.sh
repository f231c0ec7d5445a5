#!/bin/sh
# Copies the models of a server that goes on working, or brings them back: deploy/backup.sh FROM TO
#
# Every file that rsync meets is complete, because a model appears by one rename and is never written to again. What can
# happen is that a model is replaced after rsync took its metadata.json and before it took its model: the copy would
# have the one of the old and the other of the new. Each pass therefore checks the digests of what it has copied, and
# where they do not fit there is another pass, which copies the changed files alone.
set -eu
[ $# = 2 ] || { echo "usage: $0 FROM TO" >&2; exit 2; }
passes=20
name='[A-Za-z0-9_][A-Za-z0-9._+-]*'     # of the server's; there is nothing in it that the shell would expand
copied=$(mktemp)
trap 'rm -f "$copied"' EXIT

path() {    # as no tool takes it for an option or for the name of another machine
    case $1 in /*) printf '%s\n' "${1%/}" ;; *) printf './%s\n' "${1%/}" ;; esac
}
from=$(path "$1") to=$(path "$2")

fits() {    # the two files of this model belong together; without a digest there is nothing to compare
    for file in "$1/model" "$1/metadata.json"; do
        [ -f "$file" ] && ! [ -L "$file" ] || return 0
    done
    digest=$(grep -oE '"sha256": ?"[0-9a-f]{64}"' "$1/metadata.json" | head -n 1 | grep -oE '[0-9a-f]{64}') || return 0
    [ "$(sha256sum <"$1/model")" = "$digest  -" ]
}

mkdir -p "$to"
while [ "$passes" -gt 0 ]; do
    passes=$((passes - 1))
    # --modify-window=-1: two versions within one second and of one size are two versions. --safe-links, --no-D: a link
    # that leads out of the tree, a device or a fifo is none of the server's. 24: a model was deleted meanwhile.
    rsync -a --safe-links --no-D --delete --modify-window=-1 --exclude=/.staging --out-format=%n "$from/" "$to/" \
        >"$copied" || [ $? = 24 ]
    torn=0
    for model in $(sed -nE "s#^($name(/$name)+)/(model|metadata\.json)\$#\1#p" "$copied" | sort -u); do
        fits "$to/$model" || { torn=$((torn + 1)); echo "$model was replaced while it was copied: once more" >&2; }
    done
    [ "$torn" -gt 0 ] || exit 0
done
echo "$torn models are replaced faster than they can be copied: copy a snapshot of the file system" >&2
exit 1

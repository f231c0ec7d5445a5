#!/bin/sh
# Copies the models of a server that goes on working, or brings them back: deploy/backup.sh FROM TO
#
# Every file that rsync meets is complete, because a model appears by one rename and is never written to again. What can
# happen is that a model is replaced after rsync took its metadata.json and before it took its model: the copy would
# have the one of the old and the other of the new. Each pass therefore checks the digests of what it has copied, and
# where they do not fit there is another pass, which copies the changed files alone.
set -eu
[ $# = 2 ] || { echo "usage: $0 FROM TO" >&2; exit 2; }
from=${1%/} to=${2%/}
passes=20
copied=$(mktemp)
trap 'rm -f "$copied"' EXIT

fits() {    # the two files of this model belong together; without a digest there is nothing to compare
    [ -f "$1/model" ] && [ -f "$1/metadata.json" ] || return 0
    digest=$(sed -n 's/^  "sha256": "\([0-9a-f]\{64\}\)",\{0,1\}$/\1/p' "$1/metadata.json")
    [ -z "$digest" ] || echo "$digest  $1/model" | sha256sum -c --status
}

mkdir -p "$to"
while [ "$passes" -gt 0 ]; do
    passes=$((passes - 1))
    # --modify-window=-1: two versions within one second and of one size are two versions. 24: a model was deleted meanwhile.
    rsync -a --delete --modify-window=-1 --exclude=/.staging --out-format=%n "$from/" "$to/" >"$copied" || [ $? = 24 ]
    torn=0
    for model in $(sed -nE 's#/(model|metadata\.json)$##p' "$copied" | sort -u); do     # names have no spaces in them
        fits "$to/$model" || { torn=$((torn + 1)); echo "$model was replaced while it was copied: once more" >&2; }
    done
    [ "$torn" -gt 0 ] || exit 0
done
echo "$torn models are replaced faster than they can be copied: copy a snapshot of the file system" >&2
exit 1

#!/bin/sh
# Begins as root only to prepare the directory of the models, then becomes a user without rights, then the server: every
# step is an exec, so the server is pid 1 and gets the SIGTERM of `docker stop`. With `--user` it begins as that user.
set -eu

models=${MODEL_STORAGE_PATH:-/app/models}
user=10001 group=10001

say() { echo "docker-entrypoint: $*" >&2; }

# What is needed to change models that another user wrote: the directories down to a model's own and all of .staging. The
# files beside are read, replaced and removed without being owned, and what is deeper is not ours. -links 1: a hard link
# may be that of a file elsewhere. -execdir and -h: no link is followed, not even one that takes the place of a directory
# in this moment. The top is the last (-depth), by the name `.` as it may be a link: broken off, this begins again.
give() {
    if [ -d "$models/.staging" ] && ! [ -L "$models/.staging" ]; then
        find "$models/.staging" -xdev ! -uid "$user" \( -type d -o -type f -links 1 \) \
            -execdir chown -h "$user:$group" {} +
    fi
    find "$models/." -depth -maxdepth 4 -xdev ! -uid "$user" -type d -execdir chown -h "$user:$group" {} +
}

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$models" || true      # where that cannot be, the server says it
    owner=$(stat -L -c %u "$models" 2>/dev/null || echo 0)
    if [ "$owner" != 0 ]; then
        # The usual start: nothing is changed and no tree is read, however large it is. A directory that somebody made
        # for the models stays theirs, the server works as its owner.
        user=$owner group=$(stat -L -c %g "$models")
        if [ "$group" = 0 ]; then group=10001; fi
    elif [ -w "$models" ]; then     # which root may not in a read-only mount alone
        # Docker has made it just now, or a server that still ran as root has written to it.
        say "giving $models to user $user"
        give || say "not all of it could be given: the server says what it cannot write"
    fi
    if ! setpriv --reuid="$user" --regid="$group" --clear-groups true; then
        say "root cannot become user $user here. With --cap-drop ALL start it with --user $user:$group too," \
            "or leave it SETUID, SETGID, CHOWN and DAC_OVERRIDE with --cap-add"
        exit 1
    fi
    set -- setpriv --reuid="$user" --regid="$group" --clear-groups --inh-caps=-all --no-new-privs "$@"
fi

# A long list waits for its slow reader in a temporary file. With --read-only there may be no place but the volume.
if [ -z "${TMPDIR:-}" ] && ! [ -w /tmp ]; then export TMPDIR="$models/.staging"; fi

exec "$@"

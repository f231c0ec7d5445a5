#!/bin/sh
# Starts as root only to prepare the directory of the models, then becomes an unprivileged user, then the server. Every
# step is an exec, so the server is process 1 and receives the SIGTERM of `docker stop`. With `--user` it starts as that
# user.
set -eu

models=${MODEL_STORAGE_PATH:-/app/models}
user=10001 group=10001

say() { echo "docker-entrypoint: $*" >&2; }

# To change models that another user wrote, the server must own the directories down to those of the models, and all of
# .staging. Files can be read, replaced and removed without owning them, and nothing deeper belongs to the server.
# -links 1: a hard link can belong to a file elsewhere. -execdir and -h: no link is followed, not even one that replaces
# a directory at this moment. The top comes last (-depth), so that an interrupted run is repeated at the next start; it is
# called `.` because it can be a link.
give() {
    if [ -d "$models/.staging" ] && ! [ -L "$models/.staging" ]; then
        find "$models/.staging" -xdev ! -uid "$user" \( -type d -o -type f -links 1 \) \
            -execdir chown -h "$user:$group" {} +
    fi
    find "$models/." -depth -maxdepth 4 -xdev ! -uid "$user" -type d -execdir chown -h "$user:$group" {} +
}

case ${1-} in -* | token) set -- python model_server.py "$@" ;; esac      # `docker run IMAGE --version`

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$models" || true      # if this fails, the server says so
    owner=$(stat -L -c %u "$models" 2>/dev/null || echo 0)
    if [ "$owner" != 0 ]; then
        # The usual start changes nothing and reads no tree, however large. If somebody created the directory for the
        # models, it stays theirs, and the server runs as its owner.
        user=$owner group=$(stat -L -c %g "$models")
        if [ "$group" = 0 ]; then group=10001; fi
    elif [ -w "$models" ]; then     # false for root only on a read-only mount
        # Docker has just created it, or a server that ran as root has written to it.
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

# waitress keeps an answer of more than 1 MiB in a temporary file until its reader has taken it. With --read-only, the
# volume may be the only place for that.
if [ -z "${TMPDIR:-}" ] && ! [ -w /tmp ]; then export TMPDIR="$models/.staging"; fi

exec "$@"

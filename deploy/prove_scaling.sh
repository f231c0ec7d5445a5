#!/usr/bin/env bash
# Tests on one machine that several servers can share a distributed file system: a GlusterFS volume with three replicas,
# two mounts of it, two servers. Runs tests/whole/test_scaling.py there, which prints its figures; see SCALING.md.
# Needs root, FUSE, and Debian's glusterfs-server, nginx-light, openssl and iproute2, which it installs if necessary.
#
#   deploy/prove_scaling.sh [argument of pytest...]
#
# PYTHON: an interpreter with tests/requirements.txt, by default .venv/bin/python. OPTIONS: lines of "name value" for
# `gluster volume set`. MOUNT_OPTIONS: for the mounts. The defaults of both are what SCALING.md recommends.
set -euo pipefail
die() { echo "prove_scaling: $*" >&2; exit 1; }

if [ -z "${SCALING_DIR:-}" ]; then      # first this part, then the part below in namespaces of its own
    cd "$(dirname "$0")/.."
    export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin PYTHON=${PYTHON:-.venv/bin/python}
    [ "$(id -u)" = 0 ] || die "run it as root: it mounts"
    [ -e /dev/fuse ] || die "there is no /dev/fuse here"
    [ -x "$(command -v "$PYTHON")" ] || die "no $PYTHON: install tests/requirements.txt, or set PYTHON"
    packages=()
    for tool in glusterd:glusterfs-server nginx:nginx-light openssl:openssl ip:iproute2; do
        command -v "${tool%:*}" >/dev/null || packages+=("${tool#*:}")
    done
    if [ "${#packages[@]}" -gt 0 ]; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q >/dev/null
        apt-get install -q -y --no-install-recommends "${packages[@]}" >/dev/null
    fi
    SCALING_DIR=$(mktemp -d /var/tmp/amr-scaling-XXXXXX)    # /tmp can be a tmpfs, and bricks need trusted.* attributes
    export SCALING_DIR
    trap '[ -n "${KEEP:-}" ] || rm -rf "$SCALING_DIR"' EXIT     # KEEP=1 keeps the logs in log/
    # network, mounts and processes end with the last line below, whatever happens before
    unshare --net --mount --pid --fork --kill-child --mount-proc bash "deploy/${0##*/}" "$@"
    exit
fi

OPTIONS=${OPTIONS-"performance.open-behind off
performance.quick-read off
performance.stat-prefetch off
network.ping-timeout 10"}
MOUNT_OPTIONS=${MOUNT_OPTIONS-"--entry-timeout=0 --attribute-timeout=0 --negative-timeout=0"}
address=10.77.0.1 volume=models mounts=$SCALING_DIR/mnt     # GlusterFS accepts no address in 127.0.0.0/8

ip address add "$address/24" dev lo
ip link set lo up
mkdir -p "$SCALING_DIR"/{lib,log,bricks,mnt/a,mnt/b} /var/lib/glusterd /var/log/glusterfs
mount --bind "$SCALING_DIR/lib" /var/lib/glusterd
mount --bind "$SCALING_DIR/log" /var/log/glusterfs
mount -t tmpfs tmpfs /run

cli() { gluster --mode=script "$@"; }
glusterd
for _ in $(seq 100); do if cli volume info >/dev/null 2>&1; then break; fi; sleep 0.1; done
cli volume create "$volume" replica 3 "$address:$SCALING_DIR/bricks/"{1,2,3} force >/dev/null
while read -r name value; do
    if [ -n "$name" ]; then cli volume set "$volume" "$name" "$value" >/dev/null; fi
done <<<"$OPTIONS"
cli volume start "$volume" >/dev/null
for mount in a b; do
    # shellcheck disable=SC2086
    glusterfs --volfile-server="$address" --volfile-id="$volume" $MOUNT_OPTIONS "$mounts/$mount"
    for _ in $(seq 100); do if mountpoint -q "$mounts/$mount"; then break; fi; sleep 0.1; done
    mountpoint -q "$mounts/$mount" || { cat "$SCALING_DIR"/log/*mnt-"$mount".log >&2; die "no mount"; }
done
glusterd --version | head -n 1
cli volume info "$volume" | grep -E '^(Type|Number of Bricks)|^(performance|network)'
echo "mounts: $MOUNT_OPTIONS"

export SCALING_MOUNTS=$mounts/a:$mounts/b SCALING_VOLUME=$volume
"$PYTHON" -m pytest -q -m scaling -p no:cacheprovider tests/whole/test_scaling.py "$@"

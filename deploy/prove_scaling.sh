#!/usr/bin/env bash
# Proves on one machine that several servers may share one distributed file system: a GlusterFS volume of three replicas,
# two mounts of it, two servers. Runs tests/whole/test_scaling.py there, which prints its figures; see SCALING.md.
# Needs root, FUSE, and Debian's glusterfs-server, nginx-light, openssl and iproute2, which it installs where they are missing.
#
#   deploy/prove_scaling.sh [argument of pytest...]
#
# PYTHON: the interpreter that has tests/requirements.txt, .venv/bin/python by default. OPTIONS: lines of "name value" for
# `gluster volume set`, MOUNT_OPTIONS: for the mounts; without them as SCALING.md recommends.
set -euo pipefail
die() { echo "prove_scaling: $*" >&2; exit 1; }

if [ -z "${SCALING_DIR:-}" ]; then      # first here, then below in namespaces of its own
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
    SCALING_DIR=$(mktemp -d /var/tmp/amr-scaling-XXXXXX)    # /tmp may be a tmpfs, and bricks want attributes of trusted.*
    export SCALING_DIR
    trap '[ -n "${KEEP:-}" ] || rm -rf "$SCALING_DIR"' EXIT     # KEEP=1: its logs stay in log/
    # Network, mounts and processes all end with the last line below, whatever happens in between
    unshare --net --mount --pid --fork --kill-child --mount-proc bash "deploy/${0##*/}" "$@"
    exit
fi

OPTIONS=${OPTIONS-"performance.open-behind off
performance.quick-read off
performance.stat-prefetch off
network.ping-timeout 10"}
MOUNT_OPTIONS=${MOUNT_OPTIONS-"--entry-timeout=0 --attribute-timeout=0 --negative-timeout=0"}
address=10.77.0.1 volume=models mounts=$SCALING_DIR/mnt     # GlusterFS takes no address of the loopback's own net

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

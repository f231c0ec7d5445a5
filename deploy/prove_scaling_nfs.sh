#!/usr/bin/env bash
# Tests the same as prove_scaling.sh on NFS 4.2: an exported ext4, mounted by two clients, with a server on each mount.
# The kernel of this machine may lack NFS, so everything runs in User Mode Linux, a kernel that is an ordinary program.
# It boots from this machine's files, mounted read-only, and has a disk of its own. Its one processor is slow, so speed
# is not measured. Needs Debian's user-mode-linux, nfs-kernel-server, kmod and iproute2, which it installs if necessary.
#
#   deploy/prove_scaling_nfs.sh [argument of pytest...]
#
# PYTHON: as in prove_scaling.sh. MOUNT_OPTIONS: for the mounts; the default is what SCALING.md recommends.
set -euo pipefail
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

if [ -z "${SCALING_DIR:-}" ]; then      # first this part, then the part below as the first process of the other kernel
    cd "$(dirname "$0")/.."
    PYTHON=${PYTHON:-.venv/bin/python}
    [ -x "$(command -v "$PYTHON")" ] || { echo "no $PYTHON: install tests/requirements.txt" >&2; exit 1; }
    packages=()
    for tool in linux.uml:user-mode-linux rpc.nfsd:nfs-kernel-server modprobe:kmod ip:iproute2; do
        command -v "${tool%:*}" >/dev/null || packages+=("${tool#*:}")
    done
    if [ "${#packages[@]}" -gt 0 ]; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q >/dev/null
        apt-get install -q -y --no-install-recommends "${packages[@]}" >/dev/null
    fi
    SCALING_DIR=$(mktemp -d /var/tmp/amr-scaling-XXXXXX)
    trap 'rm -rf "$SCALING_DIR"' EXIT
    truncate -s 4G "$SCALING_DIR/disk"
    MOUNT_OPTIONS=${MOUNT_OPTIONS-lookupcache=none,actimeo=0} SCALING_ROUNDS=${SCALING_ROUNDS:-}
    arguments=("$@")
    declare -p PWD PYTHON MOUNT_OPTIONS SCALING_ROUNDS arguments >"$SCALING_DIR/environment"
    linux.uml mem=1500M quiet root=/dev/root rootfstype=hostfs rootflags=/ ro "uml_dir=$SCALING_DIR" \
        "ubd0=$SCALING_DIR/disk" con=null con0=null,fd:1 ssl=null "init=$PWD/deploy/${0##*/}" "SCALING_DIR=$SCALING_DIR" \
        </dev/null | tee "$SCALING_DIR/output"
    grep -q '^pytest ended with 0' "$SCALING_DIR/output"
    exit
fi

trap 'sync; echo o >/proc/sysrq-trigger; sleep 60' EXIT
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for place in /run /mnt /var/lib/nfs; do mount -t tmpfs tmpfs "$place"; done
# shellcheck disable=SC1091
. "$SCALING_DIR/environment"
cd "$PWD"
mkdir -p /mnt/{export,a,b} /run/{netns,tmp,lib}
ln -s /usr/lib/uml/modules /run/lib/modules
for module in nfsd nfsv4 veth; do modprobe -d /run "$module"; done
ip link set lo up
mkfs.ext4 -q /dev/ubda
mount /dev/ubda /mnt/export
hostname server
touch /var/lib/nfs/{etab,rmtab}
exportfs -o rw,no_root_squash,no_subtree_check,fsid=0 '*:/mnt/export'
rpc.nfsd -N 3 4
rpc.mountd -N 3 2>/dev/null     # it complains that there is no IPv6
for mount in a:1 b:2; do    # each with its own network and host name, or the kernel would treat them as one client
    number=${mount#*:} mount=${mount%:*}
    ip netns add "$mount"
    ip link add "to-$mount" type veth peer name eth0 netns "$mount"
    ip address add "10.77.$number.1/24" dev "to-$mount"
    ip link set "to-$mount" up
    ip -n "$mount" address add "10.77.$number.2/24" dev eth0
    ip -n "$mount" link set eth0 up
    nsenter --net="/run/netns/$mount" unshare --uts sh -ec \
        "hostname $mount; mount -t nfs4 -o vers=4.2,$MOUNT_OPTIONS 10.77.$number.1:/ /mnt/$mount"
done
grep ' nfs4 ' /proc/mounts

export SCALING_ROUNDS SCALING_MOUNTS=/mnt/a:/mnt/b HOME=/run/tmp TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1
status=0
"$PYTHON" -m pytest -q --color=no -m scaling -k 'not brick and not quorum and not speed' -p no:cacheprovider \
    tests/whole/test_scaling.py "${arguments[@]}" || status=$?
echo "pytest ended with $status"

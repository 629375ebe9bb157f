#!/usr/bin/env bash
# A program under test and the kernel's NBD client run together inside a guest, so
# that a client without a server cannot hang the host.
#
# usage: kernel-nbd-guest.sh --marcot BINARY
#        kernel-nbd-guest.sh BINARY JOB [FILE[:DESTINATION]...]
#        kernel-nbd-guest.sh --self-test
#
# JOB is a script for busybox sh. In the guest, BINARY and each program among the
# FILEs are on its PATH, with the libraries they load; the other FILEs are in
# /data; an ext4 disk is at /scratch; the modules nbd, xfs, loop and fuse are
# ready for modprobe; `claim` and `claims_end` are in /data/claims.sh. Its lines
# `ok - ...` and `not ok - ...` are passed on. --self-test does what a job is
# expected to do, with qemu-nbd as the BINARY. --marcot runs
# scripts/lib/kernel-nbd-job.
#
# environment: MARCOT_CACHE (kernel and busybox), KEEP=yes (keep a failed run's
# files), GUEST_SCRATCH_MIB, GUEST_JOB_TIMEOUT_S
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/guest.sh
. "$HERE/../lib/guest.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

GUEST_SCRATCH_MIB=${GUEST_SCRATCH_MIB:-2048}
# Longer than for other guests: the guest is emulated, and its job is long.
GUEST_JOB_TIMEOUT_S=${GUEST_JOB_TIMEOUT_S:-$((3 * GUEST_TIMEOUT_S))}

# Programs that a job needs to make and check file systems on a device.
TOOLS=(mkfs.ext4 e2fsck mkfs.xfs xfs_repair)

tool_files() {
    local tool
    for tool in "${TOOLS[@]}"; do PATH=$PATH:/usr/sbin:/sbin command -v "$tool" || return 1; done
    printf '%s\n' /etc/mke2fs.conf:/etc/mke2fs.conf "$HERE/../lib/guest-claims.sh:/data/claims.sh"
}

job_succeeded() {
    local log=$1 status=$2
    ((status == 0)) && return 0
    printf 'the job ended with %d; its console:\n' "$status" >&2
    cat "$log" >&2
    return 1
}

# pass_on_claims LOG : prints the guest's claims and counts them as claims of this script.
pass_on_claims() {
    local line
    while read -r line; do
        printf '%s\n' "$line"
        [[ $line == ok* ]] || CLAIMS_BROKEN=$((CLAIMS_BROKEN + 1))
    done < <(tr -d '\r' <"$1" | grep -E '^(not )?ok - ')
}

# check BINARY JOB FILE... : runs the job in a guest.
check() {
    local binary=$1 job=$2 initramfs=$CLAIMS_SCRATCH/initramfs.cpio log=$CLAIMS_SCRATCH/console status=0 tools
    shift 2
    tools=$(tool_files)
    mapfile -t tools <<<"$tools"
    guest_initramfs "$initramfs" "$binary" "${tools[@]}" "$@"
    # The initramfs is unpacked in memory, so both its file and its content need room.
    local memory_mib=$((GUEST_KERNEL_MEMORY_MIB + 2 * $(stat -c %s "$initramfs") / 1048576))
    guest_kernel_run --initramfs "$initramfs" --job "$job" --scratch "$GUEST_SCRATCH_MIB" \
        --mem "$memory_mib" --timeout "$GUEST_JOB_TIMEOUT_S" --log "$log" || status=$?
    pass_on_claims "$log"
    claim "the guest ran $(basename "$binary") and the job to its end" job_succeeded "$log" "$status"
}

self_test_job() {
    cat <<'JOB'
#!/bin/sh
. /data/claims.sh

connected() { [ "$(cat /sys/block/nbd0/size)" -gt 0 ]; }

await_connection() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        connected && return 0
        sleep 0.5
    done
    return 1
}

keeps_a_file() {
    mkdir -p /mnt
    mount -t "$1" /dev/nbd0 /mnt || return 1
    yes "$1" | head -c 4000000 >/mnt/file
    before=$(sha256sum </mnt/file)
    umount /mnt && mount -t "$1" -o ro /dev/nbd0 /mnt || return 1
    after=$(sha256sum </mnt/file)
    umount /mnt
    [ "$before" = "$after" ]
}

claim "the nbd module loads" modprobe nbd
claim "/dev/nbd0 is a block device" test -b /dev/nbd0
claim "the xfs module loads" modprobe xfs

truncate -s 512M /scratch/disk
qemu-nbd --connect=/dev/nbd0 --format=raw /scratch/disk &
server=$!
claim "the kernel client connects to a server in the guest" await_connection
claim "mkfs.ext4 runs on /dev/nbd0" mkfs.ext4 -q -F /dev/nbd0
claim "ext4 on /dev/nbd0 keeps a file over a remount" keeps_a_file ext4
claim "e2fsck finds ext4 clean" e2fsck -fn /dev/nbd0
claim "mkfs.xfs runs on /dev/nbd0" mkfs.xfs -q -f /dev/nbd0
claim "xfs on /dev/nbd0 keeps a file over a remount" keeps_a_file xfs
claim "xfs_repair finds xfs clean" xfs_repair -n /dev/nbd0
claim "the kernel client disconnects" qemu-nbd --disconnect /dev/nbd0
wait "$server"
claims_end
JOB
}

self_test() {
    self_test_job >"$CLAIMS_SCRATCH/job"
    check "$(command -v qemu-nbd)" "$CLAIMS_SCRATCH/job"
}

marcot_test() {
    # Debug information would only fill the guest's memory.
    strip -o "$CLAIMS_SCRATCH/marcot" "$1"
    local PATH=$PATH:/usr/sbin:/sbin
    check "$CLAIMS_SCRATCH/marcot" "$HERE/../lib/kernel-nbd-job" "$(command -v blkdiscard)" "$(command -v sfdisk)"
}

main() {
    need_packages qemu-system-x86 qemu-utils e2fsprogs xfsprogs fdisk
    claims_begin
    case "$#:${1-}" in
    1:--self-test) self_test ;;
    2:--marcot) marcot_test "$2" ;;
    0:* | 1:*)
        sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    *) check "$@" ;;
    esac
    claims_end
}

main "$@"

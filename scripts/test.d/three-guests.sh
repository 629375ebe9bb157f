#!/usr/bin/env bash
# Three virtual machines start together from three images of one template. Each
# keeps what it wrote and sees nothing of the others. The template stays as it
# was, byte for byte.
#
# usage: three-guests.sh --marcot BINARY
#        three-guests.sh TEMPLATE DISK1 DISK2 DISK3
#        three-guests.sh --self-test
#
# TEMPLATE and DISKs are paths of raw files or NBD URIs. The disks have to hold
# the template's content, as made by guest_template. --self-test makes the
# template, and serves three qcow2 overlays of it with qemu-nbd.
#
# environment: MARCOT_CACHE (kernel and busybox), KEEP=yes (keep a failed run's files)
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/guest.sh
. "$HERE/../lib/guest.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

NAMES=(alder birch cedar)
# Large enough for many blocks of any layout, small enough for an emulated machine.
OWN_FILE_BYTES=$((8 * 1024 * 1024 + 512))
SERVER_WAIT_TENTHS=600

# own_content NAME : prints the content of that guest's file. The guest's job makes the same content.
own_content() {
    # `yes` fails when `head` closes the pipe. That is no failure here.
    { yes "$1 wrote this" || true; } 2>/dev/null | head -c "$OWN_FILE_BYTES"
}

job_for() {
    cat <<JOB
#!/bin/sh
set -e
[ "\$(cat /etc/template)" = "made by marcot tests" ]
[ -z "\$(ls /own)" ]
yes "$1 wrote this" | head -c $OWN_FILE_BYTES >/own/$1
sync
sha256sum /own/$1
JOB
}

# boot_together DISK... : boots the guests. Their statuses and times are written to the scratch directory.
boot_together() {
    local i pid pids=() name
    for i in "${!NAMES[@]}"; do
        name=${NAMES[i]}
        job_for "$name" >"$CLAIMS_SCRATCH/$name.job"
        boot_one "$name" "${*:i+1:1}" &
        pids+=("$!")
        own "$!"
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || true
        disown_ended "$pid"
    done
}

boot_one() {
    local base=$CLAIMS_SCRATCH/$1 status=0
    date +%s%N >"$base.began"
    guest_run --disk "$2" --job "$base.job" --log "$base.log" || status=$?
    date +%s%N >"$base.ended"
    printf '%s\n' "$status" >"$base.status"
}

guest_succeeded() {
    local base=$CLAIMS_SCRATCH/$1
    [[ -f $base.status && $(<"$base.status") == 0 ]] && return 0
    cat "$base.log" >&2 || true
    return 1
}

ran_at_once() {
    local began ended
    began=$(cat "$CLAIMS_SCRATCH"/*.began | sort -n | tail -n 1)
    ended=$(cat "$CLAIMS_SCRATCH"/*.ended | sort -n | head -n 1)
    ((began < ended))
}

# fetch DISK OUT : copies the disk to a sparse raw file.
fetch() {
    qemu-img convert -f raw -O raw "$1" "$2"
}

# digest_of DISK : prints the SHA-256 of its bytes.
digest_of() {
    local copy=$CLAIMS_SCRATCH/digest.raw
    fetch "$1" "$copy" || return 1
    sha256sum <"$copy" | cut -d ' ' -f 1
    rm -f "$copy"
}

# root_of COPY : prints the name of the root partition for e2fsprogs.
root_of() {
    printf '%s?offset=%d' "$1" $((GUEST_ROOT_START_MIB * 1024 * 1024))
}

# names_in_own COPY : prints the names in /own, one a line.
names_in_own() {
    debugfs -R 'ls -p /own' "$(root_of "$1")" 2>/dev/null |
        awk -F / 'NF > 5 && $6 != "." && $6 != ".." { print $6 }'
}

holds_own_content() {
    local copy=$1 name=$2 found=$CLAIMS_SCRATCH/$2.found
    debugfs -R "dump /own/$name $found" "$(root_of "$copy")" 2>/dev/null || return 1
    cmp "$found" <(own_content "$name")
}

holds_only_own() {
    [[ $(names_in_own "$1") == "$2" ]]
}

is_clean() {
    e2fsck -fn "$(root_of "$1")" >"$CLAIMS_SCRATCH/fsck.log" 2>&1 && return 0
    cat "$CLAIMS_SCRATCH/fsck.log" >&2
    return 1
}

examine() {
    local name=$1 disk=$2 copy=$CLAIMS_SCRATCH/$1.raw
    claim "$name: the guest booted from its image, worked and powered off" guest_succeeded "$name"
    claim "$name: the image can be read afterwards" fetch "$disk" "$copy"
    claim "$name: the file system is clean" is_clean "$copy"
    claim "$name: its own file is there, byte for byte" holds_own_content "$copy" "$name"
    claim "$name: nothing of the other guests is there" holds_only_own "$copy" "$name"
    rm -f "$copy"
}

check() {
    local template=$1 before after i
    shift
    before=$(digest_of "$template")
    boot_together "$@"
    claim "three guests ran at the same time" ran_at_once
    for i in "${!NAMES[@]}"; do examine "${NAMES[i]}" "${*:i+1:1}"; done
    after=$(digest_of "$template")
    claim "the template is unchanged (sha256 ${before:0:16})" test "$before" = "$after"
}

# await_export URI : waits for the server. Its socket exists a moment before it listens.
await_export() {
    local tenths=0
    until qemu-img info "$1" >"$CLAIMS_SCRATCH/export" 2>&1; do
        ((tenths++ < SERVER_WAIT_TENTHS)) || guest_fail "no server at $1" || return 1
        sleep 0.1
    done
}

self_test() {
    local template=$CLAIMS_SCRATCH/template.raw name base disks=()
    guest_template "$template"
    for name in "${NAMES[@]}"; do
        base=$CLAIMS_SCRATCH/$name
        qemu-img create -q -f qcow2 -b "$template" -F raw "$base.qcow2"
        start_owned qemu-nbd --persistent --shared=4 --format=qcow2 --discard=unmap \
            --socket="$base.sock" "$base.qcow2"
        disks+=("nbd+unix:///?socket=$base.sock")
        await_export "${disks[-1]}"
    done
    check "$template" "${disks[@]}"
}

# Imports the template, protects it, clones it three times, and serves the clones.
marcot_test() {
    local marcot=$1 template=$CLAIMS_SCRATCH/template.raw socket=$CLAIMS_SCRATCH/nbd.sock i disks=()
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_LOG=warn
    guest_template "$template"
    "$marcot" import --no-progress "$template" template
    "$marcot" snap create --no-progress template@s
    "$marcot" snap protect template@s
    for i in 1 2 3; do
        "$marcot" clone template@s "clone-$i"
        disks+=("nbd+unix:///rbd/clone-$i?socket=$socket")
    done
    start_owned "$marcot" serve --socket "$socket" >/dev/null
    await_export "nbd+unix:///rbd/template@s?socket=$socket"
    check "nbd+unix:///rbd/template@s?socket=$socket" "${disks[@]}"
}

main() {
    need_packages qemu-system-x86 qemu-utils e2fsprogs
    claims_begin
    case "$#:${1-}" in
    1:--self-test) self_test ;;
    2:--marcot) marcot_test "$2" ;;
    4:*) check "$@" ;;
    *)
        sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
    esac
    claims_end
}

main "$@"

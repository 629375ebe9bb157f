#!/usr/bin/env bash
# A store with random damage. A read returns the right data or an error, before and after a repair. `check`
# reports the damage, and garbage collection does not make it worse. A child is not forgotten because its
# pool is damaged. On a full disk, no command is done by half.
#
# usage: damaged-store.sh --marcot BINARY
#
# environment: MARCOT_TEST_SEED (default: random, printed), MARCOT_TEST_DAMAGES (how many, default
# 40), KEEP=yes (keep a failed run's files)
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"
# shellcheck source=scripts/lib/commands.sh
. "$HERE/../lib/commands.sh"

SEED=${MARCOT_TEST_SEED:-$RANDOM}
DAMAGES=${MARCOT_TEST_DAMAGES:-40}
SPECS=(rbd/template rbd/template@s rbd/child other/child other/child@t rbd/bystander)
DISK_MIB=24

# --- a template and its children ---------------------------------------------------------------------------

prepare() {
    need_packages qemu-utils
    commands_begin "$@"
    export MARCOT_LOG=off
    head -c 3M /dev/urandom >template.raw
    truncate -s 12M template.raw
    marcot pool create other
    marcot import --no-progress template.raw rbd/template
    marcot snap create --no-progress rbd/template@s
    marcot snap protect rbd/template@s
    marcot clone rbd/template@s rbd/child
    marcot clone rbd/template@s other/child
    head -c 1M /dev/urandom | marcot import --no-progress - rbd/bystander
    serve "$CLAIMS_SCRATCH/nbd.sock"
    io "$(uri "$CLAIMS_SCRATCH/nbd.sock" rbd/child)" "write -P 1 1M 100k" flush
    io "$(uri "$CLAIMS_SCRATCH/nbd.sock" other/child)" "write -P 2 2M 100k" flush
    stop_serving "$SERVER"
    marcot snap create --no-progress other/child@t
    # A killed server leaves a log that has to be replayed.
    serve "$CLAIMS_SCRATCH/nbd.sock"
    io "$(uri "$CLAIMS_SCRATCH/nbd.sock" other/child)" "write -P 3 4M 64k" flush
    kill -9 "$SERVER"
    wait "$SERVER" 2>/dev/null || true
    disown_ended "$SERVER"
    declare -gA SUMS
    local spec
    for spec in "${SPECS[@]}"; do SUMS[$spec]=$(content "$spec"); done
    GOOD=$CLAIMS_SCRATCH/good
    cp -a "$MARCOT_STORE" "$GOOD"
}

restore() {
    rm -rf "$MARCOT_STORE"
    cp -a "$GOOD" "$MARCOT_STORE"
}

# --- one damage -----------------------------------------------------------------------------------

pick() {
    printf '%d' $(((RANDOM * 32768 + RANDOM) % $1))
}

# damage FILE : damages it in one of several ways, and prints which.
damage() {
    local file=$1 size at byte other
    size=$(stat -c %s "$file")
    case $(pick 5) in
    0 | 1)
        at=$(pick $((size > 0 ? size : 1)))
        byte=$(od -An -tu1 -j "$at" -N 1 "$file")
        # shellcheck disable=SC2059 # the byte is the format
        printf "\\x$(printf '%02x' $((${byte:-0} ^ (1 << $(pick 8)))))" |
            dd of="$file" bs=1 seek="$at" conv=notrunc status=none
        printf 'a flipped bit at %s of' "$at"
        ;;
    2)
        at=$(pick $((size > 0 ? size : 1)))
        truncate -s "$at" "$file"
        printf 'cut to %s bytes:' "$at"
        ;;
    3)
        at=$(($(pick $((size / 4096 + 1))) * 4096))
        head -c 4096 /dev/zero | dd of="$file" bs=4096 seek=$((at / 4096)) conv=notrunc status=none
        printf 'zeros at %s of' "$at"
        ;;
    4)
        # As after a write to the wrong file of the same kind.
        other=$(find "$MARCOT_STORE/pools" -type f -name "$(basename "$file" | cut -c 1)*" ! -path "$file" | sort | head -n 1)
        if [[ -n $other ]]; then cp "$other" "$file"; else rm "$file"; fi
        printf 'the content of another file in'
        ;;
    esac
}

# right SPEC : its content is as before, or reading it fails with an error. Counts the errors in $FAULTY.
right() {
    local sum status=0
    marcot export --no-progress "$1" - >"$CLAIMS_SCRATCH/read" 2>"$CLAIMS_SCRATCH/err" || status=$?
    if ((status != 0)); then
        FAULTY=$((FAULTY + 1))
        if crashed "$status" || [[ ,2,5,95, != *,$status,* || ! -s $CLAIMS_SCRATCH/err ]]; then
            printf '#   export %s: status %s\n' "$1" "$status" && cat "$CLAIMS_SCRATCH/err"
            return 1
        fi
        return 0
    fi
    sum=$(sha256sum <"$CLAIMS_SCRATCH/read")
    [[ $sum == "${SUMS[$1]}" ]] && return 0
    printf '#   export %s: WRONG DATA\n' "$1"
    return 1
}

# quiet COMMAND... : the command may fail, but must not crash.
quiet() {
    local status=0
    "$@" >"$CLAIMS_SCRATCH/out" 2>"$CLAIMS_SCRATCH/err" </dev/null || status=$?
    crashed "$status" || return 0
    commands_show "$@"
    return 1
}

# One trial with a damaged FILE: read everything, collect garbage, read again, restore the file, read again.
# Then put the damaged file back, repair, and read again. The repair gives up what cannot be read.
survives() {
    local file=$1 spec sound=0
    FAULTY=0
    for spec in "${SPECS[@]}"; do right "$spec" || return 1; done
    marcot check --no-progress --all >"$CLAIMS_SCRATCH/checked" 2>&1 || sound=$?
    if crashed "$sound" || { ((FAULTY > 0)) && ((sound == 0)); }; then
        printf '#   %d of %d cannot be read, and check ends with %d:\n' "$FAULTY" "${#SPECS[@]}" "$sound"
        cat "$CLAIMS_SCRATCH/checked"
        return 1
    fi
    ((FAULTY == 0)) || NOTICED=$((NOTICED + 1))
    quiet marcot ls -l rbd && quiet marcot ls -l other && quiet marcot info rbd/child &&
        quiet marcot snap unprotect rbd/template@s && quiet marcot gc --no-progress rbd &&
        quiet marcot gc --no-progress other || return 1
    for spec in "${SPECS[@]}"; do right "$spec" || return 1; done
    rm -f "$CLAIMS_SCRATCH/damaged"
    [[ ! -e $file ]] || cp -a "$file" "$CLAIMS_SCRATCH/damaged"
    mend "$file"
    FAULTY=0
    for spec in "${SPECS[@]}"; do right "$spec" || return 1; done
    if ((FAULTY > 0)); then
        printf '#   after the file was mended, %d cannot be read\n' "$FAULTY"
        cat "$CLAIMS_SCRATCH/err"
        return 1
    fi
    rm "$file"
    [[ ! -e $CLAIMS_SCRATCH/damaged ]] || cp -a "$CLAIMS_SCRATCH/damaged" "$file"
    quiet marcot check --no-progress --all --repair || return 1
    for spec in "${SPECS[@]}"; do right "$spec" || return 1; done
}

# Puts the undamaged file back, also over a file that was made in its place meanwhile.
mend() {
    local relative=${1#"$MARCOT_STORE"/}
    cp -a "$GOOD/$relative" "$1"
}

random_damage() {
    local files file what i
    RANDOM=$SEED
    mapfile -t files < <(cd "$GOOD" && find . -type f ! -name lock ! -name '*.lock' ! -name 'snap-*' | sort)
    NOTICED=0
    printf 'seed %d, %d damages among %d files\n' "$SEED" "$DAMAGES" "${#files[@]}"
    for ((i = 0; i < DAMAGES; i++)); do
        file=$MARCOT_STORE/${files[$(pick ${#files[@]})]#./}
        what=$(RANDOM=$((SEED + i)) && damage "$file")
        claim "$what ${file#"$MARCOT_STORE"/}: reads give the right data or an error, check reports it, no more is lost" survives "$file"
        restore
    done
    # If no damage made a read fail, the claims above would prove little.
    claim "some of this damage made reads fail ($NOTICED of $DAMAGES)" test "$NOTICED" -gt 0
}

# --- a pool that cannot be looked into ------------------------------------------------------------

children_in_damaged_pool() {
    local record=$MARCOT_STORE/pools/other/pool
    marcot flatten --no-progress rbd/child
    claim "children in other pools are seen" refuses 16 "marcot: *other/child*" marcot snap unprotect rbd/template@s
    truncate -s 5 "$record"
    claim "a pool with a damaged record may hold children: unprotect is refused, naming it" \
        refuses 5 "marcot: *'other'*" marcot snap unprotect rbd/template@s
    rm "$record"
    claim "a pool without its record may hold children: unprotect is refused, naming it" refuses 5 "marcot: *'other'*" marcot snap unprotect rbd/template@s
    cp -a "$GOOD/pools/other/pool" "$record"
    claim "the snapshot is still protected" refuses 16 "marcot: *protected from removal." marcot snap rm --no-progress rbd/template@s
    claim "other images can be read all the time" holds rbd/bystander "${SUMS[rbd/bystander]}"
    restore
}

# A pool of another store, attached here. Its children are known also while the pool is absent.
children_in_absent_pool() {
    marcot --store "$CLAIMS_SCRATCH/far" pool create far
    marcot pool attach far --backend "$CLAIMS_SCRATCH/far/pools/far"
    marcot flatten --no-progress rbd/child
    marcot flatten --no-progress other/child
    marcot snap purge --no-progress other/child
    marcot clone rbd/template@s far/child
    mv "$CLAIMS_SCRATCH/far" "$CLAIMS_SCRATCH/away"
    claim "a child in an attached pool that is absent is not forgotten" \
        refuses 16 "marcot: *far/child*" marcot snap unprotect rbd/template@s
    mv "$CLAIMS_SCRATCH/away" "$CLAIMS_SCRATCH/far"
    claim "the child can be read when its pool is back" holds far/child "${SUMS[rbd/template@s]}"
    does marcot rm --no-progress far/child
    mv "$CLAIMS_SCRATCH/far" "$CLAIMS_SCRATCH/away"
    claim "after the child's removal, unprotect works, also while its pool is absent" does marcot snap unprotect rbd/template@s
    claim "an absent pool can be detached" does marcot pool detach far
    claim "the detached pool is not listed any more" prints $'other\nrbd' marcot pool ls
    restore
}

# --- a full disk ----------------------------------------------------------------------------------

fill() {
    # A large write leaves the last blocks free: the second file takes them.
    head -c "${DISK_MIB}M" /dev/zero >"$DISK/filler" 2>/dev/null || true
    head -c 1M /dev/zero >"$DISK/filler-2" 2>/dev/null || true
}

full_disk() {
    DISK=$CLAIMS_SCRATCH/disk
    local socket=$CLAIMS_SCRATCH/nbd.sock image state
    mkdir "$DISK"
    truncate -s "${DISK_MIB}M" disk.ext4
    mkfs.ext4 -q -F -m 0 disk.ext4
    mount -o loop disk.ext4 "$DISK"
    export MARCOT_STORE=$DISK/store
    head -c 4M template.raw | marcot import --no-progress - image
    marcot snap create --no-progress image@s
    image=$(content image)
    serve "$socket" --idle-time-s 1
    claim "a write before the disk is full succeeds" io "$(uri "$socket" rbd/image)" "write -P 5 1M 256k" flush
    fill
    claim "a full disk: writes end with ENOSPC" io_fails "No space left" "$(uri "$socket" rbd/image)" "write -P 6 2M 2M" "write -P 6 2M 2M"
    claim "a full disk: what was written before can be read" io -r "$(uri "$socket" rbd/image)" "read -P 5 1M 256k"
    stop_serving "$SERVER" || true
    state=$(marcot ls -l rbd)
    claim "a full disk: an export to it ends with ENOSPC" refuses 28 "marcot: export error: (28) No space left on device" \
        marcot export --no-progress image@s "$DISK/exported.raw"
    claim "a full disk: a failed export leaves no file" test ! -e "$DISK/exported.raw"
    claim "a full disk: an import ends with ENOSPC" refuses 28 "marcot: import failed: (28) No space left on device" marcot import --no-progress template.raw new
    claim "a full disk: a copy ends with ENOSPC" refuses 28 "marcot: copy failed: (28) No space left on device" marcot cp --no-progress image@s new
    claim "a full disk: no image was added" prints "$state" marcot ls -l rbd
    claim "a full disk: the snapshot can be read" holds image@s "$image"
    claim "with room again, the image is read and written" room_again "$socket"
    claim "the pool is in order" sound rbd
    claim "the snapshot is as before" holds image@s "$image"
    umount "$DISK"
    export MARCOT_STORE=$CLAIMS_SCRATCH/store
}

room_again() {
    rm -f "$DISK/filler" "$DISK/filler-2"
    serve "$1" --idle-time-s 1
    io "$(uri "$1" rbd/image)" "read -P 5 1M 256k" "write -P 7 3M 256k" flush "read -P 7 3M 256k" || return 1
    stop_serving "$SERVER"
}

main() {
    prepare "$@"
    random_damage
    children_in_damaged_pool
    children_in_absent_pool
    full_disk
    claims_end
}

main "$@"

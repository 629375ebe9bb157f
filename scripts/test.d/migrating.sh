#!/usr/bin/env bash
# docs/migrating-from-ceph.md: its commands move a pool, with what a real Ceph answered when this was recorded, or
# with a real one.
#
# usage: migrating.sh --marcot BINARY [--conf FILE [--record]]
#
#   --conf    the configuration of a cluster made for this: the pool 'vms' is made, and removed at the end
#   --record  keeps what Ceph answers in fixtures/migrating
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

GUIDE=$HERE/../../docs/migrating-from-ceph.md
RECORDED=$HERE/fixtures/migrating
STREAM=$HERE/../oracle.d/stream
LIVE=no
# The socket of the server of a disk that is taken over, once it is known.
SERVED=/nonexistent

clean_up() {
    claims_unmap_devices
    [[ ! -e $SERVED.pid ]] || kill "$(cat "$SERVED.pid")" 2>/dev/null || true
    if [[ $LIVE == yes ]]; then
        ceph osd pool rm vms vms --yes-i-really-really-mean-it >/dev/null 2>&1 || true
    fi
    claims_clean
}

# blocks LANGUAGE : the blocks of the guide in this language, each ended by a line with a NUL.
blocks() {
    awk -v begin="\`\`\`$1" '$0 == begin { inside = 1; next } inside && /^```$/ { inside = 0; printf "%c", 0; next } inside' "$GUIDE"
}

# A program `rbd` that notes what Ceph's answers, or answers what was noted.
make_rbd() {
    local rbd=$CLAIMS_SCRATCH/bin/rbd
    mkdir "$CLAIMS_SCRATCH/count"
    cat >"$rbd" <<END
#!/usr/bin/env bash
set -uo pipefail
key=\$(printf '%s\n' "\$*" | md5sum | cut -c1-16)
count=$CLAIMS_SCRATCH/count/\$key
echo >>"\$count"
answer=$RECORDED/\$key.\$(wc -l <"\$count")
case $1 in
live) exec /usr/bin/rbd "\$@" ;;
record) /usr/bin/rbd "\$@" | tee >(gzip -9n >"\$answer.gz") && sleep 0.2 ;;
replay)
    [[ -e \$answer.gz ]] || { echo "rbd \$*: was not recorded" >&2 && exit 99; }
    gzip -dc "\$answer.gz"
    ;;
esac
END
    chmod +x "$rbd"
}

# A program `qemu-nbd` that serves what Ceph's image has, where answers are replayed.
make_qemu_nbd() {
    local program=$CLAIMS_SCRATCH/bin/qemu-nbd
    cat >"$program" <<END
#!/usr/bin/env bash
set -euo pipefail
disk=\${*: -1}
[[ $1 == live ]] || rbd export --no-progress "\${disk#rbd:}" - >$CLAIMS_SCRATCH/served
[[ $1 != replay ]] || disk=$CLAIMS_SCRATCH/served
exec /usr/bin/qemu-nbd "\${@:1:\$#-1}" "\$disk"
END
    chmod +x "$program"
}

# on_ceph COMMAND... : prepares what is moved; not where answers are replayed.
on_ceph() {
    [[ $LIVE == no ]] || "$@"
}

# ceph_write IMAGE RECORD... : writes to an image of Ceph.
ceph_write() {
    "$STREAM" make v1 "${@:2}" end | /usr/bin/rbd import-diff --no-progress - "$1"
}

a_pool_on_ceph() {
    ceph osd pool create vms 8 >/dev/null 2>&1
    /usr/bin/rbd pool init vms
    /usr/bin/rbd create --size 4M vms/base
    ceph_write vms/base write:0:1000000:7 write:2097152:65536:8
    /usr/bin/rbd image-meta set vms/base os debian
    /usr/bin/rbd snap create --no-progress vms/base@gold
    /usr/bin/rbd snap protect vms/base@gold
    /usr/bin/rbd clone vms/base@gold vms/vm-1
    # The clone has holes where its parent has data: within an object, and where it was cut off.
    ceph_write vms/vm-1 write:65536:4096:9 zero:131072:65536
    /usr/bin/rbd resize --no-progress --allow-shrink --size 2M vms/vm-1
    /usr/bin/rbd resize --no-progress --size 6M vms/vm-1
    /usr/bin/rbd image-meta set vms/vm-1 owner 'two words'
    /usr/bin/rbd snap create --no-progress vms/vm-1@monday
    /usr/bin/rbd snap protect vms/vm-1@monday
    ceph_write vms/vm-1 write:5242880:8192:10
    /usr/bin/rbd create --size 4M vms/disk
    ceph_write vms/disk write:4096:500000:11
    /usr/bin/rbd snap create --no-progress vms/disk@one
    ceph_write vms/disk write:8192:4096:12 zero:65536:65536
    /usr/bin/rbd create --size 9M vms/scratch
    ceph_write vms/scratch write:4096:700000:15 write:8388608:1048576:16
}

changes_on_ceph() {
    ceph_write vms/vm-1 "write:$1:12288:$2" zero:65536:4096
    ceph_write vms/disk "write:$1:4096:$2"
    /usr/bin/rbd resize --no-progress --allow-shrink --size "$3" vms/disk
}

# step N : runs a part of the guide's session.
step() {
    local session
    mapfile -d '' -t session < <(blocks sh)
    (
        set -euo pipefail
        # shellcheck source=/dev/null # the guide
        . "$CLAIMS_SCRATCH/functions"
        eval "${session[$1]}"
    ) >"$CLAIMS_SCRATCH/output" 2>&1 || { cat "$CLAIMS_SCRATCH/output" && return 1; }
}

json() {
    "$MARCOT" "${@:2}" --format json | jq -r "$1"
}

# has_bytes FILE IMAGE : the image has exactly the bytes of the file.
has_bytes() {
    marcot export --no-progress "$2" - | cmp - "$1"
}

# The program of the image that was taken over writes to it, and to its copy in a file.
program_writes() {
    local at
    for at in 5000 4000000 8700000; do
        printf 'written here' | dd of="$CLAIMS_SCRATCH/expected" bs=1 seek="$at" conv=notrunc status=none
    done
    device=$("$MARCOT" device map vms/scratch)
    for at in 5000 4000000 8700000; do
        printf 'written here' | dd of="$device" bs=1 seek="$at" conv=notrunc,fsync status=none
    done
    "$MARCOT" device unmap "$device"
}

# ended PID : the process with this id ends.
ended() {
    timeout 60 tail --pid="$1" -f /dev/null
}

main() {
    local mode=replay conf="" device server
    while (($#)); do
        case $1 in
        --marcot) MARCOT=$(realpath "$2") && shift ;;
        --conf) conf=$2 mode=live LIVE=yes && shift ;;
        --record) mode=record ;;
        *) printf 'usage: migrating.sh --marcot BINARY [--conf FILE [--record]]\n' >&2 && exit 2 ;;
        esac
        shift
    done
    need_packages jq qemu-utils
    [[ $LIVE == no ]] || need_packages qemu-block-extra
    claims_begin
    SERVED=$CLAIMS_SCRATCH/run/take-over-vms-scratch
    trap clean_up EXIT
    mkdir "$CLAIMS_SCRATCH/bin" "$CLAIMS_SCRATCH/run" "$CLAIMS_SCRATCH/dev"
    ln -s "$MARCOT" "$CLAIMS_SCRATCH/bin/marcot"
    [[ -z $conf ]] || export CEPH_CONF=$conf
    [[ $mode != record ]] || { rm -rf "$RECORDED" && mkdir -p "$RECORDED"; }
    make_rbd "$mode"
    make_qemu_nbd "$mode"
    export PATH=$CLAIMS_SCRATCH/bin:$PATH MARCOT_STORE=$CLAIMS_SCRATCH/store
    export XDG_RUNTIME_DIR=$CLAIMS_SCRATCH/run MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run MARCOT_DEV_DIR=$CLAIMS_SCRATCH/dev
    blocks bash | tr -d '\0' >"$CLAIMS_SCRATCH/functions"
    on_ceph a_pool_on_ceph
    claim 'the first copies are made' step 0
    on_ceph changes_on_ceph 3145728 13 8M
    claim 'what has changed is copied' step 1
    on_ceph changes_on_ceph 1048576 14 6M
    claim 'the rest is copied, and every snapshot compares equal' step 2
    claim 'the clone has its parent' test "$(json .parent.image info vms/vm-1)" = base
    claim 'the clone has its size' test "$(json .size info vms/vm-1)" = 6291456
    claim 'what the clone shares with its parent takes no space' test "$(json '[.images[].used_size] | add' du vms/vm-1)" -lt 1000000
    claim 'snapshots have come along, and those of the steps are gone' test "$(json '[.[].name] | join(" ")' snap ls vms/vm-1)" = monday
    claim 'of the disk too' test "$(json '[.[].name] | join(" ")' snap ls vms/disk)" = one
    claim 'protection has come along' test "$(json '.[0].protected' snap ls vms/vm-1)" = true
    claim 'of the template too' test "$(json '.[0].protected' snap ls vms/base)" = true
    claim 'metadata has come along' test "$(json .os image-meta ls vms/base),$(json .owner image-meta ls vms/vm-1)" = 'debian,two words'
    claim 'nothing else is left' test "$(json 'join(" ")' ls vms)" = 'base disk vm-1'
    claim 'an image is taken over' step 3
    rbd export --no-progress vms/scratch "-" >"$CLAIMS_SCRATCH/expected"
    claim 'it has the bytes of Ceph from the start' has_bytes "$CLAIMS_SCRATCH/expected" vms/scratch
    program_writes
    claim 'it can be written at once' has_bytes "$CLAIMS_SCRATCH/expected" vms/scratch
    server=$(cat "$SERVED.pid")
    claim 'the rest is copied' step 4
    claim 'it needs no server any more' ended "$server"
    claim 'it has what it had' has_bytes "$CLAIMS_SCRATCH/expected" vms/scratch
    claim 'nothing of the take-over is left' not "$MARCOT" migration abort vms/scratch
    claims_end
}

main "$@"

#!/usr/bin/env bash
# Programs of others, as Debian has them, with marcot's `rbd` first on the path: Ceph's own `rbdmap`.
#
# usage: real-programs.sh --marcot BINARY
#
# `scripts/test` runs it with --full, or where it is named: it installs Debian's ceph-common, and uses /dev/rbd, which
# must not be there yet.
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"

clean_up() {
    local device
    umount "$CLAIMS_SCRATCH/mnt" 2>/dev/null || true
    for device in $(rbd device list 2>/dev/null | awk 'NR > 1 { print $NF }'); do
        rbd device unmap -o force "$device" 2>/dev/null || true
    done
    claims_clean
}

fails() {
    ! "$@"
}

no_devices() {
    local found
    found=$(compgen -G '/dev/rbd[0-9]*') || true
    [[ -z $found && -z $(rbd device list) ]] || { printf '# %s\n' "$found" && return 1; }
}

# The script of Ceph's package, which reads a table and calls `rbd device map` and `unmap`.
rbdmap_of_ceph() {
    local rbdmap=/usr/bin/rbdmap device
    export RBDMAPFILE=$CLAIMS_SCRATCH/rbdmap
    printf '%s\n' '# image parameters' $'image\t\tid=admin,keyring=/etc/ceph/ceph.client.admin.keyring' \
        "space/inner@s  id=admin,options='ro,noudev'" >"$RBDMAPFILE"
    claim "rbdmap: it is a script of another program" grep -q "create_cmd_params" "$rbdmap"
    claim "rbdmap: no device is in the way" no_devices
    claim "rbdmap: map succeeds" "$rbdmap" map
    claim "rbdmap: an image has the name that it looks for" test -b /dev/rbd/rbd/image
    claim "rbdmap: so has a snapshot" test -b /dev/rbd/space/inner@s
    claim "rbdmap: its options are passed on" test "$(blockdev --getro /dev/rbd/space/inner@s)" = 1
    claim "rbdmap: what is mapped is left alone" "$rbdmap" map
    device=$(readlink -f /dev/rbd/rbd/image)
    mkfs.ext4 -q -F "$device"
    mount "$device" "$CLAIMS_SCRATCH/mnt"
    echo "by rbdmap" >"$CLAIMS_SCRATCH/mnt/file"
    claim "rbdmap: unmap succeeds" "$rbdmap" unmap
    claim "rbdmap: ... and has unmounted" test ! -e "$CLAIMS_SCRATCH/mnt/file"
    claim "rbdmap: ... and left no device" no_devices
    "$rbdmap" map
    mount -o ro /dev/rbd/rbd/image "$CLAIMS_SCRATCH/mnt"
    claim "rbdmap: what was written is there" grep -q "by rbdmap" "$CLAIMS_SCRATCH/mnt/file"
    umount "$CLAIMS_SCRATCH/mnt"
    claim "rbdmap: unmap-all succeeds" "$rbdmap" unmap-all
    claim "rbdmap: ... and left no device" no_devices
    printf 'nosuch\tid=admin\n' >"$RBDMAPFILE"
    claim "rbdmap: an image that is not there is a failure" fails "$rbdmap" map
}

main() {
    [[ $#:${1-} == 2:--marcot ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    local marcot
    marcot=$(realpath "$2")
    need_packages ceph-common e2fsprogs bsdutils
    claims_begin
    trap clean_up EXIT
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run PATH=$CLAIMS_SCRATCH/bin:$PATH
    mkdir "$CLAIMS_SCRATCH/mnt" "$CLAIMS_SCRATCH/bin"
    ln -s "$marcot" "$CLAIMS_SCRATCH/bin/rbd"
    rbd create --size 64 image
    rbd pool create space
    rbd create --size 8 space/inner
    rbd snap create --no-progress space/inner@s
    rbdmap_of_ceph
    claims_end
}

main "$@"

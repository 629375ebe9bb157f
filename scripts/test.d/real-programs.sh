#!/usr/bin/env bash
# Programs of others, with marcot's `rbd` first on the path: Ceph's own `rbdmap` and libvirt, as Debian has them, and
# the backup program Benji, as PyPI has it.
#
# usage: real-programs.sh --marcot BINARY [rbdmap|libvirt|benji]...
#
# `scripts/test` runs it with --full, or where it is named: it installs packages of Debian, and Benji in the scratch
# directory. It uses /dev/rbd, which must not be there yet.
#
# shellcheck disable=SC2317 # claims call their checks by name
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib/packages.sh
. "$HERE/../lib/packages.sh"
# shellcheck source=scripts/lib/claims.sh
. "$HERE/../lib/claims.sh"
# shellcheck source=scripts/lib/programs/benji.sh
. "$HERE/../lib/programs/benji.sh"
# shellcheck source=scripts/lib/programs/libvirt.sh
. "$HERE/../lib/programs/libvirt.sh"

PROGRAMS=(rbdmap libvirt benji)

clean_up() {
    umount "$CLAIMS_SCRATCH/mnt" 2>/dev/null || true
    libvirt_end
    claims_unmap_devices
    claims_clean
}

no_devices() {
    local found
    found=$(compgen -G '/dev/rbd[0-9]*') || true
    [[ -z $found && -z $(rbd device list) ]] || { printf '# %s\n' "$found" && return 1; }
}

# The script of Ceph's package, which reads a table and calls `rbd device map` and `unmap`.
rbdmap_of_ceph() {
    local rbdmap=/usr/bin/rbdmap device
    rbd create --size 64 image
    rbd pool create space
    rbd create --size 8 space/inner
    rbd snap create --no-progress space/inner@s
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
    claim "rbdmap: an image that is not there is a failure" not "$rbdmap" map
}

main() {
    [[ ${1-} == --marcot && -n ${2-} ]] || { sed -n '/^# usage:/,/^#$/s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
    local program
    MARCOT=$(realpath "$2")
    shift 2
    (($#)) || set -- "${PROGRAMS[@]}"
    need_packages ceph-common e2fsprogs bsdutils jq python3-venv qemu-system-x86 libvirt-daemon libvirt-clients
    claims_begin
    trap clean_up EXIT
    export MARCOT_STORE=$CLAIMS_SCRATCH/store MARCOT_RUN_DIR=$CLAIMS_SCRATCH/run PATH=$CLAIMS_SCRATCH/bin:$PATH
    mkdir "$CLAIMS_SCRATCH/mnt" "$CLAIMS_SCRATCH/bin"
    ln -s "$MARCOT" "$CLAIMS_SCRATCH/bin/rbd"
    for program in "$@"; do
        case $program in
        rbdmap) rbdmap_of_ceph ;;
        libvirt) libvirt_of_debian ;;
        benji) benji_of_pypi ;;
        *) printf 'real-programs.sh: unknown program %s\n' "$program" >&2 && exit 2 ;;
        esac
    done
    claims_end
}

main "$@"

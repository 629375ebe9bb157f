# shellcheck shell=bash
# Benji, a backup program, with marcot's `rbd`: snapshots, `rbd diff` for what has changed, mapped devices.
#
# Sourced by scripts/test.d/real-programs.sh, never run. Benji's own reader of images needs the Python module of
# librbd, so data goes by mapped devices, which its documentation describes for other block devices.

# The release, and packages that it works with on the Python of Debian; it asks for older ones that cannot be built.
BENJI=benji==0.17.0
BENJI_NEEDS=(
    'ruamel.yaml<0.18' 'PrettyTable<1' 'sqlalchemy>=1.4.14,<2' 'setproctitle<2' 'python-dateutil<3' 'alembic<2'
    'argcomplete<2' 'sparsebitfield<1' 'cerberus<2' 'pycryptodome<4' 'pyparsing<3' 'semantic-version<3' 'dateparser<2'
    structlog 'colorama<1' diskcache 'attrs<22' 'setuptools<70' wheel
)

# benji_install : into a directory of its own.
benji_install() {
    local at=$CLAIMS_SCRATCH/benji
    /usr/bin/python3 -m venv "$at" && "$at/bin/pip" install --quiet --use-pep517 "${BENJI_NEEDS[@]}" &&
        "$at/bin/pip" install --quiet --no-deps "$BENJI" || return 1
    mkdir "$at/store"
    cat >"$at/benji.yaml" <<END
configurationVersion: '1'
databaseEngine: sqlite:///$at/benji.sqlite
defaultStorage: store
blockSize: 4194304
storages:
  - name: store
    storageId: 1
    module: file
    configuration:
      path: $at/store
ios:
  - name: file
    module: file
END
    benji database-init
}

# benji WORD... : what it tells of its work is shown where it fails.
benji() {
    local log=$CLAIMS_SCRATCH/benji.log
    "$CLAIMS_SCRATCH/benji/bin/benji" -c "$CLAIMS_SCRATCH/benji/benji.yaml" --no-color "$@" >"$log" 2>&1 ||
        { sed 's/^/# /' "$log" && return 1; }
}

# benji_backup VERSION SNAPSHOT HINTS [OPTION...] : by a mapped snapshot.
benji_backup() {
    local version=$1 snapshot=$2 hints=$3 device status=0
    shift 3
    device=$(rbd device map --read-only "disk@$snapshot") || return 1
    benji backup -u "$version" -s "$snapshot" -r "$hints" "$@" "file:$device" disk || status=$?
    rbd device unmap "$device" && return "$status"
}

# benji_restore VERSION IMAGE : into a mapped image.
benji_restore() {
    local device status=0
    rbd create --size 40 "$2" && device=$(rbd device map "$2") || return 1
    benji restore --force "$1" "file:$device" || status=$?
    rbd device unmap "$device" && return "$status"
}

# benji_bytes_read VERSION
benji_bytes_read() {
    benji -m ls && jq ".versions[] | select(.uid == \"$1\") | .bytes_read" <(grep -v '^ *INFO' "$CLAIMS_SCRATCH/benji.log")
}

# benji_scrubs VERSION : it finds all data as it is in the snapshot.
benji_scrubs() {
    local device status=0
    device=$(rbd device map --read-only disk@b2) || return 1
    benji deep-scrub --source "file:$device" "$1" || status=$?
    rbd device unmap "$device" && return "$status"
}

# same_content SPEC SPEC
same_content() {
    rbd export --no-progress "$1" - | cmp - <(rbd export --no-progress "$2" -)
}

benji_of_pypi() {
    local hints=$CLAIMS_SCRATCH/hints
    claim "benji: it is installed" benji_install
    head -c $((12 << 20)) /dev/urandom >"$CLAIMS_SCRATCH/data"
    truncate -s $((40 << 20)) "$CLAIMS_SCRATCH/data"
    rbd import --no-progress "$CLAIMS_SCRATCH/data" disk
    rbd snap create --no-progress disk@b1
    rbd diff --whole-object disk@b1 --format=json >"$hints"
    claim "benji: it backs up what a first snapshot has" benji_backup v1 b1 "$hints"
    claim "benji: ... and reads only what there is" test "$(benji_bytes_read v1)" = $((12 << 20))
    head -c $((1 << 20)) /dev/urandom |
        dd of="$CLAIMS_SCRATCH/data" bs=1M seek=21 conv=notrunc status=none
    local device
    device=$(rbd device map disk)
    dd if="$CLAIMS_SCRATCH/data" of="$device" bs=1M skip=21 seek=21 count=1 conv=fsync status=none
    rbd device unmap "$device"
    rbd snap create --no-progress disk@b2
    rbd diff --whole-object --from-snap b1 disk@b2 --format=json >"$hints"
    claim "benji: it backs up what has changed" benji_backup v2 b2 "$hints" -f v1
    claim "benji: ... and reads one object" test "$(benji_bytes_read v2)" = $((4 << 20))
    claim "benji: what it has is what the snapshot has" benji_scrubs v2
    claim "benji: it restores the second state" benji_restore v2 back2
    claim "benji: ... as it was" same_content disk@b2 back2
    claim "benji: it restores the first state" benji_restore v1 back1
    claim "benji: ... as it was" same_content disk@b1 back1
    claim "benji: the older snapshot is not needed any more" rbd snap rm --no-progress disk@b1
    claim "benji: no device is left" no_devices
}

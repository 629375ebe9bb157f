# shellcheck shell=bash
# A Ceph cluster on this machine's loopback interface, for tests: one monitor, one OSD that keeps everything in
# memory, and the S3 service. It ends with the script.
#
# Sourced after claims.sh, never run; needs Debian's ceph-common, ceph-mon, ceph-osd and radosgw.
#
# What is left out, because these tests do not need it: a manager (it counts and balances), replicas, disks.

# Much longer than any step takes: only a hang reaches this limit.
CEPH_WAIT_S=300
CEPH_MEMORY_BYTES=$((8 << 30))

CEPH_DIRECTORY=
CEPH_RADOSGW_URL=
CEPH_RADOSGW_PID=
CEPH_RADOSGW_KEY=marcot
CEPH_RADOSGW_SECRET=marcot-secret

# ceph_free_port : prints a port that nobody listens at.
ceph_free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# ceph_run COMMAND... : with a time limit; its output is in the log.
ceph_run() {
    timeout "$CEPH_WAIT_S" "$@" >>"$CEPH_DIRECTORY/log/setup" 2>&1 </dev/null && return 0
    cat "$CEPH_DIRECTORY/log/setup" >&2
    printf 'ceph: %s failed\n' "$*" >&2
    return 1
}

# ceph_configure MONITOR-PORT RADOSGW-PORT : the configuration, and the keys of all.
ceph_configure() {
    local directory=$CEPH_DIRECTORY name
    cat >"$directory/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$1]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $directory/keyring
run dir = $directory/run
admin socket = $directory/run/\$name.\$pid
log file = $directory/log/\$name
mon data = $directory/monitor
osd data = $directory/osd
osd objectstore = memstore
memstore device bytes = $CEPH_MEMORY_BYTES
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon data avail crit = 1
[client]
rgw frontends = beast endpoint=127.0.0.1:$2
CONF
    ceph_run ceph-authtool "$directory/keyring" --create-keyring || return 1
    for name in mon. osd.0 client.admin; do
        ceph_run ceph-authtool "$directory/keyring" --gen-key --name "$name" --cap mon 'allow *' --cap osd 'allow *' ||
            return 1
    done
}

# ceph_begin DIRECTORY : starts the monitor and the OSD. CEPH_CONF is exported.
ceph_begin() {
    local monitor_port osd
    CEPH_DIRECTORY=$1
    mkdir -p "$CEPH_DIRECTORY"/{monitor,osd,run,log} || return 1
    monitor_port=$(ceph_free_port)
    CEPH_RADOSGW_PORT=$(ceph_free_port)
    export CEPH_CONF=$CEPH_DIRECTORY/ceph.conf
    ceph_configure "$monitor_port" "$CEPH_RADOSGW_PORT" || return 1
    ceph_run monmaptool --create --addv a "[v2:127.0.0.1:$monitor_port]" \
        --fsid "$(sed -n 's/^fsid = //p' "$CEPH_CONF")" "$CEPH_DIRECTORY/map" || return 1
    ceph_run ceph-mon --mkfs --id a --monmap "$CEPH_DIRECTORY/map" --keyring "$CEPH_DIRECTORY/keyring" || return 1
    start_expendable ceph-mon --foreground --id a >>"$CEPH_DIRECTORY/log/out" 2>&1
    osd=$(cat /proc/sys/kernel/random/uuid)
    ceph_run ceph osd new "$osd" || return 1
    ceph_run ceph-osd --mkfs --id 0 --osd-uuid "$osd" || return 1
    start_expendable ceph-osd --foreground --id 0 >>"$CEPH_DIRECTORY/log/out" 2>&1
}

# ceph_radosgw : starts the S3 service, and makes a user of it.
ceph_radosgw() {
    local until=$((SECONDS + CEPH_WAIT_S))
    start_expendable radosgw --foreground --name client.admin >>"$CEPH_DIRECTORY/log/out" 2>&1
    CEPH_RADOSGW_PID=$!
    until (exec 3<>"/dev/tcp/127.0.0.1/$CEPH_RADOSGW_PORT") 2>/dev/null; do
        if ((SECONDS > until)) || ! kill -0 "$CEPH_RADOSGW_PID" 2>/dev/null; then
            tail -n 20 "$CEPH_DIRECTORY"/log/* >&2
            printf 'ceph: radosgw did not start\n' >&2
            return 1
        fi
        sleep 0.1
    done
    ceph_run radosgw-admin user create --uid=marcot --display-name=marcot \
        --access-key="$CEPH_RADOSGW_KEY" --secret-key="$CEPH_RADOSGW_SECRET" || return 1
    # shellcheck disable=SC2034 # for whoever sourced this
    CEPH_RADOSGW_URL=http://127.0.0.1:$CEPH_RADOSGW_PORT
}

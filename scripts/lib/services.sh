# shellcheck shell=bash
# Object stores for tests. Each is a server of this machine that ends with the script.
#
# Sourced after packages.sh and claims.sh, never run. Invariants:
#   * a server listens at 127.0.0.1 only, on a port that nobody had before;
#   * what it is made of and what it stores lies in $CLAIMS_SCRATCH; only Debian packages stay;
#   * after service_start, no variable of the caller's own account of a service is left.

SERVICES_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The releases that are tested. docs/bucket-services.md names them too.
MOTO_VERSION=5.2.5
AZURITE_VERSION=3.37.0
# Much longer than any server takes to start: only a hang reaches this limit.
SERVICE_WAIT_S=300

# Of the service that was started last: what marcot's --backend and --endpoint want, and its name in messages.
# shellcheck disable=SC2034 # for whoever sourced this
SERVICE_BUCKET_URL=
SERVICE_ENDPOINT=
SERVICE_NAME=
SERVICE_PID=

# service_start KIND BUCKET : starts a service, and creates the bucket in it. The credentials are exported.
#
#   s3-test   the small server of crates/s3-test, built from here
#   moto      moto's S3 server, a Python package
#   azurite   Microsoft's emulator of Azure's blobs, a package of Node.js
#   radosgw   the S3 service of Ceph, on a cluster of its own
service_start() {
    local kind=$1 bucket=$2 scheme=s3 name
    for name in $(compgen -e | grep -E '^(AWS|AZURE|GOOGLE)_'); do unset "$name"; done
    export AWS_EC2_METADATA_DISABLED=true
    # No proxy lies on the way to this machine.
    export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
    SERVICE_DIRECTORY=$CLAIMS_SCRATCH/services/$kind
    mkdir -p "$SERVICE_DIRECTORY"
    case $kind in
    s3-test) service_s3_test "$bucket" ;;
    moto) service_moto ;;
    azurite) service_azurite && scheme=az ;;
    radosgw) service_radosgw ;;
    *) printf 'services: there is no service %s\n' "$kind" >&2 && return 2 ;;
    esac || return 1
    if [[ $kind != s3-test ]]; then
        need_packages python3
        "$SERVICES_HERE/make-bucket" "$scheme" "$SERVICE_ENDPOINT" "$bucket" || return 1
    fi
    # shellcheck disable=SC2034
    SERVICE_BUCKET_URL=$scheme://$bucket
}

# service_run PATTERN COMMAND... : starts a server. Its URL is what PATTERN (of sed) finds in its output.
service_run() {
    local pattern=$1 until=$((SECONDS + SERVICE_WAIT_S))
    local log=$SERVICE_DIRECTORY/log
    shift
    start_expendable "$@" >"$log" 2>&1
    SERVICE_PID=$!
    until SERVICE_ENDPOINT=$(sed -n "$pattern" "$log") && [[ -n $SERVICE_ENDPOINT ]]; do
        if ((SECONDS > until)) || ! kill -0 "$SERVICE_PID" 2>/dev/null; then
            cat "$log" >&2
            printf 'services: %s did not start\n' "$1" >&2
            return 1
        fi
        sleep 0.1
    done
}

# service_quiet COMMAND... : shows the output only where it fails.
service_quiet() {
    "$@" >"$SERVICE_DIRECTORY/install.log" 2>&1 </dev/null && return 0
    cat "$SERVICE_DIRECTORY/install.log" >&2
    printf 'services: %s failed; is the network there?\n' "$1" >&2
    return 1
}

# --- the server of this repository ---------------------------------------------------------------

service_s3_test() {
    local top=$SERVICES_HERE/../.. target
    need_cargo
    (cd "$top" && cargo build --quiet --bin marcot-s3-test) || return 1
    target=${CARGO_TARGET_DIR:-target}
    [[ $target == /* ]] || target=$top/$target
    service_run 's|^\(http://.*\)|\1|p' "$target/debug/marcot-s3-test" --bucket "$1" || return 1
    service_keys || return 1
    SERVICE_NAME="the server of crates/s3-test"
}

# service_keys : exports the keys that the server prints in the form NAME=value NAME=value.
service_keys() {
    local until=$((SECONDS + SERVICE_WAIT_S)) words word
    until words=$(grep '^AWS_' "$SERVICE_DIRECTORY/log"); do
        ((SECONDS <= until)) || return 1
        sleep 0.1
    done
    for word in $words; do export "${word?}"; done
}

# --- moto -----------------------------------------------------------------------------------------

service_moto() {
    local venv=$SERVICE_DIRECTORY/venv
    need_packages python3-venv
    /usr/bin/python3 -m venv "$venv" || return 1
    # Of what `moto[server]` brings, S3 needs these only.
    service_quiet "$venv/bin/pip" install --disable-pip-version-check "moto[s3]==$MOTO_VERSION" flask flask-cors ||
        return 1
    service_run 's|.*Running on \(http://127.0.0.1:[0-9]*\).*|\1|p' "$venv/bin/moto_server" -H 127.0.0.1 -p 0 || return 1
    # It takes any key.
    export AWS_ACCESS_KEY_ID=moto AWS_SECRET_ACCESS_KEY=moto-secret
    SERVICE_NAME="moto $MOTO_VERSION"
}

# --- Azurite --------------------------------------------------------------------------------------

service_azurite() {
    local node_modules=$SERVICE_DIRECTORY/node_modules
    # Debian's npm and the Node.js of others exclude each other. Both have the command.
    command -v npm >/dev/null || need_packages nodejs npm
    service_quiet npm install --no-audit --no-fund --no-save --prefix "$SERVICE_DIRECTORY" "azurite@$AZURITE_VERSION" ||
        return 1
    service_run 's|.*listens on \(http://127.0.0.1:[0-9]*\)|\1|p' "$node_modules/.bin/azurite-blob" \
        --blobPort 0 --inMemoryPersistence --disableTelemetry || return 1
    # Every Azurite has this account and this key; Microsoft publishes them.
    export AZURE_STORAGE_ACCOUNT=devstoreaccount1
    export AZURE_STORAGE_KEY=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==
    SERVICE_ENDPOINT=$SERVICE_ENDPOINT/$AZURE_STORAGE_ACCOUNT
    SERVICE_NAME="Azurite $AZURITE_VERSION"
}

# --- radosgw --------------------------------------------------------------------------------------

service_radosgw() {
    # shellcheck source=scripts/lib/ceph.sh
    . "$SERVICES_HERE/ceph.sh"
    need_packages ceph-common ceph-mon ceph-osd radosgw
    ceph_begin "$SERVICE_DIRECTORY" || return 1
    ceph_radosgw || return 1
    SERVICE_ENDPOINT=$CEPH_RADOSGW_URL
    SERVICE_PID=$CEPH_RADOSGW_PID
    export AWS_ACCESS_KEY_ID=$CEPH_RADOSGW_KEY AWS_SECRET_ACCESS_KEY=$CEPH_RADOSGW_SECRET
    # shellcheck disable=SC2034
    SERVICE_NAME="radosgw $(radosgw --version | awk '{print $3}')"
}

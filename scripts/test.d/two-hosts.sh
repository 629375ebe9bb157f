#!/usr/bin/env bash
# Two hosts that use one pool in a bucket, with the real program: each host is a network namespace with a host name, a
# store and a directory of its own, and the service is a third one. An owner that is stopped or cut off is replaced, and
# comes back; many processes clone, flatten, remove and collect on both hosts at once.
#
# usage: two-hosts.sh --marcot BINARY
#
# environment: MARCOT_TEST_TAKEOVERS (how many of each kind, default 6), MARCOT_TEST_CLONES (how many processes clone,
# default 16), MARCOT_TEST_SEED (default: random, printed), KEEP=yes (keep a failed run's files)
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
TAKEOVERS=${MARCOT_TEST_TAKEOVERS:-6}
DEVICES=$((TAKEOVERS / 2))
CLONES=${MARCOT_TEST_CLONES:-16}
# Addresses that exist only in the namespaces.
NETWORK=10.77.0
SERVICE_PORT=9000
BUCKET=bucket
HOSTS=(one two)
# The process that keeps each host's namespaces, by the host's name. They end with it, and all their links.
declare -A KEEPER

# new_host NAME : its namespaces. Nothing of them is seen outside.
new_host() {
    local tenths=0
    start_owned unshare --net --mount --uts -- \
        sh -c "hostname $1 && ip link set lo up && touch $CLAIMS_SCRATCH/$1.up && exec sleep infinity" 2>"$CLAIMS_SCRATCH/$1.err"
    KEEPER[$1]=$!
    until [[ -e $CLAIMS_SCRATCH/$1.up ]]; do
        if ((tenths++ >= SERVER_WAIT_TENTHS)) || ! kill -0 "${KEEPER[$1]}" 2>/dev/null; then
            no_namespaces "$CLAIMS_SCRATCH/$1.err"
        fi
        sleep 0.1
    done
}

# no_namespaces FILE : the file says why.
no_namespaces() {
    printf 'this test needs a machine where root can make network namespaces, pairs of veth links and bridges, and here that fails: %s\n' \
        "$(tr '\n' ' ' <"$1")" >&2
    claim "network namespaces can be made" false
    claims_end
}

# on NAME COMMAND... : runs a command on a host.
on() {
    nsenter --target "${KEEPER[$1]}" --net --mount --uts -- "${@:2}"
}

# Devices outlive the process that mapped them.
clean_up() {
    local name record
    trap '' INT TERM HUP
    for name in "${!KEEPER[@]}"; do
        for record in "$CLAIMS_SCRATCH/$name"/run/*.json; do
            [[ -e $record ]] || continue
            kill -CONT "$(jq .pid "$record")" 2>/dev/null || true
            on "$name" env MARCOT_STORE="$CLAIMS_SCRATCH/here/store" MARCOT_RUN_DIR="$CLAIMS_SCRATCH/here/run" \
                "$MARCOT" device unmap -o force "$(jq -r .device "$record")" 2>/dev/null || true
        done
    done
    claims_clean
}

# plug NAME NUMBER : a link from a host to the service's host, whose end there has the host's name.
plug() {
    on service ip link add "$1" type veth peer name eth0 netns "${KEEPER[$1]}" &&
        on service ip link set "$1" master switch up &&
        on "$1" ip address add "$NETWORK.$2/24" dev eth0 &&
        on "$1" ip link set eth0 up
}

network() {
    local number=11 name
    on service ip link add switch type bridge &&
        on service ip address add "$NETWORK.1/24" dev switch &&
        on service ip link set switch up || return
    for name in "${HOSTS[@]}"; do plug "$name" $((number++)) || return; done
}

# Every host sees a directory of its own at the same path.
directories() {
    local name
    mkdir "$CLAIMS_SCRATCH/here"
    for name in "${HOSTS[@]}"; do
        mkdir "$CLAIMS_SCRATCH/$name"
        mkdir "$CLAIMS_SCRATCH/$name/home"
        printf '[default]\naws_access_key_id = AKMARCOT\naws_secret_access_key = secret-of-marcot\n' >"$CLAIMS_SCRATCH/$name/credentials"
        chmod 600 "$CLAIMS_SCRATCH/$name/credentials"
        on "$name" mount --bind "$CLAIMS_SCRATCH/$name" "$CLAIMS_SCRATCH/here"
    done
}

start_service() {
    local tenths=0
    start_owned nsenter --target "${KEEPER[service]}" --net -- "$SERVICE" --address "$NETWORK.1" --port "$SERVICE_PORT" \
        --bucket "$BUCKET" >"$CLAIMS_SCRATCH/service.out" 2>"$CLAIMS_SCRATCH/service.err"
    until grep -q "^http" "$CLAIMS_SCRATCH/service.out"; do
        if ((tenths++ >= SERVER_WAIT_TENTHS)); then
            cat "$CLAIMS_SCRATCH/service.err" >&2
            printf 'the service did not start\n' >&2
            exit 1
        fi
        sleep 0.1
    done
}

# hosts_do WHAT COUNT : see scripts/lib/two_hosts.
hosts_do() {
    local hosts=() name status=0
    for name in "${HOSTS[@]}"; do hosts+=(--host "$name=${KEEPER[$name]}"); done
    start_owned env PYTHONPATH="$HERE/../lib" PYTHONDONTWRITEBYTECODE=1 python3 -m two_hosts "$1" --count "$2" --seed "$SEED" \
        --marcot "$MARCOT" --directory "$CLAIMS_SCRATCH" --endpoint "http://$NETWORK.1:$SERVICE_PORT" --bucket "$BUCKET" \
        --credentials "$CLAIMS_SCRATCH/here/credentials" --service "${KEEPER[service]}" "${hosts[@]}"
    local pid=$!
    wait "$pid" || status=$?
    disown_ended "$pid"
    return "$status"
}

are_two() {
    local one two
    one=$(on one hostname) two=$(on two hostname)
    [[ $one == one && $two == two ]] && on one touch "$CLAIMS_SCRATCH/here/mark" && ! on two test -e "$CLAIMS_SCRATCH/here/mark"
}

main() {
    need_packages iproute2 util-linux python3 jq
    SERVICE=$(dirname "$(realpath "${2:-.}")")/marcot-s3-test
    commands_begin "$@"
    [[ -x $SERVICE ]] || { printf '%s is missing: cargo build\n' "$SERVICE" >&2 && exit 2; }
    trap clean_up EXIT
    for name in service "${HOSTS[@]}"; do new_host "$name"; done
    network 2>"$CLAIMS_SCRATCH/network.err" || no_namespaces "$CLAIMS_SCRATCH/network.err"
    directories
    claim "two hosts have names and files of their own" are_two
    start_service
    printf '# seed %s\n' "$SEED"
    claim "$TAKEOVERS times an owner is stopped and replaced, and comes back" hosts_do stopped "$TAKEOVERS"
    claim "$TAKEOVERS times an owner is cut off and replaced, and comes back" hosts_do cut "$TAKEOVERS"
    claim "$DEVICES times an owner whose device is mapped is stopped or cut off and replaced, and comes back" hosts_do mapped "$DEVICES"
    claim "$CLONES processes clone on both hosts while others unprotect, flatten, remove and collect" hosts_do clones "$CLONES"
    claims_end
}

main "$@"

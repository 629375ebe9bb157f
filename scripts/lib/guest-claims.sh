# shellcheck shell=dash
# Sourced by jobs inside a guest as /data/claims.sh: the guest's half of
# claims.sh, for busybox sh. A job that ends with claims_end returns 1 when any
# claim failed.

claims_broken=0

# claim TEXT COMMAND...
claim() {
    claim_text=$1
    shift
    if "$@"; then
        echo "ok - $claim_text"
    else
        echo "not ok - $claim_text"
        claims_broken=$((claims_broken + 1))
    fi
}

claims_end() {
    [ "$claims_broken" -eq 0 ]
    exit
}

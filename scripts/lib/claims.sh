# shellcheck shell=bash
# Code shared by all test scripts: a scratch directory, owned processes, claims.
#
# Sourced, never run. Invariants:
#   * a claim prints one line, `ok - ...` or `not ok - ...`, and a script that
#     ends with claims_end exits 1 when any claim failed;
#   * whatever way the script ends, the processes it gave to `own` are ended and
#     waited for, by their ids. File systems mounted in its scratch directory are
#     unmounted, and then the directory is removed (it is kept when a claim failed
#     and KEEP=yes). Nothing is removed under a file system that is still mounted.

CLAIMS_BROKEN=0
CLAIMS_OWNED=()
# Those of them that are killed.
CLAIMS_EXPENDABLE=()
CLAIMS_SCRATCH=

# claims_begin : makes $CLAIMS_SCRATCH, and sets the traps that clean up at the end.
claims_begin() {
    CLAIMS_SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/marcot-test.XXXXXX")
    trap claims_clean EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# own PID : ends that process with the script.
own() {
    CLAIMS_OWNED+=("$1")
}

# start_owned COMMAND... : runs it in the background. It ends with the script, even
# when the script is killed with SIGKILL. Its id is in $!.
start_owned() {
    setpriv --pdeathsig TERM "$@" &
    own "$!"
}

# start_expendable COMMAND... : as start_owned, for a server that has nothing to put in order: it is killed.
start_expendable() {
    setpriv --pdeathsig KILL "$@" &
    own "$!"
    CLAIMS_EXPENDABLE+=("$!")
}

# disown_ended PID : the caller has waited for it; another process may have its id now.
disown_ended() {
    local pid kept=()
    for pid in "${CLAIMS_OWNED[@]}"; do
        [[ $pid == "$1" ]] || kept+=("$pid")
    done
    CLAIMS_OWNED=("${kept[@]}")
}

# claims_end_owned : ends the owned processes. They may use mounted file systems, so this comes first.
claims_end_owned() {
    local pid
    for pid in "${CLAIMS_OWNED[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${CLAIMS_EXPENDABLE[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${CLAIMS_OWNED[@]}"; do wait "$pid" 2>/dev/null || true; done
    CLAIMS_OWNED=()
}

# claims_unmount UNDER : unmounts everything under that path, the last mount first.
claims_unmount() {
    local at
    while read -r at; do
        umount "$at" 2>/dev/null || umount -l "$at" 2>/dev/null || true
    done < <(awk -v under="$1" 'index($2, under) == 1 { print $2 }' /proc/mounts | tac)
}

claims_clean() {
    # A second signal must not stop this half-way.
    trap '' INT TERM HUP
    claims_end_owned
    claims_unmount "$CLAIMS_SCRATCH/"
    if ((CLAIMS_BROKEN)) && [[ ${KEEP:-no} == yes ]]; then
        printf 'kept: %s\n' "$CLAIMS_SCRATCH" >&2
    else
        rm -rf --one-file-system "$CLAIMS_SCRATCH"
    fi
}

# claims_unmap_devices : unmaps all devices of $MARCOT with force, so that an interrupted script leaves none.
claims_unmap_devices() {
    local device
    for device in $("$MARCOT" device list 2>/dev/null | awk 'NR > 1 { print $NF }'); do
        "$MARCOT" device unmap -o force "$device" 2>/dev/null || true
    done
}

# not COMMAND... : it is refused. What it says is kept for refusal_says.
not() {
    ! "$@" 2>"$CLAIMS_SCRATCH/refusal"
}

# refusal_says TEXT : the last refusal contains TEXT.
refusal_says() {
    grep -qF -- "$1" "$CLAIMS_SCRATCH/refusal" || { cat "$CLAIMS_SCRATCH/refusal" && return 1; }
}

# claim TEXT COMMAND... : the claim holds when the command succeeds.
claim() {
    local text=$1
    shift
    if "$@"; then
        printf 'ok - %s\n' "$text"
    else
        printf 'not ok - %s\n' "$text"
        CLAIMS_BROKEN=$((CLAIMS_BROKEN + 1))
    fi
}

# claims_end : the script's last line.
claims_end() {
    ((CLAIMS_BROKEN == 0)) || exit 1
    exit 0
}

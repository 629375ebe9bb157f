#!/usr/bin/env bash
# What other users leave in the directory `children` of a public pool, to fill its disk or to lead whoever
# removes it elsewhere: it is told with its user, removed, and nothing else is touched.
#
# usage: strangers.sh --marcot BINARY
#
# Runs as root, and as an unprivileged user that needs no entry in any list of users.
#
# environment: KEEP=yes (keep a failed run's files)
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

# Nobody on this machine.
USER_ID=64001
# Directories in each other: their path is 50 times as long as the system takes.
DEPTH=1000
# Enough for marcot itself, and for no descriptor or frame a directory.
DESCRIPTORS=48
STACK_KIB=512
# How often everything is removed while the user goes on.
ROUNDS=20

# What is first on root's path need not be there for others.
AS_USER=(setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups env PATH=/usr/bin:/bin)

as_user() {
    "${AS_USER[@]}" "$@"
}

# dig DIRECTORY : directories in each other, as the user.
dig() {
    as_user python3 -c 'import os, sys
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    open(b"file\xff", "w").close()
    os.mkdir("d" * 200)
    os.chdir("d" * 200)' "$1" "$DEPTH"
}

# tight ARGUMENT... : the command with few descriptors and a small stack.
tight() (
    ulimit -n "$DESCRIPTORS" -s "$STACK_KIB"
    timeout "$COMMAND_TIMEOUT_S" "$MARCOT" "$@"
)

# collects : what gc removes is told on standard error.
collects() {
    tight gc --no-progress golden >/dev/null 2>&1
}

# empty : nothing lies in children.
empty() {
    local left
    left=$(ls -A "$CHILDREN")
    [[ -z $left ]] || { printf '#   left: %s\n' "$left" && return 1; }
}

# says ARGUMENT... -- PATTERN... : the command succeeds, or finds something, and prints lines like these.
says() {
    local arguments=() out status=0 pattern
    while [[ $1 != -- ]]; do arguments+=("$1") && shift; done
    shift
    out=$(tight "${arguments[@]}" 2>&1) || status=$?
    for pattern; do
        # shellcheck disable=SC2053 # a pattern is meant
        [[ $out == *$pattern* ]] || { printf '#   status %d, without "%s": %s\n' "$status" "$pattern" "$out" && return 1; }
    done
}

leave() {
    dig "$CHILDREN/deep"
    as_user touch "$CHILDREN/"$'bytes\xff\xfe\x1b[2J'
    as_user mkdir -p "$CHILDREN/tree/"$'\xfd'"/in"
    as_user ln -s "$KEPT" "$CHILDREN/tree/link"
    as_user mkfifo "$CHILDREN/tree/fifo"
}

told_and_removed() {
    leave
    claim "check tells of each with its user, on one line" says check --no-progress golden -- \
        'children/deep (a directory) was left by user 64001' \
        'children/bytes\\xff\\xfe\\u{1b}\[2J (0 bytes) was left by user 64001' \
        'children/tree (a directory) was left by user 64001'
    claim "a repair removes all, with few descriptors and a small stack" says check --repair --no-progress golden -- 'all repaired'
    claim "nothing is left" empty
    leave
    claim "gc removes all" collects
    claim "nothing is left by gc" empty
    claim "what a link in it led to stays" test -e "$KEPT/file"
}

# Another file system in a tree: it is not entered, and what stays is told of its user until it goes.
mounted() {
    as_user mkdir -p "$CHILDREN/tree/a/b"
    mount -t tmpfs none "$CHILDREN/tree/a/b"
    touch "$CHILDREN/tree/a/b/kept"
    claim "what cannot be removed is told" says check --repair --no-progress golden -- \
        'was left by user 64001' 'cannot be removed' 'busy'
    local at
    at=$(awk -v under="$CHILDREN/" 'index($2, under) == 1 { print $2 }' /proc/mounts)
    claim "a file system that is mounted in a tree is not entered" test -e "$at/kept"
    claim "what stays is told of the user who left it" says check --no-progress golden -- \
        'children/.swept.64001.' 'was left by user 64001'
    umount "$at"
    claim "and goes when it can" says check --repair --no-progress golden -- 'all repaired'
    claim "nothing is left after that" empty
    as_user mkdir "$CHILDREN/top"
    mount -t tmpfs none "$CHILDREN/top"
    claim "nor one that is mounted right there" says check --repair --no-progress golden -- \
        'children/top cannot be looked at' 'another file system'
    umount "$CHILDREN/top"
    claim "and what it was mounted on goes then" collects
}

# While the user makes directories and links take each other's place.
raced() {
    install -m 755 "$HERE/../lib/exchange.py" exchange.py
    start_owned "${AS_USER[@]}" python3 "$CLAIMS_SCRATCH/exchange.py" "$CHILDREN" "$KEPT"
    local exchanger=$! round
    for ((round = 0; round < ROUNDS; round++)); do
        collects || { claim "gc works while somebody is at work there" false && break; }
    done
    kill "$exchanger"
    wait "$exchanger" 2>/dev/null || true
    disown_ended "$exchanger"
    claim "nothing outside was touched in $ROUNDS rounds" test -e "$KEPT/file" -a -e "$KEPT/in/file"
    claim "and what is left goes" collects
    claim "nothing is left after the race" empty
}

main() {
    need_packages python3
    commands_begin "$@"
    marcot pool create golden --readable-by all
    CHILDREN=$MARCOT_STORE/pools/golden/children
    # It is the user's own, so that only marcot keeps it.
    KEPT=$CLAIMS_SCRATCH/kept
    install -d -o "$USER_ID" -m 777 "$KEPT" "$KEPT/in"
    as_user touch "$KEPT/file" "$KEPT/in/file"
    told_and_removed
    mounted
    raced
    claims_end
}

main "$@"

#!/usr/bin/env bash
# Other users can put files into the directory `children` of a public pool: to fill its disk, or with links
# that lead out of the directory. marcot reports such files with their user, removes them, and touches
# nothing else.
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

# A user that does not exist on this machine.
USER_ID=64001
# Depth of a tree of directories. Its longest path is 50 times as long as the system accepts.
DEPTH=1000
# Enough for marcot itself, but not for a descriptor or a stack frame for each directory.
DESCRIPTORS=48
STACK_KIB=512
# How often gc runs while the user makes new files.
ROUNDS=20

# Other users may not be able to use the first directories of root's PATH.
AS_USER=(setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups env PATH=/usr/bin:/bin)

as_user() {
    "${AS_USER[@]}" "$@"
}

# dig DIRECTORY : makes a deep tree of directories, as the user.
dig() {
    as_user python3 -c 'import os, sys
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    open(b"file\xff", "w").close()
    os.mkdir("d" * 200)
    os.chdir("d" * 200)' "$1" "$DEPTH"
}

# tight ARGUMENT... : runs marcot with few descriptors and a small stack.
tight() (
    ulimit -n "$DESCRIPTORS" -s "$STACK_KIB"
    timeout "$COMMAND_TIMEOUT_S" "$MARCOT" "$@"
)

# collects : gc succeeds. It reports on standard error what it removes.
collects() {
    tight gc --no-progress golden >/dev/null 2>&1
}

# empty : the directory `children` is empty.
empty() {
    local left
    left=$(ls -A "$CHILDREN")
    [[ -z $left ]] || { printf '#   left: %s\n' "$left" && return 1; }
}

# says ARGUMENT... -- PATTERN... : the output of marcot matches all of the patterns, whatever its exit status.
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

reported_and_removed() {
    leave
    claim "check reports each file with its user, on one line" says check --no-progress golden -- \
        'children/deep (a directory) was left by user 64001' \
        'children/bytes\\xff\\xfe\\u{1b}\[2J (0 bytes) was left by user 64001' \
        'children/tree (a directory) was left by user 64001'
    claim "a repair removes all of them, with few descriptors and a small stack" says check --repair --no-progress golden -- 'all repaired'
    claim "nothing is left by the repair" empty
    leave
    claim "gc removes all of them" collects
    claim "nothing is left by gc" empty
    claim "the target of a link is not removed" test -e "$KEPT/file"
}

# A file system mounted in the tree is not entered. What stays is reported with its user until it is removed.
mounted() {
    as_user mkdir -p "$CHILDREN/tree/a/b"
    mount -t tmpfs none "$CHILDREN/tree/a/b"
    touch "$CHILDREN/tree/a/b/kept"
    claim "check reports what cannot be removed" says check --repair --no-progress golden -- \
        'was left by user 64001' 'cannot be removed' 'busy'
    local at
    at=$(awk -v under="$CHILDREN/" 'index($2, under) == 1 { print $2 }' /proc/mounts)
    claim "a file system mounted in a tree is not entered" test -e "$at/kept"
    claim "check reports what stays with the user who left it" says check --no-progress golden -- \
        'children/.swept.64001.' 'was left by user 64001'
    umount "$at"
    claim "it is removed as soon as it can be" says check --repair --no-progress golden -- 'all repaired'
    claim "nothing is left after that" empty
    as_user mkdir "$CHILDREN/top"
    mount -t tmpfs none "$CHILDREN/top"
    claim "a file system mounted directly in the directory is not entered" says check --repair --no-progress golden -- \
        'children/top cannot be looked at' 'another file system'
    umount "$CHILDREN/top"
    claim "its mount point is removed after it is unmounted" collects
}

# gc runs while the user exchanges directories and links with each other.
raced() {
    install -m 755 "$HERE/../lib/exchange.py" exchange.py
    start_owned "${AS_USER[@]}" python3 "$CLAIMS_SCRATCH/exchange.py" "$CHILDREN" "$KEPT"
    local exchanger=$! round
    for ((round = 0; round < ROUNDS; round++)); do
        collects || { claim "gc works while the user changes the directory" false && break; }
    done
    kill "$exchanger"
    wait "$exchanger" 2>/dev/null || true
    disown_ended "$exchanger"
    claim "gc removed nothing outside of the directory in $ROUNDS rounds" test -e "$KEPT/file" -a -e "$KEPT/in/file"
    claim "gc works after the race" collects
    claim "nothing is left after the race" empty
}

main() {
    need_packages python3
    commands_begin "$@"
    marcot pool create golden --readable-by all
    CHILDREN=$MARCOT_STORE/pools/golden/children
    # The user owns it, so permissions do not protect it. It stays only if marcot does not follow the links.
    KEPT=$CLAIMS_SCRATCH/kept
    install -d -o "$USER_ID" -m 777 "$KEPT" "$KEPT/in"
    as_user touch "$KEPT/file" "$KEPT/in/file"
    reported_and_removed
    mounted
    raced
    claims_end
}

main "$@"

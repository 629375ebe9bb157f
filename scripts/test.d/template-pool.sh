#!/usr/bin/env bash
# A template pool: other users than its owner read it and clone its snapshots. They change nothing in it, and
# the owner's commands know about all of their children.
#
# usage: template-pool.sh --marcot BINARY
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
SIZE_MIB=16

as_user() {
    timeout "$COMMAND_TIMEOUT_S" "${AS_USER[@]}" "$@"
}

user() {
    as_user "$MARCOT" "$@"
}

user_content() (
    set -o pipefail
    user export --no-progress "$1" - | sha256sum
)

user_holds() {
    local sum
    sum=$(user_content "$1") || return 1
    [[ $sum == "$2" ]]
}

prepare() {
    need_packages qemu-utils libnbd-bin
    commands_begin "$@"
    TEMPLATES=$MARCOT_STORE/pools/templates
    USER_HOME=$CLAIMS_SCRATCH/user
    SOCKET=$USER_HOME/nbd.sock
    AS_USER=(setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups
        env HOME="$USER_HOME" MARCOT_STORE="$USER_HOME/store")
    install -d -o "$USER_ID" -g "$USER_ID" -m 755 "$USER_HOME"
    # The first 8 MiB and the last 64 KiB are data, and the rest is a hole.
    head -c 8M /dev/urandom >template.raw
    truncate -s "${SIZE_MIB}M" template.raw
    head -c 64K /dev/urandom | dd of=template.raw bs=64K seek=$((SIZE_MIB * 16 - 1)) conv=notrunc status=none
    SUM=$(sha256sum <template.raw)
    marcot pool create templates --readable-by all
    marcot import --no-progress template.raw templates/debian
    marcot snap create --no-progress templates/debian@12
    marcot snap protect templates/debian@12
    marcot snap create --no-progress templates/debian@loose
    marcot pool create private
    marcot create private/secret --size 1M
    user pool create own
}

# The state of all that only the pool's owner writes. Other users leave markers in `children`.
template_state() {
    tree_state "$TEMPLATES" | grep -v ' \./children\|^\./children'
}

# --- reading ------------------------------------------------------------------------------------

reading() {
    claim "a socket in a directory of others is refused, and the message says what to do" \
        refuses 13 "marcot: cannot listen on *(give a path *): (13) Permission denied" \
        user serve --socket "$CLAIMS_SCRATCH/no.sock"
    claim "the user attaches the pool by its directory" does user pool attach templates --backend "$TEMPLATES"
    claim "it is listed as read-only" says "templates  read-only" user pool ls -l
    claim "the user lists its images" prints debian user ls templates
    claim "ls -l shows image and snapshots" says "debian@12" user ls -l templates
    claim "info shows the size" says "size $SIZE_MIB MiB" user info templates/debian
    claim "info of the snapshot shows that it is protected" says "protected: True" user info templates/debian@12
    claim "snap ls shows the snapshots" says "12" user snap ls templates/debian
    claim "du works" says "debian@12" user du templates/debian
    claim "diff works" says "data" user diff templates/debian@12
    claim "status works" says "Watchers: none" user status templates/debian
    claim "children works and lists none" prints "" user children templates/debian@12
    claim "check works" says "all is well" user check --no-progress templates
    claim "the user exports the snapshot" user_holds templates/debian@12 "$SUM"
    claim "the user exports the image itself" user_holds templates/debian "$SUM"
    claim "a copy of the snapshot in the user's pool is equal" copied
    user_serves --idle-time-s 1
    claim "the served snapshot is the template" served_equal templates/debian@12
    claim "the served image is the template" served_equal templates/debian
    claim "the served image cannot be written" io_fails "ermission denied" "$(uri "$SOCKET" templates/debian)" "write 0 4k"
    claim "nothing in the pool has changed by all this" same_state
}

copied() {
    does user cp --no-progress templates/debian@12 own/copy && user_holds own/copy "$SUM" &&
        does user rm --no-progress own/copy
}

served_equal() {
    timeout "$COMMAND_TIMEOUT_S" nbdcopy "$(uri "$SOCKET" "$1")" - | cmp - template.raw
}

same_state() {
    diff <(printf '%s\n' "$STATE") <(template_state)
}

# --- what is refused ----------------------------------------------------------------------------

# refused WHAT ARGUMENT... : the user's marcot refuses it, since the pool is read-only, and changes nothing.
refused() {
    local what=$1
    shift
    claim "$what is refused, and the message names the pool" refuses 13,30 "marcot: *templates*" user "$@"
    claim "$what leaves no trace" same_state
}

changing() {
    refused "import" import --no-progress template.raw templates/new
    refused "create" create templates/new --size 1M
    refused "rm" rm --no-progress templates/debian
    refused "rename" rename templates/debian templates/other
    refused "resize" resize --no-progress templates/debian --size 1G
    refused "shrinking" resize --no-progress templates/debian --size 1M --allow-shrink
    refused "snap create" snap create --no-progress templates/debian@new
    refused "snap rm" snap rm --no-progress templates/debian@loose
    refused "snap rm --force" snap rm --no-progress --force templates/debian@12
    refused "snap purge" snap purge --no-progress templates/debian
    refused "snap rename" snap rename templates/debian@loose templates/debian@tight
    refused "snap rollback" snap rollback --no-progress templates/debian@12
    refused "snap protect" snap protect templates/debian@loose
    refused "snap unprotect" snap unprotect templates/debian@12
    refused "cp into the pool" cp --no-progress templates/debian@12 templates/new
    refused "clone into the pool" clone templates/debian@12 templates/new
    refused "flatten" flatten --no-progress templates/debian
    refused "bench --io-type write" bench --io-type write --io-total 1M templates/debian
    refused "namespace create" namespace create templates/space
    refused "pool init" pool init templates
    refused "gc" gc --no-progress templates
    claim "removing the pool is refused: it belongs to another store" \
        refuses 13,22,30 "marcot: *templates*" user pool rm templates
    claim "clone of an unprotected snapshot is refused" \
        refuses 22 "marcot: clone error: (22) Invalid argument" user clone templates/debian@loose own/no
    claim "clone format 2 of an unprotected snapshot is refused: the owner could not know" \
        refuses 22 "marcot: clone error: (22) Invalid argument" \
        user clone --rbd-default-clone-format 2 templates/debian@loose own/no
    claim "no refused clone is left" prints "" user ls own
    claim "nothing in the pool has changed by all this" same_state
}

# --- children -----------------------------------------------------------------------------------

markers() {
    find "$TEMPLATES/children" -type f | wc -l
}

clones() {
    claim "the user clones the protected snapshot into a pool of their own" \
        does user clone templates/debian@12 own/vm
    claim "the clone is the template" user_holds own/vm "$SUM"
    claim "info names the parent" says "parent: templates/debian@12" user info own/vm
    claim "the user writes into the clone" io "$(uri "$SOCKET" own/vm)" \
        "write -P 7 1M 300k" "write -P 8 12M 4k" flush "read -P 7 1M 300k" "read -P 8 12M 4k"
    claim "the template is as it was" same_state
    claim "its snapshot is what was imported, byte for byte" holds templates/debian@12 "$SUM"
    claim "the owner sees the child of the other user, and whose it is" \
        prints "own/vm (of user $USER_ID)" marcot children templates/debian@12
    claim "other users see that there is a child, but not its name" names_hidden
    claim "unprotect is refused, naming it" refuses 16 "marcot: *own/vm*" marcot snap unprotect templates/debian@12
    claim "rm of the snapshot is refused" \
        refuses 16 "marcot: snapshot '12' is protected from removal." marcot snap rm --no-progress templates/debian@12
    claim "the user cannot detach the pool as long as there is a child" refuses 16 "marcot: *own*" user pool detach templates
    claim "the user removes the child" eventually does user rm --no-progress own/vm
    claim "its marker is removed with it" test "$(markers)" -eq 0
    claim "unprotect works now" does marcot snap unprotect templates/debian@12
    claim "clone is refused now" refuses 22 "marcot: *must be protected*" user clone templates/debian@12 own/late
    marcot snap protect templates/debian@12
}

names_hidden() {
    local stranger=(setpriv --reuid=64002 --regid=64002 --clear-groups)
    test -n "$("${stranger[@]}" ls "$TEMPLATES/children")" &&
        ! "${stranger[@]}" grep -qa -e own -e vm -r "$TEMPLATES/children" 2>/dev/null
}

# A server closes an image a moment after its last client has gone, so a command may have to be repeated.
eventually() {
    local tries
    for ((tries = 0; tries < 240; tries++)); do
        "$@" >eventually.out 2>&1 && return 0
        sleep 0.25
    done
    cat eventually.out
    return 1
}

# Flatten makes a clone and its snapshots independent of the parent, and so the clones of those snapshots.
generations() {
    user clone templates/debian@12 own/first
    user snap create --no-progress own/first@s
    user snap protect own/first@s
    user clone own/first@s own/second
    user flatten --no-progress own/first
    claim "a flattened clone with a snapshot is no child any more" prints "" marcot children templates/debian@12
    claim "its marker is gone" test "$(markers)" -eq 0
    claim "the template can be unprotected after that" does marcot snap unprotect templates/debian@12
    claim "the snapshot has no parent" without_parent own/first@s
    claim "the snapshot has the template's content" user_holds own/first@s "$SUM"
    claim "a clone of the snapshot has the template's content" user_holds own/second "$SUM"
    marcot snap protect templates/debian@12
    user flatten --no-progress own/second
    claim "the grandchild can be flattened, and then its parent's snapshot removed" user_gone_generations
    claim "the grandchild keeps its content" user_holds own/second "$SUM"
}

without_parent() {
    does user info "$1" && ! grep -q parent: "$CLAIMS_SCRATCH/out"
}

user_gone_generations() {
    does user snap unprotect own/first@s && does user snap rm --no-progress own/first@s &&
        test "$(markers)" -eq 0
}

flattened() {
    user clone templates/debian@12 own/kept
    claim "flatten works though the parent's pool is read-only" does user flatten --no-progress own/kept
    claim "flatten removes the marker" test "$(markers)" -eq 0
    user clone templates/debian@12 own/renamed-later
    user rename own/renamed-later own/renamed
    claim "a child that was renamed is still seen" \
        refuses 16 "marcot: *own/renamed*" marcot snap unprotect templates/debian@12
    user rm --no-progress own/renamed
}

# All users can write to the directory `children`, so a user may put anything there.
hostile_markers() {
    local pool_id image_id key
    user clone templates/debian@12 own/pattern
    key=$(basename "$(find "$TEMPLATES/children" -type f)")
    user rm --no-progress own/pattern
    IFS=. read -r pool_id image_id _ <<<"$key"
    key=$pool_id.$image_id.1.00000000000000aa.00000000000000bb
    as_user mkfifo "$TEMPLATES/children/$key"
    claim "a FIFO in the place of a marker does not stop the owner's commands" \
        refuses 16 "marcot: *00000000000000bb*" marcot snap unprotect templates/debian@12
    rm "$TEMPLATES/children/$key"
    as_user ln -s /etc/passwd "$TEMPLATES/children/$key"
    claim "a symbolic link in the place of a marker does not stop them" refuses 16 "marcot: *00000000000000bb*" marcot snap unprotect templates/debian@12
    rm "$TEMPLATES/children/$key"
    as_user truncate -s 1T "$TEMPLATES/children/$key"
    claim "a marker of a terabyte does not stop them" refuses 16 "marcot: *00000000000000bb*" marcot snap unprotect templates/debian@12
    rm "$TEMPLATES/children/$key"
    claim "a file without numbers in its name is no marker" stranger_ignored
    user clone templates/debian@12 own/pattern
    as_user cp "$TEMPLATES/children/"*.* "$TEMPLATES/children/$key"
    user rm --no-progress own/pattern
    claim "a forged marker keeps the snapshot protected" \
        refuses 16 "marcot: *own/pattern*" marcot snap unprotect templates/debian@12
    claim "children --all shows the id at the end of its name" \
        says '"id":"00000000000000bb"' marcot children --all --format json templates/debian@12
    claim "the marker's file shows who left it" test "$(stat -c %u "$TEMPLATES/children/"*.00000000000000bb)" = "$USER_ID"
    rm "$TEMPLATES/children/"*.00000000000000bb
    claim "unprotect works after the owner has removed that file" does marcot snap unprotect templates/debian@12
    marcot snap protect templates/debian@12
}

stranger_ignored() {
    as_user touch "$TEMPLATES/children/hello"
    does marcot snap unprotect templates/debian@12 && does marcot snap protect templates/debian@12 &&
        rm "$TEMPLATES/children/hello"
}

# --- reading does not hinder the owner ----------------------------------------------------------

reader_and_owner() {
    claim "the user's server ends in good order" stop_serving "$SERVER"
    user_serves --idle-time-s 600
    claim "a user reads image and snapshot" readers
    claim "while the user has them open, the owner makes a snapshot" \
        does marcot snap create --no-progress templates/debian@later
    claim "while the user has them open, the owner writes to the image" does marcot bench --io-type write --io-total 64K --io-size 4K templates/debian
    claim "while the user has them open, the owner rolls the image back" does marcot snap rollback --no-progress templates/debian@12
    claim "a snapshot that a user reads can be removed" removes_read
    claim "the user gets no wrong data from the removed snapshot" right_or_error templates/debian@later
    claim "the image has its content" holds templates/debian "$SUM"
    claim "a user can take none of the owner's locks" locks_refused
    claim "the user's server ends in good order" stop_serving "$SERVER"
    user_serves --idle-time-s 1
}

readers() {
    io -r "$(uri "$SOCKET" templates/debian)" "read 0 4k" && io -r "$(uri "$SOCKET" templates/debian@12)" "read 0 4k"
}

removes_read() {
    io -r "$(uri "$SOCKET" templates/debian@later)" "read 0 64k" &&
        does marcot snap rm --no-progress templates/debian@later
}

right_or_error() {
    rm -f read.raw
    timeout "$COMMAND_TIMEOUT_S" nbdcopy "$(uri "$SOCKET" "$1")" read.raw 2>read.err || return 0
    cmp read.raw template.raw
}

locks_refused() {
    local lock
    while read -r lock; do
        if as_user flock --nonblock --shared "$lock" true 2>/dev/null; then
            printf '#   locked %s\n' "$lock"
            return 1
        fi
    done < <(find "$MARCOT_STORE" -name lock -o -name '*.lock' -o -name 'snap-*')
}

# --- no marker ----------------------------------------------------------------------------------

untracked() {
    chmod 755 "$TEMPLATES/children"
    claim "when no marker can be left, clone is refused with the reason" \
        refuses 13 "marcot: no marker can be left in pool 'templates'*--untracked*" user clone templates/debian@12 own/unseen
    claim "the refused clone leaves nothing in the user's pool" nothing_of unseen
    claim "clone works with --untracked" does user clone --untracked templates/debian@12 own/unseen
    claim "the untracked clone is the template" user_holds own/unseen "$SUM"
    user snap create --no-progress own/unseen@s
    claim "the user writes into it" io "$(uri "$SOCKET" own/unseen)" "write -P 9 2M 64k" flush
    claim "the owner does not see the untracked clone and can unprotect" eventually does marcot snap unprotect templates/debian@12
    marcot snap protect templates/debian@12
    chmod 1777 "$TEMPLATES/children"
}

nothing_of() {
    ! user ls own | grep -qx "$1" && [[ -z $(find "$USER_HOME/store/pools/own/children" -type f) ]]
}

# --- a parent that is gone ----------------------------------------------------------------------

user_serves() {
    serve_with "${AS_USER[@]}" "$MARCOT" serve --socket "$SOCKET" "$@"
}

stop_user_server() {
    stop_serving "$SERVER"
}

gone() {
    user clone templates/debian@12 own/orphan
    # The clone gets blocks of its own: in one page of the map next to the parent's, in another one alone.
    io "$(uri "$SOCKET" own/orphan)" "write -P 5 1M 64k" "write -P 6 10M 64k" "write -P 4 100 50" flush
    claim "the user's server ends in good order" stop_user_server
    mv "$TEMPLATES" "$TEMPLATES.away"
    claim "info of a child without its parent says that the parent is missing" says_gone own/orphan
    claim "ls works without the parent" says orphan user ls own
    claim "ls -l works without the parent" says orphan user ls -l own
    claim "children of the clone works without the parent" prints "" user children own/orphan
    claim "export fails without the parent" refuses 5 "marcot: export error: (5) Input/output error" user export --no-progress own/orphan "$USER_HOME/orphan.raw"
    claim "the failed export leaves no file" test ! -e "$USER_HOME/orphan.raw"
    claim "flatten fails without the parent" refuses 5 "marcot: flatten error: (5) Input/output error" user flatten --no-progress own/orphan
    claim "check fails without the parent" refuses 5 "marcot: *" user check --no-progress own
    claim "check says that the parent is out of reach" grep -q "own/orphan: its parent templates/debian@12 is out of reach" "$CLAIMS_SCRATCH/out"
    user_serves --idle-time-s 1
    orphan_serves "$(uri "$SOCKET" own/orphan)"
    claim "ls of the owner's pool fails, and the message names the pool" refuses 2 "marcot: *templates*" user ls templates
    claim "the user's server ends in good order" stop_user_server
    mv "$TEMPLATES.away" "$TEMPLATES"
    claim "when the parent is back, the child is whole again" whole_again
}

says_gone() {
    does user info "$1" && grep -q '^.parent: templates/debian@12 (missing' "$CLAIMS_SCRATCH/out" && return 0
    commands_show user info "$1"
    return 1
}

orphan_serves() {
    local at=$1
    claim "without the parent: the blocks that the clone wrote are served" io "$at" "read -P 5 1M 64k" "read -P 6 10M 64k"
    claim "without the parent: a read of the parent's blocks fails" io_fails "Input/output error" "$at" "read 4M 4k"
    claim "without the parent: so does a read of them in a map page where the clone wrote" io_fails "Input/output error" "$at" "read 1984k 4k"
    claim "without the parent: a read of both kinds of blocks fails" io_fails "Input/output error" "$at" "read 1088k 8k"
    claim "without the parent: a write to a part of the parent's block fails" io_fails "Input/output error" "$at" "write 4000k 100"
    claim "without the parent: whole blocks can be written in a map page where the clone wrote" io "$at" \
        "write -P 3 1536k 64k" flush "read -P 3 1536k 64k" "read -P 5 1M 64k"
    claim "without the parent: a write in a page of the parent fails, since its entries are not known" io_fails "Input/output error" "$at" "write 5M 64k"
}

whole_again() {
    local expected
    cp template.raw orphan.expected
    patch orphan.expected 4 100 50
    patch orphan.expected 5 $((1024 * 1024)) 65536
    patch orphan.expected 6 $((10240 * 1024)) 65536
    patch orphan.expected 3 $((1536 * 1024)) 65536
    expected=$(sha256sum <orphan.expected)
    user_holds own/orphan "$expected"
}

# patch FILE BYTE OFFSET COUNT : writes COUNT times the byte at OFFSET.
patch() {
    head -c "$4" /dev/zero | tr '\0' "\\$2" | dd of="$1" oflag=seek_bytes seek="$3" conv=notrunc status=none
}

# The owner removes the template. Only the untracked child loses its parent.
removed() {
    user flatten --no-progress own/orphan
    marcot snap unprotect templates/debian@12
    marcot snap purge --no-progress templates/debian
    claim "the owner removes the template" does marcot rm --no-progress templates/debian
    does marcot gc --no-progress templates
    claim "flattened children keep their content: one" user_holds own/kept "$SUM"
    claim "flattened children keep their content: two" user_holds own/first "$SUM"
    claim "flattened children keep their content: three" user_holds own/second "$SUM"
    claim "flattened children keep their content: the one whose parent was gone for a while" whole_again
    claim "the untracked child says that its parent is gone" says_gone own/unseen
    user_serves --idle-time-s 1
    claim "the blocks that the untracked child wrote are served" io "$(uri "$SOCKET" own/unseen)" "read -P 9 2M 64k"
    claim "a read of its other blocks fails and gives no wrong data" io_fails "Input/output error" "$(uri "$SOCKET" own/unseen)" "read 4M 4k"
    claim "the user's server ends in good order" stop_user_server
    claim "the user can remove the untracked child" removes_unseen
    claim "the rest of the user's pool checks clean" says "all is well" user check --no-progress own
}

removes_unseen() {
    does user snap purge --no-progress own/unseen && does user rm --no-progress own/unseen
}

# --- pools for their owner alone ----------------------------------------------------------------

private_pool() {
    claim "a pool made without the option cannot be attached by the user" \
        refuses 13 "marcot: *private*Permission denied*" user pool attach private --backend "$MARCOT_STORE/pools/private"
    claim "it cannot be read through the owner's store" \
        refuses 13 "marcot: *private*" user --store "$MARCOT_STORE" ls private
    claim "its images cannot be read through the owner's store" refuses 13 "marcot: *private*" user --store "$MARCOT_STORE" info private/secret
    claim "through the owner's store the template pool can be read" \
        says debian user --store "$MARCOT_STORE" ls templates
    claim "through the owner's store the template pool cannot be written" refuses 13,30 "marcot: *" user --store "$MARCOT_STORE" create templates/new --size 1M
    claim "the user cannot make a pool in the owner's store" refuses 13,30 "marcot: *" user --store "$MARCOT_STORE" pool create mine
    claim "the attached pools of the user are as before" prints $'own\nrbd\ntemplates' user pool ls
}

main() {
    prepare "$@"
    STATE=$(template_state)
    reading
    changing
    private_pool
    clones
    generations
    flattened
    hostile_markers
    reader_and_owner
    untracked
    gone
    removed
    claims_end
}

main "$@"

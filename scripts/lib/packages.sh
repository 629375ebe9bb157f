# shellcheck shell=bash
# Debian packages and tools that the tests need.
#
# Sourced, never run. Invariants:
#   * if all packages are present, only dpkg-query is started, and no network is used;
#   * the package lists are refreshed at most once per shell, and only when
#     something is missing;
#   * two test runs never install at the same time, and they wait for an administrator
#     who installs;
#   * no installed package is removed or downgraded to make room for another.

PACKAGES_LISTS_FRESH=${PACKAGES_LISTS_FRESH:-no}

# The lock of test runs, taken by `flock`. apt locks this file in another way, and does not see it.
PACKAGES_LOCK=/var/lib/dpkg/lock-frontend
PACKAGES_LOCK_WAIT_S=1800

packages_fail() {
    printf 'packages: %s\n' "$*" >&2
    return 1
}

# package_present PACKAGE
package_present() {
    local status
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) || return 1
    [[ $status == installed ]]
}

packages_apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 \
        -o DPkg::Lock::Timeout="$PACKAGES_LOCK_WAIT_S" "$@" </dev/null
}

# Old lists are often good enough, so a failure is only reported here.
packages_refresh() {
    [[ $PACKAGES_LISTS_FRESH == no ]] || return 0
    PACKAGES_LISTS_FRESH=yes
    ((EUID == 0)) || return 0
    packages_apt update >&2 ||
        printf 'packages: apt-get update failed; going on with the lists at hand\n' >&2
}

# packages_install PACKAGE... : from the releases this machine already follows.
packages_install() {
    packages_apt install --yes --no-install-recommends --no-remove "$@"
}

# packages_install_backports PACKAGE...
#
# A machine whose qemu-utils came from backports, and which does not list
# backports any more, cannot install the stable qemu-system-x86: the two share
# a version. The backports release is read through lists of our own, so the
# machine's choice of sources stays as it was.
packages_install_backports() (
    . /etc/os-release
    local codename=${VERSION_CODENAME:?} site private
    local release="$codename-backports"
    site=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="$codename" '$1 == codename { print $2; exit }')
    [[ -n $site ]] || packages_fail "no source for $codename in the apt sources" || return 1
    private=$(mktemp -d)
    trap 'rm -rf "$private"' EXIT
    mkdir -p "$private/lists/partial"
    chmod 755 "$private"
    {
        [[ ! -f /etc/apt/sources.list ]] || cat /etc/apt/sources.list
        printf 'deb [signed-by=%s] %s %s main\n' \
            /usr/share/keyrings/debian-archive-keyring.gpg "$site" "$release"
    } >"$private/sources.list"
    local options=(
        -o "Dir::Etc::sourcelist=$private/sources.list"
        -o "Dir::State::lists=$private/lists"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    )
    packages_apt "${options[@]}" update || return 1
    packages_apt "${options[@]}" install --yes --no-install-recommends --no-remove \
        --target-release "$release" "$@"
)

# packages_missing PACKAGE... : those of them that are not installed, a line each.
packages_missing() {
    local package
    for package in "$@"; do
        package_present "$package" || printf '%s\n' "$package"
    done
}

# packages_alone COMMAND... : while no other test run changes packages or lists.
packages_alone() {
    local lock status=0
    if ((EUID != 0)) || [[ ! -e $PACKAGES_LOCK ]]; then
        "$@"
        return
    fi
    exec {lock}<"$PACKAGES_LOCK"
    if flock -w "$PACKAGES_LOCK_WAIT_S" "$lock"; then
        # A service that is installed must not inherit the lock.
        "$@" {lock}<&- || status=$?
    else
        packages_fail "another test run has been installing for too long" || status=1
    fi
    exec {lock}<&-
    return "$status"
}

# need_packages PACKAGE... : installs what is missing, in one transaction.
need_packages() {
    local missing=()
    mapfile -t missing < <(packages_missing "$@")
    ((${#missing[@]} == 0)) || packages_alone packages_install_missing "$@"
}

# packages_install_missing PACKAGE... : installs them in the way that works on this machine.
packages_install_missing() {
    local missing=() log
    # Another run may have installed them while this one waited.
    mapfile -t missing < <(packages_missing "$@")
    ((${#missing[@]})) || return 0
    local remedy="as root: apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || packages_fail "no apt-get here; install: ${missing[*]}" || return 1
    ((EUID == 0)) || packages_fail "missing: ${missing[*]}; $remedy" || return 1

    packages_refresh
    log=$(mktemp)
    if packages_install "${missing[@]}" >"$log" 2>&1 ||
        packages_install_backports "${missing[@]}" >>"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    cat "$log" >&2
    rm -f "$log"
    packages_fail "could not install: ${missing[*]}; is the network there? $remedy"
}

# need_cargo : the Rust tool chain comes from the user, never from here.
need_cargo() {
    command -v cargo >/dev/null && return 0
    if [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
        return 0
    fi
    packages_fail "cargo not found; install Rust from https://rustup.rs, or put cargo on PATH"
}

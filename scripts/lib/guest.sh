# shellcheck shell=bash
# Virtual machines for the tests: a kernel, a disk that boots, an initramfs.
#
# Sourced, never run. Invariants:
#   * nothing needs root or a mount, so nothing can be left mounted; only the
#     installation of missing packages asks for root;
#   * the host's boot is never touched: kernel and busybox are unpacked from
#     their Debian packages into the cache;
#   * guests are emulated (tcg): a test means the same with and without KVM;
#   * a guest ends with its function: by itself, by its timeout, or because the
#     shell that runs the function was told to end.

GUEST_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GUEST_CACHE=$(realpath -m "${MARCOT_CACHE:-$GUEST_LIB/../../target/guest-cache}")

# shellcheck source=scripts/lib/packages.sh
. "$GUEST_LIB/packages.sh"

# Drivers a guest needs to find its disk and its job.
GUEST_MODULES_BOOT=(virtio_pci virtio_blk virtio_rng qemu_fw_cfg)
# Drivers under test, and those the tests lean on.
GUEST_MODULES_TEST=(nbd xfs loop fuse virtio_net)

GUEST_KERNEL_ARGUMENTS="console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"

# A boot takes seconds, and a job a minute or two. A busy host with two cores may need ten times that.
GUEST_TIMEOUT_S=900
GUEST_MEMORY_MIB=256
# The initramfs lives in memory, with every program under test in it.
GUEST_KERNEL_MEMORY_MIB=512

# Statuses of guest_run that are not the job's own.
GUEST_STATUS_TIMEOUT=124
GUEST_STATUS_NO_EXIT=125

# Where the template's partitions lie: 1 MiB for the boot sector and alignment,
# a FAT16 one for the kernel, the rest for ext4.
GUEST_TEMPLATE_MIB=${GUEST_TEMPLATE_MIB:-512}
GUEST_BOOT_START_MIB=1
GUEST_BOOT_MIB=40
GUEST_ROOT_START_MIB=$((GUEST_BOOT_START_MIB + GUEST_BOOT_MIB))

guest_fail() {
    printf 'guest: %s\n' "$*" >&2
    return 1
}

# Functions here are called inside conditions, where `set -e` has no effect. So each
# step that may fail handles its failure.

# guest_unpack PACKAGE DIR : the files of a Debian package, without installing it.
guest_unpack() (
    local package=$1 target=$2 work
    work=$(mktemp -d) && cd "$work" || return 1
    trap 'rm -rf "$work"' EXIT
    apt-get -qq -o APT::Sandbox::User=root download "$package" >&2 ||
        guest_fail "could not download $package" || return 1
    dpkg -x ./*.deb "$target"
)

# The metapackage names the current kernel package by depending on it.
guest_kernel_package() {
    apt-cache depends linux-image-cloud-amd64 |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}

guest_kernel_build() {
    local target=$1 package version
    package=$(guest_kernel_package)
    [[ -n $package ]] || guest_fail "apt knows no linux-image-cloud-amd64" || return 1
    version=${package#linux-image-}
    guest_unpack "$package" "$target/tree" &&
        mkdir -p "$target/lib" &&
        mv "$(guest_modules_in "$target/tree")" "$target/lib/" &&
        mv "$target/tree/boot/vmlinuz-$version" "$target/vmlinuz" &&
        rm -rf "$target/tree" || return 1
    # Busybox loads plain modules only.
    find "$target/lib/modules" -name '*.ko.xz' -exec xz -d {} + &&
        depmod -b "$target" "$version" &&
        printf '%s\n' "$version" >"$target/version"
}

# Releases with a merged /usr ship modules under it.
guest_modules_in() {
    find "$1/lib/modules" "$1/usr/lib/modules" -maxdepth 0 2>/dev/null | head -n 1
}

guest_busybox_build() {
    local found
    guest_unpack busybox-static "$1/tree" || return 1
    found=$(find "$1/tree" -type f -perm -u+x -name busybox)
    mv "$found" "$1/busybox" && rm -rf "$1/tree"
}

# guest_cached DIR BUILDER : DIR as BUILDER makes it, completely or not at all.
guest_cached() {
    [[ ! -d $1 ]] || return 0
    packages_alone packages_refresh
    guest_cached_build "$@"
}

guest_cached_build() (
    local target=$1 builder=$2 lock
    mkdir -p "$(dirname "$target")" || return 1
    exec {lock}>"$target.lock"
    flock "$lock" || return 1
    [[ ! -d $target ]] || return 0
    rm -rf "$target.part"
    mkdir "$target.part" && "$builder" "$target.part" && mv "$target.part" "$target" && return 0
    rm -rf "$target.part"
    guest_fail "could not make $target"
)

# guest_kernel DIR
#
# Puts vmlinuz, lib/modules/VERSION and a file `version` in DIR; a DIR already
# filled is left alone. The functions below use $GUEST_CACHE/kernel.
guest_kernel() {
    need_packages kmod xz-utils || return 1
    guest_cached "$1" guest_kernel_build
}

guest_busybox() {
    guest_cached "$GUEST_CACHE/busybox" guest_busybox_build
}

# guest_copy_modules ROOT MODULE... : copies the modules, and all modules that they need.
guest_copy_modules() {
    local root=$1 kernel=$GUEST_CACHE/kernel version listing verb path relative
    shift
    version=$(<"$kernel/version")
    listing=$(modprobe --dirname "$kernel" --set-version "$version" --show-depends --all "$@") || return 1
    while read -r verb path _; do
        [[ $verb == insmod ]] || continue
        relative=${path#"$kernel"/}
        install -D -m 644 "$path" "$root/$relative" || return 1
    done <<<"$listing"
    cp "$kernel/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} \
        "$root/lib/modules/$version/" || return 1
    depmod -b "$root" "$version"
}

# guest_userland ROOT : busybox, its links, and process 1.
guest_userland() {
    local root=$1 busybox=$GUEST_CACHE/busybox/busybox
    mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,tmp,root,etc,var} || return 1
    ln -s ../run "$root/var/run" && ln -s ../run/lock "$root/var/lock" || return 1
    install -m 755 "$busybox" "$root/bin/busybox" || return 1
    (cd "$root/bin" && "$busybox" --list | grep -vx busybox |
        xargs -I{} "$busybox" ln -s busybox {}) || return 1
    install -m 755 "$GUEST_LIB/guest-init" "$root/sbin/init" || return 1
    printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
}

# guest_pack ROOT OUT : an initramfs; compressed when OUT ends in .gz.
#
# Big binaries are better left uncompressed: the guest has to decompress them, and
# it is emulated.
guest_pack() {
    local compress=(cat)
    [[ $2 != *.gz ]] || compress=(gzip -1)
    (cd "$1" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet) |
        "${compress[@]}" >"$2"
}

# guest_libraries PROGRAM : paths of the shared objects it loads, loader included.
guest_libraries() {
    local listing
    listing=$(ldd "$1" 2>/dev/null) || return 0
    sed -nE 's/^.* => (\/[^ ]+) .*$/\1/p; s/^[[:space:]]*(\/[^ ]+) .*$/\1/p' <<<"$listing" | sort -u
}

# guest_add_file ROOT SOURCE[:DESTINATION]
guest_add_file() {
    local root=$1 source=${2%%:*} destination=/usr/local/bin/ mode=644 library
    [[ -f $source ]] || guest_fail "no such file: $source" || return 1
    [[ ! -x $source ]] || mode=755
    [[ $mode == 755 ]] || destination=/data/
    destination+=$(basename "$source")
    [[ $2 != *:* ]] || destination=${2#*:}
    install -D -m "$mode" "$source" "$root$destination" || return 1
    [[ $mode == 755 ]] || return 0
    while read -r library; do
        [[ -z $library || -e $root$library ]] || install -D -m 755 "$library" "$root$library" || return 1
    done < <(guest_libraries "$source")
}

# guest_initramfs OUT [SOURCE[:DESTINATION]...]
#
# An initramfs for guest_kernel_run: busybox, the drivers of both module lists,
# and the given files. A program goes to /usr/local/bin together with the
# libraries ldd names, any other file to /data, unless DESTINATION says where.
guest_initramfs() (
    local out=$1 root file
    shift
    guest_kernel "$GUEST_CACHE/kernel" && guest_busybox && need_packages cpio || return 1
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    chmod 755 "$root"
    guest_userland "$root" || return 1
    ln -s sbin/init "$root/init"
    guest_copy_modules "$root" "${GUEST_MODULES_BOOT[@]}" "${GUEST_MODULES_TEST[@]}" || return 1
    for file in "$@"; do guest_add_file "$root" "$file" || return 1; done
    guest_pack "$root" "$out"
)

# The partition the BIOS starts from: boot loader, kernel, first initramfs.
guest_template_boot() {
    local work=$1
    truncate -s "${GUEST_BOOT_MIB}M" "$work/boot.fat"
    mkfs.fat -F 16 -n BOOT -h $((GUEST_BOOT_START_MIB * 2048)) "$work/boot.fat" >/dev/null || return 1
    {
        printf 'DEFAULT linux\nPROMPT 0\nLABEL linux\n'
        printf '  KERNEL vmlinuz\n  INITRD initrd\n  APPEND root=/dev/vda2 %s\n' "$GUEST_KERNEL_ARGUMENTS"
    } >"$work/syslinux.cfg"
    mcopy -i "$work/boot.fat" "$GUEST_CACHE/kernel/vmlinuz" "$work/initrd" "$work/syslinux.cfg" :: || return 1
    syslinux --install "$work/boot.fat"
}

guest_template_root() {
    local work=$1 mib=$((GUEST_TEMPLATE_MIB - GUEST_ROOT_START_MIB))
    mkdir -p "$work/root/own"
    printf 'made by marcot tests\n' >"$work/root/etc/template"
    truncate -s "${mib}M" "$work/root.ext4"
    mke2fs -q -t ext4 -L guest-root -E root_owner=0:0 -d "$work/root" "$work/root.ext4"
}

guest_template_assemble() {
    local work=$1 disk=$1/disk.raw
    truncate -s "${GUEST_TEMPLATE_MIB}M" "$disk"
    sfdisk --quiet "$disk" <<TABLE || return 1
label: dos
start=${GUEST_BOOT_START_MIB}MiB, size=${GUEST_BOOT_MIB}MiB, type=e, bootable
start=${GUEST_ROOT_START_MIB}MiB, type=83
TABLE
    # The first 440 bytes are code; the partition table follows them.
    dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" bs=440 count=1 conv=notrunc status=none || return 1
    dd if="$work/boot.fat" of="$disk" bs=1M seek="$GUEST_BOOT_START_MIB" conv=notrunc,sparse status=none || return 1
    dd if="$work/root.ext4" of="$disk" bs=1M seek="$GUEST_ROOT_START_MIB" conv=notrunc,sparse status=none
}

# guest_template OUT.raw
#
# A disk of GUEST_TEMPLATE_MIB that boots by itself under a PC BIOS: a FAT
# partition with syslinux and the kernel, an ext4 root with busybox. OUT appears
# completely or not at all.
guest_template() (
    local out=$1 work
    guest_kernel "$GUEST_CACHE/kernel" && guest_busybox || return 1
    need_packages syslinux syslinux-common mtools dosfstools e2fsprogs fdisk cpio || return 1
    work=$(mktemp -d "$(dirname "$out")/template.XXXXXX") || return 1
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/root"
    chmod 755 "$work/root"
    guest_userland "$work/root" || return 1
    guest_copy_modules "$work/root" "${GUEST_MODULES_BOOT[@]}" || return 1
    ln -s sbin/init "$work/root/init"
    guest_pack "$work/root" "$work/initrd.gz" || return 1
    mv "$work/initrd.gz" "$work/initrd"
    rm "$work/root/init"
    guest_template_boot "$work" && guest_template_root "$work" && guest_template_assemble "$work" || return 1
    mv "$work/disk.raw" "$out"
)

# guest_drive ARG : `-drive` options of a disk.
#
# ARG is a path, an NBD URI (both raw), or begins with file= or driver= and is
# then taken as it stands. A comma in a path or URI has to be doubled for QEMU.
guest_drive() {
    case $1 in
    file=* | driver=*) printf '%s' "$1" ;;
    *) printf 'file=%s,format=raw,discard=unmap' "${1//,/,,}" ;;
    esac
}

# guest_exit_status LOG : the job's status, from the console.
guest_exit_status() {
    local status
    status=$(tr -d '\r' <"$1" | sed -n 's/^GUEST-EXIT \([0-9]\{1,3\}\)$/\1/p' | tail -n 1)
    [[ -n $status ]] && printf '%s' "$status"
}

# guest_nameless VARIABLE FD_VARIABLE : the path of an empty file that goes away
# with the last process that has it open, and the descriptor that keeps it.
guest_nameless() {
    local -n nameless_path=$1 nameless_fd=$2
    local named
    named=$(mktemp "$GUEST_CACHE/nameless.XXXXXX") || return 1
    exec {nameless_fd}<>"$named" || return 1
    rm -f "$named"
    # shellcheck disable=SC2034 # set for the caller
    nameless_path=/dev/fd/$nameless_fd
}

# guest_qemu TIMEOUT_S LOG QEMU-ARGUMENT... : runs a machine to its end.
#
# The machine runs in the background, so that a trap of the calling shell runs at
# once. The machine is ended when that shell dies.
guest_qemu() {
    local timeout_s=$1 log=$2 status=0
    shift 2
    # QEMU may fail before it opens the log. Then the log of an older guest must not count.
    : >"$log"
    setpriv --pdeathsig TERM timeout --kill-after=5 "$timeout_s" \
        qemu-system-x86_64 -no-user-config -nodefaults \
        -machine pc -accel tcg -cpu max,la57=off -smp 1 -display none -no-reboot \
        -device virtio-rng-pci -serial "file:$log" "$@" </dev/null &
    wait "$!" || status=$?
    ((status != 124 && status != 137)) || guest_fail "no end after $timeout_s s" ||
        return "$GUEST_STATUS_TIMEOUT"
    status=$(guest_exit_status "$log") || guest_fail "ended without a status" ||
        return "$GUEST_STATUS_NO_EXIT"
    return "$status"
}

# guest_logged TIMEOUT_S LOG QEMU-ARGUMENT... : guest_qemu; with an empty LOG
# the console is shown on stdout when the guest has ended.
guest_logged() {
    local timeout_s=$1 log=$2 log_fd='' status=0
    shift 2
    [[ -n $log ]] || guest_nameless log log_fd || return 1
    guest_qemu "$timeout_s" "$log" "$@" || status=$?
    if [[ -n $log_fd ]]; then
        cat "$log"
        exec {log_fd}>&-
    fi
    return "$status"
}

# guest_options ARGUMENT... : reads the options both runners share into the
# caller's variables: disk job memory_mib timeout_s log initramfs scratch_mib extra.
guest_options() {
    while (($#)); do
        case $1 in
        --disk) disk=$2 ;;
        --job) job=$2 ;;
        --mem) memory_mib=$2 ;;
        --timeout) timeout_s=$2 ;;
        --log) log=$2 ;;
        --initramfs) initramfs=$2 ;;
        --scratch) scratch_mib=$2 ;;
        --)
            shift
            extra=("$@")
            return 0
            ;;
        *) guest_fail "unknown option $1" || return 2 ;;
        esac
        shift 2
    done
}

# guest_run --disk ARG --job FILE [--mem MIB] [--timeout S] [--log FILE] [-- QEMU-ARGUMENT...]
#
# Boots the disk (see guest_drive) and runs the script FILE in it. The console
# goes to --log, or to stdout at the end. Returns the job's status; 124 when the
# guest did not end in time, 125 when it ended without a status.
guest_run() {
    local disk='' job='' log='' memory_mib=$GUEST_MEMORY_MIB timeout_s=$GUEST_TIMEOUT_S extra=()
    local initramfs='' scratch_mib=''
    guest_options "$@" || return 2
    [[ -n $disk && -r $job ]] || guest_fail "guest_run wants --disk and a readable --job" || return 2
    need_packages qemu-system-x86 qemu-utils || return 1
    guest_logged "$timeout_s" "$log" -m "$memory_mib" \
        -drive "$(guest_drive "$disk"),if=none,id=system" -device virtio-blk-pci,drive=system,bootindex=0 \
        -fw_cfg "name=opt/marcot/job,file=${job//,/,,}" "${extra[@]}"
}

# guest_kernel_run --initramfs FILE --job FILE [--scratch MIB] [--mem MIB] [--timeout S]
#                  [--log FILE] [-- QEMU-ARGUMENT...]
#
# Boots the kernel with an initramfs and no system disk. --scratch adds an empty
# ext4 disk, mounted at /scratch, which ends with the guest. Returns as guest_run
# does.
guest_kernel_run() {
    local disk='' job='' log='' memory_mib=$GUEST_KERNEL_MEMORY_MIB timeout_s=$GUEST_TIMEOUT_S extra=()
    local initramfs='' scratch_mib='' scratch='' scratch_fd='' arguments=() status=0
    guest_options "$@" || return 2
    [[ -r $initramfs && -r $job ]] ||
        guest_fail "guest_kernel_run wants a readable --initramfs and --job" || return 2
    need_packages qemu-system-x86 qemu-utils e2fsprogs && guest_kernel "$GUEST_CACHE/kernel" || return 1
    if [[ -n $scratch_mib ]]; then
        guest_nameless scratch scratch_fd || return 1
        truncate -s "${scratch_mib}M" "$scratch"
        mke2fs -q -F -t ext4 "$scratch" || return 1
        # The disk ends with the guest, so flushing it would only take time.
        # shellcheck disable=SC2054 # QEMU's commas, not the array's
        arguments+=(-drive "file=$scratch,format=raw,cache=unsafe,discard=unmap,if=none,id=scratch"
            -device virtio-blk-pci,drive=scratch,serial=scratch)
    fi
    guest_logged "$timeout_s" "$log" -m "$memory_mib" \
        -kernel "$GUEST_CACHE/kernel/vmlinuz" -initrd "$initramfs" -append "$GUEST_KERNEL_ARGUMENTS" \
        -fw_cfg "name=opt/marcot/job,file=${job//,/,,}" "${arguments[@]}" "${extra[@]}" || status=$?
    [[ -z $scratch_fd ]] || exec {scratch_fd}>&-
    return "$status"
}

# shellcheck shell=bash
# libvirt with disks of protocol 'nbd', which marcot serves.
#
# Sourced by scripts/test.d/real-programs.sh, never run. The daemon is that of an ordinary user's session: libvirt takes
# root's for that of the machine.

LIBVIRT_USER=nobody

# as_libvirt_user COMMAND...
as_libvirt_user() {
    local home=$CLAIMS_SCRATCH/libvirt
    setpriv --reuid="$LIBVIRT_USER" --regid="$(id -g "$LIBVIRT_USER")" --clear-groups env -i PATH="$PATH" \
        HOME="$home" XDG_RUNTIME_DIR="$home/run" XDG_CONFIG_HOME="$home" XDG_CACHE_HOME="$home" XDG_DATA_HOME="$home" "$@"
}

virsh_says() {
    as_libvirt_user virsh -c qemu:///session "$@"
}

# libvirt_disk IMAGE TARGET : a disk in the words of libvirt.
libvirt_disk() {
    cat <<END
<disk type='network' device='disk'>
  <driver name='qemu' type='raw' cache='none' discard='unmap'/>
  <source protocol='nbd' name='$1'><host transport='unix' socket='$CLAIMS_SCRATCH/libvirt/nbd.sock'/></source>
  <target dev='$2' bus='virtio'/>
</disk>
END
}

# libvirt_domain : a machine without anything to boot, whose first disk is rbd/boot.
libvirt_domain() {
    cat <<END
<domain type='qemu'>
  <name>marcot-test</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    $(libvirt_disk rbd/boot vda)
    <serial type='file'><source path='$CLAIMS_SCRATCH/libvirt/console'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
END
}

# libvirt_boot_sector : 512 bytes with which a PC writes `ok` to its serial port and stops.
libvirt_boot_sector() {
    # mov dx,0x3f8; mov al,'o'; out dx,al; mov al,'k'; out dx,al; hlt; jmp to hlt
    printf '\xba\xf8\x03\xb0o\xee\xb0k\xee\xf4\xeb\xfd'
    head -c 498 /dev/zero
    printf '\x55\xaa'
}

libvirt_capacity() {
    virsh_says domblkinfo marcot-test "$1" | awk '$1 == "Capacity:" { print $2 }'
}

# libvirt_booted : the machine has run what the image has.
libvirt_booted() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        ! grep -q ok "$CLAIMS_SCRATCH/libvirt/console" 2>/dev/null || return 0
        sleep 0.1
    done
    return 1
}

# libvirt_end : ends the machine and the daemons that virsh has started, by their ids.
libvirt_end() {
    local file
    [[ -d $CLAIMS_SCRATCH/libvirt ]] || return 0
    virsh_says destroy marcot-test >/dev/null 2>&1 || true
    for file in "$CLAIMS_SCRATCH"/libvirt/run/libvirt/{libvirtd,virtlogd}.pid; do
        [[ ! -s $file ]] || kill "$(cat "$file")" 2>/dev/null || true
    done
}

libvirt_of_debian() {
    local home=$CLAIMS_SCRATCH/libvirt tries
    mkdir -p "$home/run"
    chmod 711 "$CLAIMS_SCRATCH"
    chown -R "$LIBVIRT_USER" "$home"
    libvirt_boot_sector >"$CLAIMS_SCRATCH/sector"
    truncate -s 8M "$CLAIMS_SCRATCH/sector"
    rbd import --no-progress "$CLAIMS_SCRATCH/sector" boot
    rbd create --size 24 data
    start_owned "$MARCOT" serve --socket "$home/nbd.sock" --socket-mode 666
    for ((tries = 0; tries < 600; tries++)); do [[ ! -S $home/nbd.sock ]] || break && sleep 0.1; done
    libvirt_domain >"$home/domain.xml"
    libvirt_disk rbd/data vdb >"$home/disk.xml"
    claim "libvirt: a machine starts from a disk of protocol nbd" virsh_says --quiet create "$home/domain.xml"
    claim "libvirt: ... and boots what the image has" libvirt_booted
    claim "libvirt: the disk has the size of the image" test "$(libvirt_capacity vda)" = $((8 << 20))
    claim "libvirt: a disk is attached to the running machine" virsh_says --quiet attach-device marcot-test "$home/disk.xml"
    claim "libvirt: ... with the size of its image" test "$(libvirt_capacity vdb)" = $((24 << 20))
    claim "libvirt: ... under its name" grep -q 'rbd/data' <(virsh_says domblklist marcot-test)
    claim "libvirt: marcot says who has the image open" grep -q Watchers: <(rbd status data)
    claim "libvirt: a snapshot is taken meanwhile" rbd snap create --no-progress data@s
    claim "libvirt: the disk is detached" virsh_says --quiet detach-disk marcot-test vdb
    claim "libvirt: the machine ends" virsh_says --quiet destroy marcot-test
    libvirt_end
}

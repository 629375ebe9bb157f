//! The ioctls of `linux/loop.h` and two of `linux/fs.h`, and their structures.
//!
//! All `unsafe` about loop devices is here: a C call that reads or fills a structure.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Nobody can write.
pub(super) const READ_ONLY: u32 = 1;
/// The device goes when its last user does.
pub(super) const AUTOCLEAR: u32 = 4;
/// Look for partitions.
pub(super) const PARTSCAN: u32 = 8;
/// Bypass the page cache of the file behind.
pub(super) const DIRECT_IO: u32 = 16;

const FILE_NAME_BYTES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Info64 {
    pub(super) device: u64,
    pub(super) inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    file_name: [u8; FILE_NAME_BYTES],
    crypt_name: [u8; FILE_NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<Info64>() == 232);

impl Info64 {
    fn zeroed() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; FILE_NAME_BYTES],
            crypt_name: [0; FILE_NAME_BYTES],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }

    /// What `losetup` shows as the file; cut where it is too long, ended by a zero.
    fn name(&mut self, name: &[u8]) {
        let length = name.len().min(FILE_NAME_BYTES - 1);
        self.file_name[..length].copy_from_slice(&name[..length]);
    }
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info64,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<Configuration>() == 304);

fn pointed<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: the descriptor is open, and each caller passes the structure that the request is
    // defined with, whose bytes are valid whatever the kernel writes there (integers only).
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut *argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn plain(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<u32> {
    // SAFETY: the descriptor is open, and the requests given here ignore the argument.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A number that was free when asked; of `/dev/loop-control`.
pub(super) fn free_number(control: BorrowedFd<'_>) -> io::Result<u32> {
    plain(control, LOOP_CTL_GET_FREE)
}

/// Shows `backing` as the device; `BUSY` where it shows another.
pub(super) fn configure(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    block_bytes: u32,
    flags: u32,
    name: &[u8],
) -> io::Result<()> {
    let mut configuration = Configuration {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size: block_bytes,
        info: Info64 { flags, ..Info64::zeroed() },
        reserved: [0; 8],
    };
    configuration.info.name(name);
    pointed(device, LOOP_CONFIGURE, &mut configuration)
}

/// What the device shows; `None` where nothing.
pub(super) fn status(device: BorrowedFd<'_>) -> io::Result<Option<Info64>> {
    let mut info = Info64::zeroed();
    match pointed(device, LOOP_GET_STATUS64, &mut info) {
        Ok(()) => Ok(Some(info)),
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Changes what can be changed of a configured device: the flags.
pub(super) fn set_status(device: BorrowedFd<'_>, mut info: Info64) -> io::Result<()> {
    pointed(device, LOOP_SET_STATUS64, &mut info)
}

/// Asks for the device to be freed, now or when its last user is gone.
pub(super) fn clear(device: BorrowedFd<'_>) -> io::Result<()> {
    plain(device, LOOP_CLR_FD).map(drop)
}

/// Takes over the size of the file.
pub(super) fn update_size(device: BorrowedFd<'_>) -> io::Result<()> {
    plain(device, LOOP_SET_CAPACITY).map(drop)
}

/// Size of any block device, in bytes.
pub(super) fn size_bytes(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_u64;
    pointed(device, BLKGETSIZE64, &mut bytes)?;
    Ok(bytes)
}

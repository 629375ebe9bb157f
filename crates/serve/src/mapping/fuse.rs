//! A FUSE file system with one file: the image.
//!
//! Requests are handed to the image's thread and answered from there. So as many can be in flight as the
//! kernel sends. The file's size is that of the image, and never grows by writing.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, WriteFlags,
};
use marcot::{BLOCK_BYTES, Error, Result};

pub(super) use crate::fuse_mounts::unmount_dead;
use crate::fuse_mounts::{answer, errno, make_fast};
use crate::host::{Completion, DeviceRequest, HostHandle};

/// Name of the one file.
const FILE_NAME: &str = "image";
const FILE: INodeNo = INodeNo(2);
/// The size may change at any time, so the kernel must not cache the file's attributes.
const ATTRIBUTES_TTL: Duration = Duration::ZERO;
/// Time between attempts to unmount: the loop driver closes the file a moment after the device is gone.
const UNMOUNT_WAIT: Duration = Duration::from_millis(20);
const UNMOUNT_ATTEMPTS: u32 = 250;
/// Unit of a block device's size, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A mounted image. Dropping it unmounts.
pub(super) struct Mount {
    session: BackgroundSession,
    directory: PathBuf,
}

impl Mount {
    /// Mounts in `directory`, which must be empty.
    pub(super) fn new(host: HostHandle, directory: &Path, read_only: bool) -> Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("marcot".to_owned()),
            MountOption::Subtype("marcot".to_owned()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            if read_only { MountOption::RO } else { MountOption::RW },
        ];
        let session = fuser::Session::new(ImageFile { host, read_only }, directory, &config)
            .and_then(fuser::Session::spawn)
            .map_err(|e| Error::from_io(format!("cannot mount in {}", directory.display()), e))?;
        Ok(Self { session, directory: directory.to_owned() })
    }

    /// The file that holds the image.
    pub(super) fn file(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// Detaches the mount although its file is in use. The connection to the kernel ends with this process.
    /// Requests to the file fail from then on.
    pub(super) fn abandon(self) -> Result<()> {
        // Dropping the session here would wait for the file's last user.
        std::mem::forget(self.session);
        unmount_dead(&self.directory)
    }

    /// Unmounts, once the kernel has closed the file.
    pub(super) fn unmount(self) -> Result<()> {
        let context = format!("cannot unmount {}", self.directory.display());
        for _ in 0..UNMOUNT_ATTEMPTS {
            match rustix::mount::unmount(&self.directory, rustix::mount::UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => std::thread::sleep(UNMOUNT_WAIT),
                // It is unmounted, or this user may not unmount it directly. The session does the rest.
                _ => break,
            }
        }
        match self.session.umount_and_join() {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            ended => ended.map_err(|e| Error::from_io(context, e)),
        }
    }
}

struct ImageFile {
    host: HostHandle,
    read_only: bool,
}

impl ImageFile {
    /// Size of the file: that of the image, in whole sectors.
    fn file_bytes(&self) -> u64 {
        self.host.size_bytes().next_multiple_of(SECTOR_BYTES)
    }

    /// How many of `length` bytes at `offset` lie in the image.
    fn within_image(&self, offset: u64, length: u64) -> u64 {
        length.min(self.host.size_bytes().saturating_sub(offset))
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            FILE if self.read_only => (FileType::RegularFile, 0o400, self.file_bytes()),
            FILE => (FileType::RegularFile, 0o600, self.file_bytes()),
            _ => return None,
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for ImageFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        make_fast(config, InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = parent == INodeNo::ROOT && name == FILE_NAME;
        match self.attributes(FILE).filter(|_| found) {
            Some(attributes) => reply.entry(&ATTRIBUTES_TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&ATTRIBUTES_TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if inode == FILE {
            reply.opened(FileHandle(0), FopenFlags::empty());
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let asked = u64::from(size).min(self.file_bytes().saturating_sub(offset)) as usize;
        let length = self.within_image(offset, asked as u64) as usize;
        if length == 0 {
            return reply.data(&vec![0; asked]);
        }
        let done = move |outcome: Result<Vec<u8>>| match outcome {
            Ok(mut bytes) => {
                bytes.resize(asked, 0);
                reply.data(&bytes);
            }
            Err(error) => reply.error(errno(&error)),
        };
        self.host.submit(DeviceRequest::Read { offset, length }, Completion::new(done));
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = data.len() as u32;
        let data = &data[..self.within_image(offset, u64::from(length)) as usize];
        if data.is_empty() {
            return reply.written(length);
        }
        let done = move |outcome: Result<Vec<u8>>| match outcome {
            Ok(_) => reply.written(length),
            Err(error) => reply.error(errno(&error)),
        };
        let request = DeviceRequest::Write { offset, data: data.to_vec(), fua: false };
        self.host.submit(request, Completion::new(done));
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // This is called by close, which promises nothing; `fsync` does.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.host.submit(DeviceRequest::Flush, answer(reply));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let zeroes = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & zeroes == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let length = self.within_image(offset, length);
        if length == 0 {
            return reply.ok();
        }
        self.host.submit(DeviceRequest::Discard { offset, length, fua: false }, answer(reply));
    }

    fn getxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        // Only this answer keeps the kernel from asking again before every write.
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let blocks = self.host.size_bytes() / BLOCK_BYTES;
        // The block size is the granularity of discards on the loop device.
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK_BYTES as u32, 255, BLOCK_BYTES as u32);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (i, (inode, kind, name)) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(*inode, i as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

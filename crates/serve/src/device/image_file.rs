//! The one file of the FUSE file system: the image's bytes.
//!
//! Invariants:
//! - Data requests are answered from the image's completions, never by waiting in the session's
//!   thread: the image sees as many at once as the kernel cares to send.
//! - The size is the image's. A write beyond it fails and nothing ever grows, since a file that
//!   grows under a loop device in direct mode confuses it.
//! - FSYNC is answered after the image's flush. Nothing but a missing feature is answered with
//!   ENOSYS: the kernel would take it for "not needed" and report success from then on.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::io::{DeviceIo, Request};
use super::process::ProcessId;

/// Name of the one file.
pub(super) const FILE_NAME: &str = "image";
/// The image may be resized at any time. The kernel asks for attributes at `stat` only, not for
/// each request, so that remembering them would save nothing.
const ATTRIBUTES_TTL: Duration = Duration::ZERO;
/// The mapping unit of images. The loop driver makes it its discard granularity, so that file
/// systems do not trim parts of blocks.
const BLOCK_BYTES: u32 = 4096;
/// Bytes of the largest request: what a kernel grants unless its administrator says more.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests under way at once: the depth of a loop device's queue (`hw_queue_depth`). What the
/// kernel allows by itself (12) and the library asks for (16) would be the narrowest place.
const REQUESTS_MAX: u16 = 128;
/// Unit of `st_blocks`.
const SECTOR_BYTES: u64 = 512;

/// The file system.
pub(super) struct ImageFile {
    io: Arc<dyn DeviceIo>,
    file: INodeNo,
    read_only: bool,
}

/// A number that no other mount of this machine's uptime gives its file: when the process began,
/// a count, and the process. A loop device is known by it after everybody else has forgotten.
fn unique_inode() -> INodeNo {
    /// From one on, so that the number of the root directory never comes out.
    static COUNT: AtomicU64 = AtomicU64::new(1);
    /// Linux numbers processes below 2^22.
    const PROCESS_BITS: u32 = 22;
    let process = ProcessId::own();
    let count = COUNT.fetch_add(1, Ordering::Relaxed) & 0x3FF;
    INodeNo(process.started_ticks << 32 | count << PROCESS_BITS | u64::from(process.pid))
}

/// For the kernel: see the module's third invariant.
fn to_fuse(errno: Errno) -> fuser::Errno {
    let errno = if errno == Errno::NOSYS { Errno::IO } else { errno };
    fuser::Errno::from(io::Error::from(errno))
}

impl ImageFile {
    pub(super) fn new(io: Arc<dyn DeviceIo>, read_only: bool) -> Self {
        Self { io, file: unique_inode(), read_only }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0),
            file if file != self.file => return None,
            _ if self.read_only => (FileType::RegularFile, 0o400, self.io.size_bytes()),
            _ => (FileType::RegularFile, 0o600, self.io.size_bytes()),
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size.div_ceil(SECTOR_BYTES),
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
            blksize: BLOCK_BYTES,
            flags: 0,
        })
    }

    /// True where `length` bytes at `offset` lie within the image.
    fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.io.size_bytes())
    }

    fn reply_attributes(&self, inode: INodeNo, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&ATTRIBUTES_TTL, &attributes),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    /// Hands over a request that is answered with nothing.
    fn submit(&self, request: Request, reply: ReplyEmpty) {
        let done = move |outcome: Result<Vec<u8>, Errno>| match outcome {
            Ok(_) => reply.ok(),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.io.submit(request, Box::new(done));
    }
}

impl Filesystem for ImageFile {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel does not grant costs speed only.
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_BIG_WRITES;
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_readahead(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(REQUESTS_MAX);
        let _ = config.set_congestion_threshold(REQUESTS_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = parent == INodeNo::ROOT && name == FILE_NAME;
        match self.attributes(self.file).filter(|_| found) {
            Some(attributes) => reply.entry(&ATTRIBUTES_TTL, &attributes, Generation(0)),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &fuser::Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.reply_attributes(inode, reply);
    }

    fn setattr(
        &self,
        _request: &fuser::Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.or(uid).or(gid).is_some() || size.is_some() {
            return reply.error(fuser::Errno::EPERM);
        }
        // Times are not kept.
        self.reply_attributes(inode, reply);
    }

    fn open(&self, _request: &fuser::Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if inode != self.file {
            return reply.error(fuser::Errno::ENOENT);
        }
        // Not FOPEN_DIRECT_IO: the loop driver asks for direct I/O itself.
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.io.size_bytes().saturating_sub(offset);
        let length = u32::try_from(left).unwrap_or(u32::MAX).min(size);
        if length == 0 {
            return reply.data(&[]);
        }
        let done = move |outcome: Result<Vec<u8>, Errno>| match outcome {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.io.submit(Request::Read { offset, length }, Box::new(done));
    }

    fn write(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if self.read_only {
            return reply.error(fuser::Errno::EROFS);
        }
        if !self.holds(offset, data.len() as u64) {
            return reply.error(fuser::Errno::ENOSPC);
        }
        let length = data.len() as u32;
        let done = move |outcome: Result<Vec<u8>, Errno>| match outcome {
            Ok(_) => reply.written(length),
            Err(errno) => reply.error(to_fuse(errno)),
        };
        self.io.submit(Request::Write { offset, data: data.to_vec() }, Box::new(done));
    }

    fn flush(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // A close, which promises nothing; FSYNC does.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.submit(Request::Flush, reply);
    }

    fn fallocate(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let zeroing = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if self.read_only {
            return reply.error(fuser::Errno::EROFS);
        }
        if mode & zeroing == 0 {
            return reply.error(fuser::Errno::EOPNOTSUPP);
        }
        if !self.holds(offset, length) {
            return reply.error(fuser::Errno::ENOSPC);
        }
        self.submit(Request::Discard { offset, length }, reply);
    }

    fn statfs(&self, _request: &fuser::Request, _inode: INodeNo, reply: ReplyStatfs) {
        let blocks = self.io.size_bytes().div_ceil(u64::from(BLOCK_BYTES));
        let name_bytes_max = FILE_NAME.len() as u32;
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK_BYTES, name_bytes_max, BLOCK_BYTES);
    }

    fn getxattr(
        &self,
        _request: &fuser::Request,
        _inode: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: fuser::ReplyXattr,
    ) {
        // A feature that is missing for good: the kernel stops asking, which it would before every
        // write otherwise (for a file's capabilities).
        reply.error(fuser::Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &fuser::Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(fuser::Errno::ENOTDIR);
        }
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (self.file, FileType::RegularFile, FILE_NAME),
        ];
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, (inode, kind, name)) in entries.iter().enumerate().skip(skipped) {
            if reply.add(*inode, i as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

//! FUSE's requests to a directory of images.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use marcot::{BLOCK_BYTES, ErrorKind, Result};

use super::ImageEntry;
use super::attributes::{Access, NAMES};
use super::content::{self, size_errno};
use super::files::{Files, Way, in_background, report};
use crate::fuse_mounts::{answer, errno, make_fast};
use crate::host::DeviceRequest;

/// Other processes create, resize and remove images at any time, so the kernel must not remember anything.
const TTL: Duration = Duration::ZERO;
/// The longest name that the kernel looks up, in bytes.
const NAME_BYTES_MAX: u32 = 255;
const SEEK_DATA: i32 = libc::SEEK_DATA;
const SEEK_HOLE: i32 = libc::SEEK_HOLE;
/// The kernel keeps no copy of the content: commands of other processes may change it (`snap rollback`, `import-diff`).
const OPEN: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

/// The file system.
pub(super) struct ImageFiles {
    files: Arc<Files>,
    access: Access,
    modified: SystemTime,
}

/// The name of an image, if it can be one.
fn image_name(parent: INodeNo, name: &OsStr) -> std::result::Result<String, Errno> {
    match name.to_str() {
        Some(name) if parent == INodeNo::ROOT => Ok(name.to_owned()),
        _ => Err(Errno::ENOENT),
    }
}

impl ImageFiles {
    pub(super) fn new(files: Arc<Files>, access: Access, modified: SystemTime) -> Self {
        Self { files, access, modified }
    }

    /// Does in the background what is answered by success alone.
    fn change(
        &self,
        reply: ReplyEmpty,
        change: impl FnOnce(&Files) -> Result<()> + Send + 'static,
    ) {
        let files = Arc::clone(&self.files);
        in_background(move || match change(&files) {
            Ok(()) => reply.ok(),
            Err(error) => {
                report(0, "refused", &error);
                reply.error(errno(&error));
            }
        });
    }
}

impl Filesystem for ImageFiles {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Files have no bits that a write has to clear.
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_PARALLEL_DIROPS;
        make_fast(config, wanted);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = match image_name(parent, name) {
            Ok(name) => name,
            Err(error) => return reply.error(error),
        };
        let (files, access) = (Arc::clone(&self.files), self.access);
        in_background(move || match files.images().find(&name) {
            Ok(image) => reply.entry(&TTL, &access.of_image(&image), Generation(0)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _file: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        if inode == INodeNo::ROOT {
            return reply.attr(&TTL, &self.access.of_directory(self.modified));
        }
        let (files, access) = (Arc::clone(&self.files), self.access);
        in_background(move || match files.entry(inode.0) {
            Ok(image) => reply.attr(&TTL, &access.of_image(&image)),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _file: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed_mac: Option<SystemTime>,
        _backup: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.is_some() || uid.is_some() || gid.is_some() {
            // As RBD's. Images have neither owner nor permissions.
            return reply.error(Errno::ENOSYS);
        }
        if inode == INodeNo::ROOT {
            return reply.attr(&TTL, &self.access.of_directory(self.modified));
        }
        let (files, access) = (Arc::clone(&self.files), self.access);
        in_background(move || {
            let resized = size.map_or(Ok(()), |size| files.resize(inode.0, size));
            match resized.map_err(|e| (size_errno(&e), e)) {
                Err((number, error)) => {
                    report(inode.0, "refused to resize", &error);
                    reply.error(number);
                }
                Ok(()) => match files.entry(inode.0) {
                    Ok(image) => reply.attr(&TTL, &access.of_image(&image)),
                    Err(error) => reply.error(errno(&error)),
                },
            }
        });
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match image_name(parent, name) {
            Ok(name) => self.change(reply, move |files| files.remove(&name)),
            Err(error) => reply.error(error),
        }
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        match (image_name(parent, name), image_name(new_parent, new_name)) {
            (Ok(from), Ok(to)) => {
                self.change(reply, move |files| files.images().rename(&from, &to));
            }
            (Err(error), _) | (_, Err(error)) => reply.error(error),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let files = Arc::clone(&self.files);
        in_background(move || match files.open(inode.0, writes) {
            Ok(file) => reply.opened(FileHandle(file), OPEN),
            Err(error) => {
                report(inode.0, "refused to open", &error);
                reply.error(errno(&error));
            }
        });
    }

    fn create(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = match image_name(parent, name) {
            Ok(name) => name,
            Err(_) => return reply.error(Errno::EINVAL),
        };
        let (files, access) = (Arc::clone(&self.files), self.access);
        let writes = OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY;
        in_background(move || {
            let made = create(&files, &name, flags & libc::O_EXCL != 0);
            match made.and_then(|image| Ok((image, files.open(image.number, writes)?))) {
                Ok((image, file)) => {
                    let attributes = access.of_image(&image);
                    reply.created(&TTL, &attributes, Generation(0), FileHandle(file), OPEN);
                }
                Err(error) => {
                    report(0, "refused to create", &error);
                    reply.error(errno(&error));
                }
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files.way(file.0) {
            Some(way) => content::read(&self.files, &way, inode.0, offset, size, reply),
            None => reply.error(Errno::EBADF),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(Way::Here(hosted)) = self.files.way(file.0) else {
            return reply.error(Errno::EBADF);
        };
        content::write(&self.files, &hosted, offset, data, reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _file: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // This is called by close, which promises nothing; `fsync` does.
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        file: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let number = self.files.release(file.0);
        let files = Arc::clone(&self.files);
        in_background(move || {
            number.map(|number| files.close_unused(number));
            reply.ok();
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        file: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        match self.files.way(file.0) {
            Some(Way::Here(hosted)) => {
                hosted.host.submit(DeviceRequest::Flush, answer(reply));
            }
            // Nothing was written by this file.
            _ => reply.ok(),
        }
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _file: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        // Names are durable when an operation on them is answered.
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        file: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(Way::Here(hosted)) = self.files.way(file.0) else {
            return reply.error(Errno::EBADF);
        };
        content::fallocate(&hosted, offset, length, mode, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        file: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(way) = self.files.way(file.0) else { return reply.error(Errno::EBADF) };
        if whence != SEEK_DATA && whence != SEEK_HOLE {
            return reply.error(Errno::EINVAL);
        }
        let data = whence == SEEK_DATA;
        content::lseek(&self.files, way, inode.0, offset, data, reply);
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let files = Arc::clone(&self.files);
        in_background(move || match files.open_list() {
            Ok(list) => reply.opened(FileHandle(list), FopenFlags::empty()),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        list: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(list) = self.files.list(list.0) else { return reply.error(Errno::EBADF) };
        let own =
            [(INodeNo::ROOT, FileType::Directory, "."), (INodeNo::ROOT, FileType::Directory, "..")];
        let images = list.iter();
        let images =
            images.map(|(name, number)| (INodeNo(*number), FileType::RegularFile, name.as_str()));
        let all = own.into_iter().chain(images).enumerate().skip(offset as usize);
        for (index, (inode, kind, name)) in all {
            if reply.add(inode, index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        list: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.files.close_list(list.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let files = Arc::clone(&self.files);
        in_background(move || match files.images().space() {
            Ok(space) => {
                let (total, free) =
                    (space.total_bytes / BLOCK_BYTES, space.free_bytes / BLOCK_BYTES);
                let block_bytes = BLOCK_BYTES as u32;
                let images = space.images;
                reply.statfs(
                    total,
                    free,
                    free,
                    images,
                    0,
                    block_bytes,
                    NAME_BYTES_MAX,
                    block_bytes,
                );
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn setxattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let Some(name) = name.to_str().filter(|_| inode == INodeNo::ROOT) else {
            return reply.error(Errno::EINVAL);
        };
        let (name, value) = (name.to_owned(), value.to_vec());
        self.change(reply, move |files| files.set_new_image(&name, &value));
    }

    fn getxattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let name = name.to_str().filter(|_| inode == INodeNo::ROOT).unwrap_or_default();
        match self.files.new_image().attribute(name) {
            Some(value) => answer_xattr(value.to_string().as_bytes(), size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let names = match inode == INodeNo::ROOT {
            true => NAMES.map(|name| format!("{name}\0")).concat(),
            false => String::new(),
        };
        answer_xattr(names.as_bytes(), size, reply);
    }
}

/// Answers with a value, or with its size if that was asked for.
fn answer_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match size as usize {
        0 => reply.size(value.len() as u32),
        room if room >= value.len() => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// Creates an image, or finds one that was created meanwhile.
fn create(files: &Files, name: &str, exclusive: bool) -> Result<ImageEntry> {
    match files.images().create(name, &files.new_image()) {
        Err(error) if error.kind() == ErrorKind::Exists && !exclusive => files.images().find(name),
        made => made,
    }
}

//! The disk of the operating system.

mod async_io;
mod beneath;
mod confined;
mod holder;
mod lock;
mod ring;
mod tree;
mod wake;
mod writers;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, FallocateFlags, Mode, OFlags, RenameFlags};

use crate::{AsyncIo, Confined, Disk, DiskFile, FileInfo, FileRead, Lock, LockMode, Trust};

/// Limit on the parts of one `pwritev`: the kernel's `UIO_MAXIOV`.
const PARTS_MAX: usize = 1024;

/// Files and directories through system calls. Batches of reads go through `io_uring` where the
/// kernel allows it, and one after the other elsewhere.
#[derive(Debug, Default, Clone)]
pub struct LocalDisk {
    plain_reads: bool,
}

impl LocalDisk {
    /// Uses `io_uring` where possible. `MARCOT_IO=plain` in the environment turns it off.
    #[must_use]
    pub fn new() -> Self {
        Self { plain_reads: std::env::var_os("MARCOT_IO").is_some_and(|v| v == "plain") }
    }

    /// Never uses `io_uring`.
    #[must_use]
    pub fn plain() -> Self {
        Self { plain_reads: true }
    }
}

struct LocalFile(OwnedFd);

/// Sets permission bits again that the umask has removed, where the file is meant to be shared.
fn share(made: &OwnedFd, mode: u32) -> io::Result<()> {
    if mode & 0o077 != 0 {
        fs::fchmod(made, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

fn info_of(stat: &fs::Stat) -> FileInfo {
    let file_type = fs::FileType::from_raw_mode(stat.st_mode);
    FileInfo {
        owner_id: stat.st_uid,
        plain: file_type == fs::FileType::RegularFile,
        link: file_type == fs::FileType::Symlink,
        directory: file_type == fs::FileType::Directory,
        length: stat.st_size.cast_unsigned(),
        allocated_bytes: stat.st_blocks.cast_unsigned() * 512,
    }
}

impl Disk for LocalDisk {
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Arc<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::from_raw_mode(mode))?;
        share(&fd, mode)?;
        Ok(Arc::new(LocalFile(fd)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        // NONBLOCK: in a directory that everybody may write to, somebody may have made a FIFO, and
        // opening it would wait for ever. For plain files the flag has no effect.
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(Arc::new(LocalFile(fs::open(path, flags, Mode::empty())?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(fs::rename(from, to)?)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match fs::renameat_with(fs::CWD, from, fs::CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems lack the flag. There a hard link is made, which fails where the name is taken.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::link(from, to)?;
                Ok(fs::unlink(from)?)
            }
            done => Ok(done?),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Ok(fs::unlink(path)?)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        Ok(fs::rmdir(path)?)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::mkdir(path, Mode::from_raw_mode(mode))?;
        if mode & 0o077 != 0 {
            fs::chmod(path, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        self.visit(path, &mut |name| {
            // This program makes only names in UTF-8.
            names.extend(name.to_str().map(str::to_owned));
            true
        })?;
        names.sort_unstable();
        Ok(names)
    }

    fn visit(&self, path: &Path, each: &mut dyn FnMut(&OsStr) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(path)? {
            if !each(&entry?.file_name()) {
                break;
            }
        }
        Ok(())
    }

    fn remove_tree(&self, path: &Path, aside: &Path, steps: &mut u64) -> io::Result<()> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        self.confine(parent, Trust::Own)?.disk.remove_tree(path, aside, steps)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(fs::fsync(fs::open(path, flags, Mode::empty())?)?)
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        Ok(fs::stat(path)?.st_mode & 0o7777)
    }

    fn file_info(&self, path: &Path) -> io::Result<FileInfo> {
        Ok(info_of(&fs::lstat(path)?))
    }

    fn modified_s(&self, path: &Path) -> io::Result<i64> {
        Ok(fs::lstat(path)?.st_mtime)
    }

    fn writable(&self, path: &Path) -> bool {
        let access = fs::Access::WRITE_OK | fs::Access::EXEC_OK;
        fs::accessat(fs::CWD, path, access, fs::AtFlags::EACCESS).is_ok()
    }

    fn lock(&self, path: &Path, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        // Everybody who can open the file could hold its lock for ever. So only the owner may open it.
        let mode_private = Mode::from_raw_mode(0o600);
        let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = match fs::open(path, flags | OFlags::RDWR | OFlags::CREATE, mode_private) {
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS | rustix::io::Errno::PERM) => {
                fs::open(path, flags | OFlags::RDONLY, Mode::empty())?
            }
            opened => opened?,
        };
        lock::flock(fd, path, mode, wait)
    }

    fn read_batch(&self, reads: &mut [FileRead<'_>]) {
        // A ring reads from files of the operating system only.
        let can_ring = !self.plain_reads && reads.iter().all(|read| read.file.raw_fd().is_some());
        let in_one_go = reads.len() > 1 && can_ring && ring::read_all(reads);
        if !in_one_go {
            for read in reads {
                read.result = read.file.read_at(read.offset, read.buf);
            }
        }
    }

    fn async_io(&self) -> Option<Box<dyn AsyncIo>> {
        let only_woken = || {
            let event = wake::Event::new().ok()?;
            Some(Box::new(wake::OnlyWoken(event)) as Box<dyn AsyncIo>)
        };
        if self.plain_reads {
            return only_woken();
        }
        match async_io::RingIo::new() {
            Ok(ring) => Some(Box::new(ring)),
            Err(_) => only_woken(),
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn confine(&self, directory: &Path, trust: Trust) -> io::Result<Confined> {
        confined::confine(self, None, directory, trust)
    }

    fn user_id(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }
}

impl DiskFile for LocalFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match rustix::io::retry_on_intr(|| rustix::io::pread(&self.0, &mut buf[done..], at))? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn read_cached_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut slices = [io::IoSliceMut::new(buf)];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        Ok(rustix::io::retry_on_intr(|| rustix::io::preadv2(&self.0, &mut slices, offset, flags))?)
    }

    fn write_at(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        for chunk in parts.chunks(PARTS_MAX) {
            let mut slices: Vec<io::IoSlice<'_>> =
                chunk.iter().map(|p| io::IoSlice::new(p)).collect();
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let n = rustix::io::retry_on_intr(|| rustix::io::pwritev(&self.0, rest, offset))?;
                if n == 0 && rest.iter().any(|s| !s.is_empty()) {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                offset += n as u64;
                io::IoSlice::advance_slices(&mut rest, n);
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.0)?)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(fs::fstat(&self.0)?.st_size.cast_unsigned())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(fs::fstat(&self.0)?.st_blocks.cast_unsigned() * 512)
    }

    fn has_other_names(&self) -> io::Result<bool> {
        Ok(fs::fstat(&self.0)?.st_nlink > 1)
    }

    fn is_removed(&self) -> io::Result<bool> {
        Ok(fs::fstat(&self.0)?.st_nlink == 0)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        Ok(fs::ftruncate(&self.0, length)?)
    }

    fn reserve(&self, offset: u64, length: u64) -> io::Result<()> {
        Ok(fs::fallocate(&self.0, FallocateFlags::empty(), offset, length)?)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fs::fallocate(&self.0, flags, offset, length)?)
    }

    fn advise(&self, offset: u64, length: u64) {
        let length = std::num::NonZeroU64::new(length);
        // This is only a hint, so an error does not matter.
        let _ = fs::fadvise(&self.0, offset, length, fs::Advice::WillNeed);
    }

    fn write_out(&self, offset: u64, length: u64) {
        let (fd, range) = (self.0.as_raw_fd(), (offset.cast_signed(), length.cast_signed()));
        // SAFETY: the descriptor is open, and the call touches no memory of this process. Because it does
        // not wait, it does not consume errors that a later sync has to report.
        unsafe { libc::sync_file_range(fd, range.0, range.1, libc::SYNC_FILE_RANGE_WRITE) };
    }

    fn drop_cached(&self, offset: u64, length: u64) {
        // A length of `None` means up to the end.
        let length = std::num::NonZeroU64::new(length).filter(|l| l.get() != u64::MAX);
        // Where this is refused, reads still come from the cache.
        let _ = fs::fadvise(&self.0, offset, length, fs::Advice::DontNeed);
    }

    fn await_writers(&self) {
        writers::wait(self.0.as_fd());
    }

    fn raw_fd(&self) -> Option<i32> {
        Some(self.0.as_raw_fd())
    }

    fn direct(&self) -> io::Result<Arc<dyn DiskFile>> {
        // The file's name may have changed since it was opened.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let direct = fs::open(path, flags, Mode::empty())?;
        writers::mark(direct.as_fd())?;
        Ok(Arc::new(LocalFile(direct)))
    }
}

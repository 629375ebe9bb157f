//! Opening files in a directory without following symbolic links and without leaving the directory.
//!
//! The kernel resolves the whole path itself (`openat2`, Linux 5.6). Where it lacks the call, or a container
//! forbids it, each part of the path is opened from the part before, and a symbolic link is refused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{self, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How often the kernel is asked again where something is renamed meanwhile.
const ATTEMPTS_MAX: u32 = 32;

/// A directory that is held open.
pub(super) struct Beneath {
    root: OwnedFd,
    resolve: ResolveFlags,
    /// The device of the root, where mounts must not be crossed.
    device: Option<u64>,
    /// The kernel resolves whole paths.
    whole_paths: bool,
}

/// The error for a symbolic link in the path, or a path that leads out of the directory.
fn refused(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => io::Error::other(
            "a symbolic link in a pool or store is not followed; a mount (mount --bind) can take its place",
        ),
        Errno::XDEV => io::Error::other("it leads out of the directory or to another file system"),
        error => error.into(),
    }
}

impl Beneath {
    /// Opens the directory itself by its path. Links in this path are followed.
    pub(super) fn open_root(path: &Path, cross_mounts: bool) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::new(fs::openat(CWD, path, flags, Mode::empty())?, cross_mounts, true)
    }

    /// Opens a directory in this one.
    pub(super) fn open_beneath(&self, path: &Path, cross_mounts: bool) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Self::new(self.open(path, flags, Mode::empty())?, cross_mounts, self.whole_paths)
    }

    fn new(root: OwnedFd, cross_mounts: bool, whole_paths: bool) -> io::Result<Self> {
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        if !cross_mounts {
            resolve |= ResolveFlags::NO_XDEV;
        }
        let device = if cross_mounts { None } else { Some(fs::fstat(&root)?.st_dev) };
        let mut made = Self { root, resolve, device, whole_paths };
        made.whole_paths &= made.try_whole(Path::new("."), OFlags::PATH, Mode::empty()).is_ok();
        Ok(made)
    }

    #[cfg(test)]
    pub(super) fn part_by_part(mut self) -> Self {
        self.whole_paths = false;
        self
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a relative path. A symbolic link is not followed, not even as the last part.
    pub(super) fn open(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let opened = self.open_itself(path, flags, mode)?;
        // PATH with NOFOLLOW opens a link itself. With other flags the kernel has refused the link.
        if flags.contains(OFlags::PATH) && is_link(&fs::fstat(&opened)?) {
            return Err(refused(Errno::LOOP));
        }
        Ok(opened)
    }

    /// The status of a relative path; for a symbolic link, of the link itself. Unlike `stat` by name, this
    /// asks no file system beyond a mount that must not be crossed.
    pub(super) fn stat(&self, path: &Path) -> io::Result<fs::Stat> {
        Ok(fs::fstat(&self.open_itself(path, OFlags::PATH, Mode::empty())?)?)
    }

    fn open_itself(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = if self.whole_paths {
            self.try_whole(path, flags, mode)
        } else {
            self.walk(path, flags, mode)
        };
        opened.map_err(refused)
    }

    /// Opens the directory of a relative path's last part. Returns it with that part.
    pub(super) fn open_parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
        let Some(Component::Normal(name)) = path.components().next_back() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Ok((self.open(parent, flags, Mode::empty())?, Path::new(name)))
    }

    fn try_whole(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        for _ in 1..ATTEMPTS_MAX {
            match fs::openat2(&self.root, path, flags, mode, self.resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => return opened,
            }
        }
        fs::openat2(&self.root, path, flags, mode, self.resolve)
    }

    fn walk(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let mut parts = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => parts.push(name),
                Component::CurDir => {}
                _ => return Err(Errno::XDEV),
            }
        }
        let Some(last) = parts.pop() else {
            return fs::openat(&self.root, ".", flags, mode);
        };
        let on_the_way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for part in parts {
            let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            let next = match fs::openat(from, part, on_the_way, Mode::empty()) {
                // Not every kernel tells a link from a file that is no directory.
                Err(Errno::NOTDIR) if leads_on(from, Path::new(part)) => return Err(Errno::LOOP),
                opened => opened?,
            };
            self.check_device(&next)?;
            at = Some(next);
        }
        let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        let opened = fs::openat(from, last, flags, mode)?;
        self.check_device(&opened)?;
        Ok(opened)
    }

    fn check_device(&self, opened: &OwnedFd) -> rustix::io::Result<()> {
        match self.device {
            Some(device) if fs::fstat(opened)?.st_dev != device => Err(Errno::XDEV),
            _ => Ok(()),
        }
    }
}

fn is_link(stat: &fs::Stat) -> bool {
    fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::Symlink
}

/// True where the name is a symbolic link.
fn leads_on(directory: BorrowedFd<'_>, name: &Path) -> bool {
    fs::statat(directory, name, fs::AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_link(&stat))
}

//! A directory that nobody else can write to or read, and the files in it.
//!
//! Files in it decide which processes are ended and which files are written. So the directory is checked
//! once, and then reached only by its descriptor, never by its path again.
//!
//! Invariants:
//! - The directory belongs to this user, and others have no rights in it. Any other directory is refused and
//!   not repaired, because its content may be another user's.
//! - A file in it is opened without following a link. It must be a plain file of this user with one name.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use marcot::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

/// Permission bits of the directory, and of directories above it that are made for it.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of the files in it.
const FILE_MODE: u32 = 0o600;
/// Permission bits that let others write.
const WRITE_BY_OTHERS: u32 = 0o022;
/// Permission bits that others must not have.
const RIGHTS_OF_OTHERS: u32 = 0o077;

/// A directory that only this user can use.
pub(super) struct PrivateDirectory {
    fd: OwnedFd,
    path: PathBuf,
}

impl PrivateDirectory {
    /// Opens `path`, and creates it where it is missing. `remedy` is the advice in the error message.
    ///
    /// # Errors
    /// `PermissionDenied` for a directory of another user, or one that others can write to; otherwise
    /// what the operating system says.
    pub(super) fn open(path: &Path, remedy: &str) -> Result<Self> {
        let made = std::fs::DirBuilder::new().mode(DIRECTORY_MODE).recursive(true).create(path);
        Self::private(open_own(CWD, path, path, made, remedy)?, path)
    }

    /// Opens the directory `name` in `parent`, and creates both where they are missing. Others may be able to
    /// read the parent, but it must belong to this user too. Otherwise its owner could put another directory
    /// of this user in the place of `name`.
    ///
    /// # Errors
    /// As [`Self::open`], also for the parent.
    pub(super) fn open_below(parent: &Path, name: &str, remedy: &str) -> Result<Self> {
        let made = std::fs::DirBuilder::new().mode(DIRECTORY_MODE).recursive(true).create(parent);
        let parent_fd = open_own(CWD, parent, parent, made, remedy)?;
        let made = rustix::fs::mkdirat(&parent_fd, name, Mode::from_raw_mode(DIRECTORY_MODE));
        let path = parent.join(name);
        let fd = open_own(&parent_fd, Path::new(name), &path, made.map_err(Into::into), remedy)?;
        Self::private(fd, &path)
    }

    /// Removes the permissions of others, who cannot write to it.
    fn private(fd: OwnedFd, path: &Path) -> Result<Self> {
        let stat = fstat(&fd).map_err(|e| failed(path, e.into()))?;
        if stat.st_mode & RIGHTS_OF_OTHERS != 0 {
            let private = Mode::from_raw_mode(DIRECTORY_MODE);
            rustix::fs::fchmod(&fd, private).map_err(|e| failed(path, e.into()))?;
        }
        // The kernel's name of it, to compare with paths of mounts and devices.
        let known = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(Self { fd, path: known.unwrap_or_else(|_| path.to_owned()) })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names in it.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let failed = |e: Errno| failed(&self.path, e.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Reads a small file; `None` where there is none.
    ///
    /// # Errors
    /// `PermissionDenied` for anything but a plain file of this user; `Invalid` for a file that is too long.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let Some(fd) = self.open_file(name, OFlags::RDONLY)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = std::fs::File::from(fd).take(bytes_max + 1).read_to_end(&mut bytes);
        read.map_err(|e| failed(&self.path.join(name), e))?;
        if bytes.len() as u64 > bytes_max {
            let message = format!("{} is too long", self.path.join(name).display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(Some(bytes))
    }

    /// Writes a file, completely or not at all.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = format!("{name}.tmp");
        let failed = |e: io::Error| failed(&self.path.join(name), e);
        self.remove(&temporary);
        let mut file = std::fs::File::from(self.create(&temporary).map_err(|e| failed(e.into()))?);
        file.write_all(bytes).map_err(failed)?;
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name).map_err(|e| failed(e.into()))
    }

    /// Opens a file for reading and writing, with additional `flags`. Creates it where it is missing.
    ///
    /// # Errors
    /// `PermissionDenied` for anything but a plain file of this user.
    pub(super) fn open_or_create(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        match self.create(name) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(&self.path.join(name), error.into())),
        }
        let opened = self.open_file(name, OFlags::RDWR | flags)?;
        opened.ok_or_else(|| failed(&self.path.join(name), Errno::NOENT.into()))
    }

    /// Opens an existing file; `None` where there is none.
    pub(super) fn open_file(&self, name: &str, flags: OFlags) -> Result<Option<OwnedFd>> {
        let path = || self.path.join(name);
        // Without NONBLOCK, opening a FIFO in its place would wait.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(&path(), error.into())),
        };
        let stat = fstat(&fd).map_err(|e| failed(&path(), e.into()))?;
        match fault_of_file(&stat) {
            None => Ok(Some(fd)),
            Some(fault) => {
                let message = format!("{} {fault}", path().display());
                Err(Error::new(ErrorKind::PermissionDenied, message))
            }
        }
    }

    fn create(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.fd, name, flags, Mode::from_raw_mode(FILE_MODE))
    }

    /// True where anything with this name exists.
    pub(super) fn has(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes a file. It is no error if there is none.
    pub(super) fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(self.fd.as_fd(), name, AtFlags::empty());
    }

    /// Creates a directory in it. It is no error if it exists.
    pub(super) fn make_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(&path, error.into())),
        }
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(&path, e.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(path),
            _ => Err(failed(&path, Errno::NOTDIR.into())),
        }
    }

    /// Removes an empty directory. It is no error if there is none.
    pub(super) fn remove_directory(&self, name: &str) {
        let _ = rustix::fs::unlinkat(self.fd.as_fd(), name, AtFlags::REMOVEDIR);
    }
}

/// Opens a directory that belongs to this user and that others cannot write to. `name` is its path from
/// `parent` on, `path` its path in messages, and `made` the result of creating it.
fn open_own(
    parent: impl AsFd,
    name: &Path,
    path: &Path,
    made: io::Result<()>,
    remedy: &str,
) -> Result<OwnedFd> {
    let denied = |fault: &str| {
        let message = format!("{} {fault}; {remedy}", path.display());
        Error::new(ErrorKind::PermissionDenied, message)
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(denied("is not a directory")),
        Err(Errno::ACCESS) => return Err(denied("cannot be used: permission denied")),
        // Why it could not be created says more than that it does not exist.
        Err(error) => return Err(failed(path, made.err().unwrap_or_else(|| error.into()))),
    };
    let stat = fstat(&fd).map_err(|e| failed(path, e.into()))?;
    fault_of_directory(&stat).map_or(Ok(fd), |fault| Err(denied(&fault)))
}

fn fault_of_directory(stat: &Stat) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own {
        return Some(format!("belongs to user {}, not to user {own}", stat.st_uid));
    }
    (stat.st_mode & WRITE_BY_OTHERS != 0).then(|| "can be written to by other users".to_owned())
}

fn fault_of_file(stat: &Stat) -> Option<&'static str> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        Some("is not a plain file")
    } else if stat.st_uid != rustix::process::geteuid().as_raw() {
        Some("belongs to another user")
    } else if stat.st_nlink != 1 {
        Some("has another name elsewhere")
    } else if stat.st_mode & WRITE_BY_OTHERS != 0 {
        Some("can be written to by other users")
    } else {
        None
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::from_io(format!("cannot use {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn open(path: &Path) -> Result<PrivateDirectory> {
        PrivateDirectory::open(path, "set MARCOT_RUN_DIR")
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_is_made_for_its_owner_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        set_mode(&path, 0o755);
        open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_directory_that_others_can_write_to_or_a_link_to_one_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("run");
        std::fs::create_dir(&path).unwrap();
        for mode in [0o777, 0o1777, 0o720] {
            set_mode(&path, mode);
            let refused = open(&path).err().expect("refused");
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            assert!(refused.sentence().to_string().ends_with("; set MARCOT_RUN_DIR"), "{refused}");
        }
        set_mode(&path, 0o700);
        let link = scratch.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(open(&link).err().unwrap().kind(), ErrorKind::PermissionDenied);
        std::fs::write(scratch.path().join("file"), "").unwrap();
        assert!(open(&scratch.path().join("file")).is_err());
    }

    #[test]
    fn below_a_directory_of_others_or_a_link_nothing_is_opened_or_made() {
        let scratch = tempfile::tempdir().unwrap();
        let below = |parent: &Path| PrivateDirectory::open_below(parent, "run", "unset it");
        let parent = scratch.path().join("parent");
        below(&parent).unwrap();
        assert_eq!(std::fs::metadata(parent.join("run")).unwrap().mode() & 0o7777, 0o700);
        set_mode(&parent, 0o755);
        below(&parent).unwrap();
        std::fs::remove_dir(parent.join("run")).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            set_mode(&parent, mode);
            let refused = below(&parent).err().expect("refused");
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            assert!(refused.sentence().to_string().ends_with("; unset it"), "{refused}");
        }
        assert!(!parent.join("run").exists());
        // A readable directory of this user keeps its permissions, even where a link leads to it.
        let home = scratch.path().join("home");
        std::fs::create_dir_all(home.join("run")).unwrap();
        set_mode(&home.join("run"), 0o755);
        let link = scratch.path().join("link");
        symlink(&home, &link).unwrap();
        assert_eq!(below(&link).err().unwrap().kind(), ErrorKind::PermissionDenied);
        assert_eq!(std::fs::metadata(home.join("run")).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn only_plain_files_with_one_name_are_used() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = open(&scratch.path().join("run")).unwrap();
        let precious = scratch.path().join("precious");
        std::fs::write(&precious, "precious").unwrap();
        symlink(&precious, directory.path().join("link")).unwrap();
        std::fs::hard_link(&precious, directory.path().join("hard")).unwrap();
        rustix::fs::mkfifoat(&directory.fd, "pipe", Mode::from_raw_mode(0o600)).unwrap();
        std::fs::write(directory.path().join("loose"), "x").unwrap();
        set_mode(&directory.path().join("loose"), 0o666);
        for name in ["link", "hard", "pipe", "loose"] {
            assert!(directory.read(name, 100).is_err(), "{name}");
            assert!(directory.open_or_create(name, OFlags::APPEND).is_err(), "{name}");
            directory.write(name, b"ours").unwrap();
            assert_eq!(directory.read(name, 100).unwrap().unwrap(), b"ours", "{name}");
        }
        assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
        assert_eq!(directory.read("none", 100).unwrap(), None);
        assert!(directory.read("link", 3).is_err());
    }
}

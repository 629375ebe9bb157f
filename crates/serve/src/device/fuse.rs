//! A FUSE mount with one file, the image, in a directory that only its user can enter.
//!
//! The mount is made directly by root, through `fusermount3` by others. There is no write-back
//! cache: what FUSE has acknowledged, the image has.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session};
use marcot::{Error, Result};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::image_file::{FILE_NAME, ImageFile};
use super::io::DeviceIo;

/// The loop driver closes the file a moment after the device is gone.
const UNMOUNT_WAIT: Duration = Duration::from_millis(20);
const UNMOUNT_ATTEMPTS_MAX: u32 = 250;
const DIRECTORY_MODE: u32 = 0o700;

/// A mounted image.
///
/// Dropping it unmounts lazily: no error is told, and the kernel's users of the file get I/O errors
/// once the process ends.
pub struct FuseMount {
    session: Option<BackgroundSession>,
    directory: PathBuf,
}

impl FuseMount {
    /// Mounts in `directory`, which is created if need be.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound` where the machine has no FUSE; `Io`.
    pub fn new(io: Arc<dyn DeviceIo>, directory: &Path, read_only: bool) -> Result<Self> {
        let failed = |e| Error::from_io(format!("cannot mount in {}", directory.display()), e);
        prepare(directory).map_err(failed)?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("marcot".to_owned()),
            MountOption::Subtype("marcot".to_owned()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            if read_only { MountOption::RO } else { MountOption::RW },
        ];
        let session = Session::new(ImageFile::new(io, read_only), directory, &config)
            .and_then(Session::spawn)
            .map_err(failed)?;
        Ok(Self { session: Some(session), directory: directory.to_owned() })
    }

    /// The file that holds the image.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join(FILE_NAME)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the kernel ask for the file's size.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn refresh_size(&self) -> std::io::Result<u64> {
        std::fs::metadata(self.file()).map(|m| m.len())
    }

    /// Unmounts, after waiting for the kernel to let go of the file; its last requests are answered.
    ///
    /// # Errors
    /// `Busy` where the file stays in use. The mount then stays until it is dropped.
    pub fn unmount(&mut self) -> Result<()> {
        let mut attempts = 1..UNMOUNT_ATTEMPTS_MAX;
        while self.session.is_some() {
            match rustix::mount::unmount(&self.directory, UnmountFlags::empty()) {
                Err(Errno::BUSY) if attempts.next().is_some() => std::thread::sleep(UNMOUNT_WAIT),
                Err(Errno::BUSY) => return Err(self.failed(Errno::BUSY.into())),
                // Unmounted; or not by us (`fusermount3` does that in the session's end); or by
                // somebody else already.
                _ => return self.end(),
            }
        }
        Ok(())
    }

    /// Takes the directory's mount away at once; users of the file keep it until they close it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn unmount_lazily(&mut self) -> Result<()> {
        unmount_dead(&self.directory)?;
        // The session lives until the last user of the file is gone: it must not be waited for.
        drop(self.session.take());
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        match session.umount_and_join() {
            // The kernel's way to say that there is no mount any more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            ended => ended.map_err(|e| self.failed(e)),
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::from_io(format!("cannot unmount {}", self.directory.display()), error)
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if self.session.is_some()
            && let Err(error) = self.unmount_lazily()
        {
            tracing::warn!(%error, "a FUSE mount stays behind");
        }
    }
}

fn prepare(directory: &Path) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let only_ours = std::fs::Permissions::from_mode(DIRECTORY_MODE);
            std::fs::set_permissions(directory, only_ours)
        }
        created => created,
    }
}

/// Removes the mount that a process left in `directory` when it died. None is no error.
///
/// # Errors
/// What the operating system says.
pub fn unmount_dead(directory: &Path) -> Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(directory, flags) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => unmount_as_user(directory),
        Err(errno) => {
            let context = format!("cannot unmount {}", directory.display());
            Err(Error::from_io(context, errno.into()))
        }
    }
}

/// Who is not root unmounts through the helper that mounted.
fn unmount_as_user(directory: &Path) -> Result<()> {
    let failed = |e| Error::from_io(format!("cannot unmount {}", directory.display()), e);
    let helper = std::process::Command::new("fusermount3")
        .args(["-u", "-z", "-q", "--"])
        .arg(directory)
        .stdin(std::process::Stdio::null())
        .status();
    let ended = helper.map_err(failed)?;
    if ended.success() { Ok(()) } else { Err(failed(Errno::PERM.into())) }
}

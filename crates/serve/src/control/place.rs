//! Where the processes that have an image open can be reached, and who they must be.

use std::path::{Path, PathBuf};

use marcot::{ImageId, Pool};
use rustix::process::geteuid;

/// The place of an image's control sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    directory: PathBuf,
    /// Which image it is: owner and client compare it before a command is carried out.
    image: String,
    /// Only processes of this user, and of root, are listened to and spoken to.
    user: u32,
}

impl Place {
    /// The place of an image of `pool`: its sockets belong to the user to whom the pool belongs.
    #[must_use]
    pub fn of(pool: &Pool, image: ImageId) -> Self {
        let owner = rustix::fs::stat(pool.directory()).map(|stat| stat.st_uid);
        // Of a pool whose owner cannot be told, no socket is used: nobody has this number.
        let user = owner.unwrap_or(u32::MAX);
        Self {
            directory: pool.image_directory(image),
            image: format!("{}/{image}", pool.id()),
            user,
        }
    }

    /// A place in `directory` for something that both sides call `image`, of this process's user.
    pub fn new(directory: impl Into<PathBuf>, image: impl Into<String>) -> Self {
        let user = geteuid().as_raw();
        Self { directory: directory.into(), image: image.into(), user }
    }

    /// The same place in the hands of `user`.
    #[must_use]
    pub fn of_user(self, user: u32) -> Self {
        Self { user, ..self }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn user(&self) -> u32 {
        self.user
    }

    /// True where this process may listen and ask here: in its own user's pools. What lies in the
    /// pool of another user is that user's claim, whoever we are.
    pub(crate) fn is_own(&self) -> bool {
        self.user == geteuid().as_raw()
    }
}

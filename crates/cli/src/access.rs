//! The way to an open image, whoever has it open.
//!
//! An image has one owner. Where there is none, this process becomes it; where another process has
//! it (a device, a server, a long command), that one is asked over its control socket. Either side
//! may come and go in between, so both are tried in turn for a while.

use std::time::Duration;

use marcot::{
    BlockDevice, Command, ErrorKind, Image, ImageId, ParentInfo, Pool, Reply, Result, Store,
};
use marcot_serve::control;
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};

/// How often to try again when the owner changes under us.
const ATTEMPTS_MAX: u32 = 100;
/// Between two attempts. Short commands hold an image for a few milliseconds.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);

/// Receives (done, total).
pub type Report<'a> = &'a mut dyn FnMut(u64, u64);

/// Runs one command on an image, here or at its owner.
///
/// # Errors
/// Those of the command; `Owned` if an owner exists that cannot be reached.
pub fn run(pool: &Pool, image: ImageId, command: &Command, progress: Report<'_>) -> Result<Reply> {
    retry(|| match pool.open(image) {
        Ok(opened) => run_here(opened, command, progress).map(Some),
        Err(error) if error.kind() == ErrorKind::Owned => ask_owner(pool, image, command, progress),
        Err(error) => Err(error),
    })
    .unwrap_or_else(|| Err(unreachable_owner(pool, image)))
}

fn run_here(image: Image, command: &Command, progress: Report<'_>) -> Result<Reply> {
    let mut image: Box<dyn BlockDevice> = Box::new(image);
    let outcome = image.execute(command, progress);
    // What the command did is durable when it answers; closing only saves the next one time.
    let closed = image.close();
    outcome.and_then(|reply| closed.map(|()| reply))
}

/// `None` if no owner listens: it has gone, or has not come up yet.
fn ask_owner(
    pool: &Pool,
    image: ImageId,
    command: &Command,
    progress: Report<'_>,
) -> Result<Option<Reply>> {
    match control::Client::connect(&pool.image_directory(image)) {
        Ok(mut client) => client.try_ask(command, progress),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tries until there is an outcome; `None` when there was none in time.
fn retry<T>(mut attempt: impl FnMut() -> Result<Option<T>>) -> Option<Result<T>> {
    for left in (0..ATTEMPTS_MAX).rev() {
        match attempt() {
            Ok(Some(value)) => return Some(Ok(value)),
            Err(error) => return Some(Err(error)),
            Ok(None) if left > 0 => std::thread::sleep(ATTEMPT_INTERVAL),
            Ok(None) => {}
        }
    }
    None
}

/// Tries what needs an image for itself until no other process has the image open, for a while.
///
/// # Errors
/// Those of `attempt`; `Owned` if the image stays open elsewhere.
pub fn when_free<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = None;
    retry(|| match attempt() {
        Err(error) if error.kind() == ErrorKind::Owned => {
            last = Some(error);
            Ok(None)
        }
        outcome => outcome.map(Some),
    })
    .unwrap_or_else(|| Err(last.unwrap_or_else(|| marcot::Error::new(ErrorKind::Owned, "in use"))))
}

fn unreachable_owner(pool: &Pool, image: ImageId) -> marcot::Error {
    let pid = pool.info(image).ok().and_then(|info| info.owned_by);
    let who = pid.map_or_else(|| "another process".to_string(), |pid| format!("process {pid}"));
    marcot::Error::new(
        ErrorKind::Owned,
        format!("the image is open in {who}, which does not answer commands"),
    )
}

/// Runs one command that changes nothing: at the owner where there is one, else on what is on disk,
/// so that it works in a pool that can only be read.
///
/// # Errors
/// Those of the command.
pub fn inspect(pool: &Pool, image: ImageId, command: &Command) -> Result<Reply> {
    match control::ask(&pool.image_directory(image), command, &mut |_, _| {}) {
        Err(error) if owner_out_of_reach(error.kind()) => {}
        outcome => return outcome,
    }
    let mut image: Box<dyn BlockDevice> = Box::new(pool.open_read_only(image)?);
    image.execute(command, &mut |_, _| {})
}

/// Nobody listens, somebody else's owner listens, or it went away while it was asked.
fn owner_out_of_reach(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::Interrupted)
}

/// An image to which commands can be given one after the other.
pub struct Access {
    pool: Pool,
    image: ImageId,
    usage: String,
    way: Way,
}

enum Way {
    /// Open in this process, which answers commands of others meanwhile.
    Here(HostHandle),
    /// Open in another process.
    Owner(control::Client),
}

impl Access {
    /// Opens an image for a longer stay, or reaches its owner.
    ///
    /// # Errors
    /// As [`run`].
    pub fn open(pool: &Pool, image: ImageId, usage: &str) -> Result<Self> {
        let way = find_way(pool, image, usage)?;
        Ok(Self { pool: pool.clone(), image, usage: usage.to_string(), way })
    }

    /// Runs one command. Where the owner goes away before it begins, the next one is asked.
    ///
    /// # Errors
    /// Those of the command.
    pub fn execute(&mut self, command: &Command, progress: Report<'_>) -> Result<Reply> {
        for _ in 0..ATTEMPTS_MAX {
            let client = match &mut self.way {
                Way::Here(host) => return host.execute(command.clone(), progress),
                Way::Owner(client) => client,
            };
            if let Some(reply) = client.try_ask(command, progress)? {
                return Ok(reply);
            }
            self.way = find_way(&self.pool, self.image, &self.usage)?;
        }
        Err(unreachable_owner(&self.pool, self.image))
    }

    /// Lets go of the image.
    ///
    /// # Errors
    /// Those of closing it.
    pub fn close(self) -> Result<()> {
        match self.way {
            Way::Here(host) => host.stop(),
            Way::Owner(_) => Ok(()),
        }
    }
}

fn find_way(pool: &Pool, image: ImageId, usage: &str) -> Result<Way> {
    retry(|| match pool.open(image) {
        Ok(opened) => host(pool, image, opened, usage).map(|host| Some(Way::Here(host))),
        Err(error) if error.kind() == ErrorKind::Owned => {
            match control::Client::connect(&pool.image_directory(image)) {
                Ok(client) => Ok(Some(Way::Owner(client))),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    })
    .unwrap_or_else(|| Err(unreachable_owner(pool, image)))
}

fn host(pool: &Pool, id: ImageId, image: Image, usage: &str) -> Result<HostHandle> {
    let options = HostOptions {
        name: id.to_string(),
        usage: Some(usage.to_string()),
        control_directory: Some(pool.image_directory(id)),
    };
    ImageHost::start(Box::new(image), options)
}

/// Tells the owner of a parent, if it has one, that a child is gone: a removed snapshot that was kept
/// for that child can go now. Where nobody has the parent open, the engine has seen to it.
pub fn child_is_gone(store: &Store, parent: Option<&ParentInfo>) {
    let Some(parent) = parent.filter(|parent| parent.trashed) else { return };
    let Ok(pool) = store.pool_by_id(parent.pool_id) else { return };
    // What fails here is done by gc.
    let _ = control::ask(&pool.image_directory(parent.image_id), &Command::Tidy, &mut |_, _| {});
}

/// Flattens an image part by part, so that its users are served and other commands can be given to
/// it meanwhile. Stopped half-way, it leaves a clone with less to copy.
///
/// # Errors
/// As [`run`].
pub fn flatten(pool: &Pool, image: ImageId, progress: Report<'_>) -> Result<()> {
    let mut access = Access::open(pool, image, "command")?;
    let mut total = 0;
    while let Reply::Copied { left_blocks, more: true } =
        access.execute(&Command::FlattenPart, &mut |_, _| {})?
    {
        total = total.max(left_blocks);
        progress(total - left_blocks, total.max(1));
    }
    access.execute(&Command::Flatten, progress)?;
    access.close()
}

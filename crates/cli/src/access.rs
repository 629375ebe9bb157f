//! The way to an open image, whoever has it open.
//!
//! An image has one owner. Where there is none, this process becomes it; where another process has
//! it (a device, a server, a long command), that one is asked over its control socket. Either side
//! may come and go in between, so both are tried in turn for a while.

use std::time::Duration;

use marcot::{BlockDevice, Command, ErrorKind, Image, ImageId, Pool, Reply, Result};
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
        Ok(mut client) => client.ask(command, progress).map(Some),
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
pub enum Access {
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
        retry(|| match pool.open(image) {
            Ok(opened) => host(pool, image, opened, usage).map(|host| Some(Self::Here(host))),
            Err(error) if error.kind() == ErrorKind::Owned => {
                match control::Client::connect(&pool.image_directory(image)) {
                    Ok(client) => Ok(Some(Self::Owner(client))),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        })
        .unwrap_or_else(|| Err(unreachable_owner(pool, image)))
    }

    /// Runs one command.
    ///
    /// # Errors
    /// Those of the command.
    pub fn execute(&mut self, command: &Command, progress: Report<'_>) -> Result<Reply> {
        match self {
            Self::Here(host) => host.execute(command.clone(), progress),
            Self::Owner(client) => client.ask(command, progress),
        }
    }

    /// Lets go of the image.
    ///
    /// # Errors
    /// Those of closing it.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Here(host) => host.stop(),
            Self::Owner(_) => Ok(()),
        }
    }
}

fn host(pool: &Pool, id: ImageId, image: Image, usage: &str) -> Result<HostHandle> {
    let options = HostOptions {
        name: id.to_string(),
        usage: Some(usage.to_string()),
        control_directory: Some(pool.image_directory(id)),
    };
    ImageHost::start(Box::new(image), options)
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

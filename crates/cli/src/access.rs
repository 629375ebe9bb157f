//! The way to an open image, whoever has it open.
//!
//! An image has one owner. Where there is none, this process becomes it; where another process has
//! it (a device, a server, a long command), that one is asked over its control socket. Either side
//! may come and go in between, so both are tried in turn for a while.
//!
//! What needs an image or snapshot for itself asks those who only keep it open, without using it, to
//! close it ([`for_itself`]).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use marcot::{
    BlockDevice, Command, Error, ErrorKind, Image, ImageId, ParentInfo, Pool, Reply, Result, Store,
};
use marcot_serve::control::{self, Client, Interrupt, Patience, Place};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};

use crate::output::warn;
use crate::{program, signals, spec};

/// How often to try again when the owner changes under us.
const ATTEMPTS_MAX: u32 = 100;
/// Between two attempts. Short commands hold an image for a few milliseconds.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);
/// How often an image is tried that somebody has open who does not listen, being at its end.
const FREE_ATTEMPTS_MAX: u32 = 40;
/// As that, for a snapshot: who reads one and does not listen may go on for long.
const UNREAD_ATTEMPTS_MAX: u32 = 4;

/// Receives (done, total).
pub type Report<'a> = &'a mut dyn FnMut(u64, u64);

/// That of commands that only the owner can carry out.
fn patience() -> Patience {
    Patience { interrupt: Interrupt::when(signals::stop_asked), ..Patience::default() }
}

fn patience_to_look() -> Patience {
    Patience { interrupt: Interrupt::when(signals::stop_asked), ..Patience::to_look() }
}

/// Runs one command on an image, here or at its owner.
///
/// # Errors
/// Those of the command; `Owned` if an owner exists that cannot be reached.
pub fn run(pool: &Pool, image: ImageId, command: &Command, progress: Report<'_>) -> Result<Reply> {
    // `Busy` tells of somebody who reads the snapshot in question.
    for_itself(pool, image, || run_once(pool, image, command, progress))
}

fn run_once(pool: &Pool, image: ImageId, command: &Command, progress: Report<'_>) -> Result<Reply> {
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
    match Client::connect(&Place::of(pool, image), &patience()) {
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
            Ok(None) if signals::stop_asked() => return Some(Err(interrupted())),
            Ok(None) if left > 0 => std::thread::sleep(ATTEMPT_INTERVAL),
            Ok(None) => {}
        }
    }
    None
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

/// Tries what needs an image (`Owned`) or a snapshot of it (`Busy`) for itself. Who keeps that open
/// without using it closes it; who is about to close it is waited for.
///
/// # Errors
/// Those of `attempt`; `Owned` or `Busy`, with who uses it, where somebody does.
pub fn for_itself<T>(pool: &Pool, image: ImageId, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for_itself_within(pool, image, FREE_ATTEMPTS_MAX, attempt)
}

/// True for a refusal of the operating system's, such as a lease on a file: nobody can give way.
fn is_of_system(error: &Error) -> bool {
    let mut below = std::error::Error::source(error);
    while let Some(error) = below {
        if error.is::<std::io::Error>() {
            return true;
        }
        below = error.source();
    }
    false
}

/// As [`for_itself`], for a server, where others wait meanwhile: an image that cannot be had at once is
/// not waited for.
///
/// # Errors
/// As [`for_itself`].
pub fn for_itself_at_once<T>(
    pool: &Pool,
    image: ImageId,
    attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    for_itself_within(pool, image, UNREAD_ATTEMPTS_MAX, attempt)
}

fn for_itself_within<T>(
    pool: &Pool,
    image: ImageId,
    free_attempts_max: u32,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut alone = 0;
    for _ in 0..ATTEMPTS_MAX {
        let error = match attempt() {
            Err(error)
                if matches!(error.kind(), ErrorKind::Owned | ErrorKind::Busy)
                    && !is_of_system(&error) =>
            {
                error
            }
            outcome => return outcome,
        };
        let (holders, attempts_max) = match error.kind() {
            ErrorKind::Owned => (Holders::Owner, free_attempts_max),
            _ => (Holders::Readers, UNREAD_ATTEMPTS_MAX),
        };
        match ask_to_give_way(pool, image, holders)? {
            Given::Way => {}
            Given::Refusal(why) => return Err(Error::new(error.kind(), why)),
            Given::Use(by) => {
                let what = match error.kind() {
                    ErrorKind::Owned => format!("{} is in use", label(pool, image)),
                    _ => error.message().to_string(),
                };
                return Err(Error::new(error.kind(), format!("{what} by {by}")));
            }
            Given::Nothing if alone >= attempts_max => return Err(error),
            Given::Nothing => {
                alone += 1;
                std::thread::sleep(ATTEMPT_INTERVAL);
            }
        }
    }
    Err(unreachable_owner(pool, image))
}

/// Tries what an image's owner can be in the way of, until it is not, for a while. It goes away, or it
/// comes to know what is going to be done.
///
/// # Errors
/// Those of `attempt`.
pub fn when_free<T>(
    pool: &Pool,
    image: ImageId,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut last = None;
    retry(|| match attempt() {
        Err(error) if error.kind() == ErrorKind::Owned => {
            last = Some(error);
            ask_to_give_way(pool, image, Holders::Owner).map(|_| None)
        }
        outcome => outcome.map(Some),
    })
    .unwrap_or_else(|| Err(last.unwrap_or_else(|| unreachable_owner(pool, image))))
}

/// Has an image closed that somebody only keeps open, and waits for who is about to close it. Where it
/// is in use, it stays so.
pub fn let_idle_go(pool: &Pool, image: ImageId) {
    let _ = for_itself(pool, image, || match pool.info(image)?.owned_by {
        Some(_) => Err(Error::new(ErrorKind::Owned, "in use")),
        None => Ok(()),
    });
}

/// Has every image and snapshot of a pool closed that somebody only keeps open.
///
/// # Errors
/// Those of listing the images.
pub fn let_all_idle_go(pool: &Pool) -> Result<()> {
    let mut namespaces = pool.namespaces()?;
    namespaces.push(String::new());
    for namespace in namespaces {
        for (_, image) in pool.images(&namespace)? {
            for holders in [Holders::Owner, Holders::Readers] {
                ask_to_give_way(pool, image, holders)?;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Holders {
    Owner,
    /// Those who have the image, or a snapshot of it, open for reading only.
    Readers,
}

/// What came of asking others to give way.
enum Given {
    /// Somebody did, or is gone.
    Way,
    /// Somebody uses it: who.
    Use(String),
    /// Whoever has it cannot be asked: why.
    Refusal(String),
    /// There was nobody to ask.
    Nothing,
}

/// # Errors
/// `Interrupted` by the user.
fn ask_to_give_way(pool: &Pool, image: ImageId, holders: Holders) -> Result<Given> {
    let place = Place::of(pool, image);
    let found = match holders {
        Holders::Owner => Client::connect(&place, &patience_to_look()).map(|client| vec![client]),
        Holders::Readers => Client::connect_readers(&place, &patience_to_look()),
    };
    let clients = match found {
        Ok(clients) => clients,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Given::Nothing),
        Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
        Err(error) => return Ok(Given::Refusal(error.to_string())),
    };
    let mut given = Given::Nothing;
    for mut client in clients {
        match client.try_ask(&Command::GiveWay, &mut |_, _| {}) {
            Ok(_) => given = Given::Way,
            Err(_) if signals::stop_asked() => return Err(interrupted()),
            Err(error) if matches!(given, Given::Nothing) => {
                given = match error.kind() {
                    ErrorKind::Busy => Given::Use(error.to_string()),
                    _ => Given::Refusal(error.to_string()),
                };
            }
            Err(_) => {}
        }
    }
    Ok(given)
}

/// The image as it is called now.
fn label(pool: &Pool, image: ImageId) -> String {
    match pool.info(image) {
        Ok(info) => spec::show(pool.name(), &info.namespace, &info.name, ""),
        Err(_) => "the image".to_string(),
    }
}

fn unreachable_owner(pool: &Pool, image: ImageId) -> Error {
    let pid = pool.info(image).ok().and_then(|info| info.owned_by);
    let who = pid.map_or_else(|| "another process".to_string(), |pid| format!("process {pid}"));
    Error::new(
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
    if let Some(reply) = look(pool, image, command)? {
        return Ok(reply);
    }
    let mut image: Box<dyn BlockDevice> = Box::new(pool.open_read_only(image)?);
    image.execute(command, &mut |_, _| {})
}

/// Asks the owner for what can also be seen on disk; `None` where nobody listens, somebody else's
/// owner listens, or it does not answer, of which the user is told.
///
/// # Errors
/// Those of the command; `Interrupted` by the user.
pub fn look(pool: &Pool, image: ImageId, command: &Command) -> Result<Option<Reply>> {
    let outcome =
        Client::connect(&Place::of(pool, image), &patience_to_look()).and_then(|mut client| {
            let pid = client.pid();
            if silent().contains(&pid) {
                return Ok(None);
            }
            let outcome = client.try_ask(command, &mut |_, _| {});
            if pid != 0 && outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Owned) {
                silent().push(pid);
            }
            outcome
        });
    match outcome {
        Err(error) if signals::stop_asked() => Err(error),
        Err(error) if error.kind() == ErrorKind::Owned => {
            let program = program::name(&std::env::args().next().unwrap_or_default());
            warn(program, &format!("{error}; this is what is on disk"));
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let program = program::name(&std::env::args().next().unwrap_or_default());
            warn(program, &error.to_string());
            Ok(None)
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Interrupted) => {
            Ok(None)
        }
        outcome => outcome,
    }
}

/// Processes that have not answered this one. Nobody waits twice for the same server, however many
/// images it has open.
fn silent() -> std::sync::MutexGuard<'static, Vec<u32>> {
    static SILENT: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    SILENT.lock().unwrap_or_else(PoisonError::into_inner)
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
    Owner(Client),
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

    /// Runs one command. Where the owner goes away before it begins, the next one is asked; also where
    /// it goes away later, if the command changes nothing.
    ///
    /// # Errors
    /// Those of the command.
    pub fn execute(&mut self, command: &Command, progress: Report<'_>) -> Result<Reply> {
        for _ in 0..ATTEMPTS_MAX {
            let client = match &mut self.way {
                Way::Here(host) => return host.execute(command.clone(), progress),
                Way::Owner(client) => client,
            };
            match client.try_ask(command, progress) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(error) if may_be_repeated(command, &error) => {}
                Err(error) => return Err(error),
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

/// True where an answer was lost that another owner can give as well.
fn may_be_repeated(command: &Command, error: &Error) -> bool {
    let reads = matches!(
        command,
        Command::Read { .. }
            | Command::Extents { .. }
            | Command::Diff { .. }
            | Command::Usage
            | Command::Status
    );
    reads && error.kind() == ErrorKind::Interrupted && !signals::stop_asked()
}

fn find_way(pool: &Pool, image: ImageId, usage: &str) -> Result<Way> {
    retry(|| match pool.open(image) {
        Ok(opened) => host(pool, image, opened, usage).map(|host| Some(Way::Here(host))),
        Err(error) if error.kind() == ErrorKind::Owned => {
            match Client::connect(&Place::of(pool, image), &patience()) {
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
        name: image.label().to_string(),
        usage: Some(usage.to_string()),
        control: Some(Place::of(pool, id)),
        ..HostOptions::default()
    };
    ImageHost::start(Box::new(image), options)
}

/// Tells the owner of a parent, if it has one, that a child is gone: a removed snapshot that was kept
/// for that child can go now. Where nobody has the parent open, the engine has seen to it.
pub fn child_is_gone(store: &Store, parent: Option<&ParentInfo>) {
    let Some(parent) = parent.filter(|parent| parent.trashed) else { return };
    let Ok(pool) = store.pool_by_id(parent.pool_id) else { return };
    tell(&pool, parent.image_id, &Command::Tidy);
}

/// Gives the owner of an image, if there is one, a command that saves later work. What fails here is
/// found out by who depends on it, or done by gc.
pub fn tell(pool: &Pool, image: ImageId, command: &Command) {
    let place = Place::of(pool, image);
    let _ = control::ask(&place, command, &patience_to_look(), &mut |_, _| {});
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

//! Running commands on an image, whoever has it open.
//!
//! An image has one owner. If it has none, this process becomes the owner. If another process owns it (a
//! device, a server, a long command), the command is sent over its control socket. Owners may come and
//! go in between, so both ways are tried in turn for a while ([`crate::retry`]).
//!
//! An operation that needs an image or snapshot for itself asks processes that keep it open without using it to
//! close it ([`Image::for_itself`]).
//!
//! The commands of the control socket and their replies stay in this crate: the results of operations are
//! typed ([`Answer`]).

use marcot::{DiffExtent, Error, ErrorKind, Extent, FlattenPart, Result, SnapId, UsageRow};
use marcot_serve::control::{
    self, Client as Connection, Command, Execute, Patience, Place, Reply, Watcher,
};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};

use crate::image::Image;
use crate::options::Warning;
use crate::retry::{Given, Holders, Wait, interrupted};

/// Receives (done, total).
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// The error of a reply that is not of the kind that the command has.
pub(crate) fn strange_reply() -> Error {
    Error::new(ErrorKind::Io, "the image's owner gave an answer that does not fit the question")
}

/// The content of a reply, if it is of the expected kind.
pub(crate) trait Answer: Sized {
    /// `None`: the reply is of another kind.
    fn of(reply: Reply) -> Option<Self>;

    /// # Errors
    /// `Io` for a reply of another kind.
    fn from_reply(reply: Reply) -> Result<Self> {
        Self::of(reply).ok_or_else(strange_reply)
    }
}

/// For commands without a result: any reply means that the command is done.
impl Answer for () {
    fn of(_: Reply) -> Option<Self> {
        Some(())
    }
}

macro_rules! answers {
    ($($type:ty: $reply:pat => $value:expr;)*) => {$(
        impl Answer for $type {
            fn of(reply: Reply) -> Option<Self> {
                match reply {
                    $reply => Some($value),
                    _ => None,
                }
            }
        }
    )*};
}

/// Converts rows of a reply to the engine's types.
fn typed<T, U: From<T>>(rows: Vec<T>) -> Vec<U> {
    rows.into_iter().map(U::from).collect()
}

/// Bytes that were given back to the file system.
pub(crate) struct Reclaimed(pub u64);

answers! {
    SnapId: Reply::Snapshot { id } => SnapId(id);
    Vec<UsageRow>: Reply::Usage { rows } => typed(rows);
    Vec<DiffExtent>: Reply::Diff { extents } => typed(extents);
    Vec<u8>: Reply::Data { data } => data;
    Vec<Extent>: Reply::Extents { extents } => typed(extents);
    Vec<Watcher>: Reply::Status { watchers } => watchers;
    FlattenPart: Reply::Copied { left_blocks, more, waits } => FlattenPart { left_blocks, more, waits };
    Reclaimed: Reply::Reclaimed { bytes } => Reclaimed(bytes);
}

impl Image {
    /// The patience of commands that only the owner can carry out.
    fn patience(&self) -> Patience {
        Patience { interrupt: self.client().options().interrupt.clone(), ..Patience::default() }
    }

    fn patience_to_look(&self) -> Patience {
        Patience { interrupt: self.client().options().interrupt.clone(), ..Patience::to_look() }
    }

    fn place(&self) -> Place {
        Place::of(self.engine_pool(), self.id())
    }

    /// Runs one command on the image, here or at its owner.
    ///
    /// # Errors
    /// Those of the command; `Owned` if an owner exists that cannot be reached.
    pub(crate) fn run<T: Answer>(&self, command: &Command, progress: Progress<'_>) -> Result<T> {
        // `Busy` means that a process reads the snapshot in question.
        let reply = self.for_itself(|| self.run_once(command, progress))?;
        T::from_reply(reply)
    }

    fn run_once(&self, command: &Command, progress: Progress<'_>) -> Result<Reply> {
        let outcome =
            self.client().retry().until_some(|| match self.engine_pool().open(self.id()) {
                Ok(opened) => run_here(opened, command, progress).map(Some),
                Err(error) if error.kind() == ErrorKind::Owned => self.ask_owner(command, progress),
                Err(error) => Err(error),
            });
        outcome?.ok_or_else(|| self.unreachable_owner())
    }

    /// `None` if no owner listens: it has gone, or does not listen yet.
    fn ask_owner(&self, command: &Command, progress: Progress<'_>) -> Result<Option<Reply>> {
        match Connection::connect(&self.place(), &self.patience()) {
            Ok(mut owner) => owner.try_ask(command, progress),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Runs an attempt that needs the image (else `Owned`) or a snapshot of it (else `Busy`) for itself. A
    /// process that keeps it open without using it is asked to close it, and one that is about to close it is
    /// waited for.
    ///
    /// # Errors
    /// Those of `attempt`; `Owned` or `Busy`, naming the user, if it is in use.
    pub(crate) fn for_itself<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.for_itself_within(Wait::ForCommands, attempt)
    }

    /// As [`Self::for_itself`], for a server whose clients wait meanwhile: hardly waits for an image that is
    /// not free at once.
    ///
    /// # Errors
    /// As [`Self::for_itself`].
    pub(crate) fn for_itself_at_once<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.for_itself_within(Wait::AtOnce, attempt)
    }

    fn for_itself_within<T>(&self, wait: Wait, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let in_use = || format!("{} is in use", self.label_now());
        let ask = |holders| self.ask_to_give_way(holders);
        let outcome = self.client().retry().for_itself(wait, attempt, ask, in_use);
        outcome?.ok_or_else(|| self.unreachable_owner())
    }

    /// Repeats an attempt that the image's owner can be in the way of, for a while. The owner is asked to
    /// close the image. If it keeps it open, the attempt itself has to notify it.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub(crate) fn when_free<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let ask = || self.ask_to_give_way(Holders::Owner);
        let outcome = self.client().retry().when_free(attempt, ask);
        outcome?.ok_or_else(|| self.unreachable_owner())
    }

    /// Asks a process that keeps the image open without using it to close it, and waits for one that is about
    /// to close it. If the image is in use, it stays open.
    pub(crate) fn let_idle_go(&self) {
        let _ = self.for_itself(|| match self.engine_pool().info(self.id())?.owned_by {
            Some(_) => Err(Error::new(ErrorKind::Owned, "in use")),
            None => Ok(()),
        });
    }

    /// # Errors
    /// `Interrupted` by the caller.
    pub(crate) fn ask_to_give_way(&self, holders: Holders) -> Result<Given> {
        let (place, patience) = (self.place(), self.patience_to_look());
        let found = match holders {
            Holders::Owner => Connection::connect(&place, &patience).map(|owner| vec![owner]),
            Holders::Readers => Connection::connect_readers(&place, &patience),
        };
        let others = match found {
            Ok(others) => others,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Given::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => return Ok(Given::Refusal(error.sentence().to_string())),
        };
        let mut given = Given::Nothing;
        for mut other in others {
            match other.try_ask(&Command::GiveWay, &mut |_, _| {}) {
                Ok(_) => given = Given::Way,
                Err(_) if patience.interrupt.came() => return Err(interrupted()),
                Err(error) if matches!(given, Given::Nothing) => {
                    given = match error.kind() {
                        ErrorKind::Busy => Given::Use(error.sentence().to_string()),
                        _ => Given::Refusal(error.sentence().to_string()),
                    };
                }
                Err(_) => {}
            }
        }
        Ok(given)
    }

    fn unreachable_owner(&self) -> Error {
        let pid = self.engine_pool().info(self.id()).ok().and_then(|info| info.owned_by);
        let who = pid.map_or_else(|| "another process".to_string(), |pid| format!("process {pid}"));
        Error::new(
            ErrorKind::Owned,
            format!("the image is open in {who}, which does not answer commands"),
        )
    }

    /// Runs one command that changes nothing: at the owner if there is one, else on the files on disk,
    /// so that it works in a read-only pool.
    ///
    /// # Errors
    /// Those of the command.
    pub(crate) fn inspect<T: Answer>(&self, command: &Command) -> Result<T> {
        if let Some(answer) = self.look(command)? {
            return Ok(answer);
        }
        let mut image = self.engine_pool().open_read_only(self.id())?;
        T::from_reply(image.execute(command, &mut |_, _| {})?)
    }

    /// Asks the owner for information that is also on disk. Returns `None` if nobody listens, if the listener
    /// belongs to another user, or if it does not answer; in the last two cases, the caller gets a warning.
    ///
    /// # Errors
    /// Those of the command; `Interrupted` by the caller.
    pub(crate) fn look<T: Answer>(&self, command: &Command) -> Result<Option<T>> {
        let (client, patience) = (self.client(), self.patience_to_look());
        let outcome = Connection::connect(&self.place(), &patience).and_then(|mut owner| {
            let pid = owner.pid();
            if client.silent().contains(&pid) {
                return Ok(None);
            }
            let outcome = owner.try_ask(command, &mut |_, _| {});
            if pid != 0 && outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Owned) {
                client.silent().push(pid);
            }
            outcome
        });
        match outcome {
            // It has gone, whether somebody interrupts this process or not.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(_) if patience.interrupt.came() => Err(interrupted()),
            Err(error) if error.kind() == ErrorKind::Owned => {
                client.options().warn(&Warning::OwnerSilent(error));
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                client.options().warn(&Warning::OwnerRefused(error));
                Ok(None)
            }
            // It went away before it answered.
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            outcome => outcome?.map(T::from_reply).transpose(),
        }
    }

    /// Sends the owner of the image, if there is one, a command that saves later work. If it fails, a later
    /// operation that depends on it notices, or gc does the work.
    pub(crate) fn tell(&self, command: &Command) {
        let _ = control::ask(&self.place(), command, &self.patience_to_look(), &mut |_, _| {});
    }

    /// Opens the image for this process alone, or connects to its owner.
    ///
    /// # Errors
    /// Those of opening it; `Owned` if an owner exists that cannot be reached.
    pub(crate) fn reach(&self) -> Result<Reached> {
        let outcome =
            self.client().retry().until_some(|| match self.engine_pool().open(self.id()) {
                Ok(opened) => Ok(Some(Reached::Here(Box::new(opened)))),
                Err(error) if error.kind() == ErrorKind::Owned => {
                    match Connection::connect(&self.place(), &self.patience()) {
                        Ok(owner) => Ok(Some(Reached::Owner(owner))),
                        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                        Err(error) => Err(error),
                    }
                }
                Err(error) => Err(error),
            });
        outcome?.ok_or_else(|| self.unreachable_owner())
    }

    fn find_way(&self, usage: &str) -> Result<Way> {
        let outcome =
            self.client().retry().until_some(|| match self.engine_pool().open(self.id()) {
                Ok(opened) => self.host(opened, usage).map(|host| Some(Way::Here(host))),
                Err(error) if error.kind() == ErrorKind::Owned => {
                    match Connection::connect(&self.place(), &self.patience()) {
                        Ok(owner) => Ok(Some(Way::Owner(owner))),
                        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                        Err(error) => Err(error),
                    }
                }
                Err(error) => Err(error),
            });
        outcome?.ok_or_else(|| self.unreachable_owner())
    }

    fn host(&self, image: marcot::Image, usage: &str) -> Result<HostHandle> {
        let options = HostOptions {
            name: image.label().to_string(),
            usage: Some(usage.to_string()),
            control: Some(self.place()),
            ..HostOptions::default()
        };
        ImageHost::start(Box::new(image), options)
    }
}

fn run_here(mut image: marcot::Image, command: &Command, progress: Progress<'_>) -> Result<Reply> {
    let outcome = image.execute(command, progress);
    // The command's changes are durable when it answers. Closing only saves the next owner time.
    let closed = image.close();
    outcome.and_then(|reply| closed.map(|()| reply))
}

/// An image that nobody else can use meanwhile, or whose owner can be asked. It is not served.
pub(crate) enum Reached {
    /// Open in this process, and in no other one.
    Here(Box<marcot::Image>),
    /// Open in another process.
    Owner(Connection),
}

impl Reached {
    /// Runs a command. It is not repeated at another owner.
    ///
    /// # Errors
    /// Those of the command; `Interrupted` if the owner has gone.
    pub fn ask<T: Answer>(&mut self, command: &Command) -> Result<T> {
        let nothing: Progress<'_> = &mut |_, _| {};
        T::from_reply(match self {
            Self::Here(image) => image.execute(command, nothing)?,
            Self::Owner(owner) => owner.ask(command, nothing)?,
        })
    }

    /// Closes the image. Its changes are durable already.
    pub fn close(self) {
        if let Self::Here(image) = self
            && let Err(error) = image.close()
        {
            tracing::debug!(error = %error.sentence(), "an image was not closed");
        }
    }
}

/// An image that is open for a series of commands.
pub(crate) struct Access {
    image: Image,
    usage: &'static str,
    way: Way,
}

enum Way {
    /// Open in this process, which answers commands of other processes meanwhile.
    Here(HostHandle),
    /// Open in another process.
    Owner(Connection),
}

impl Access {
    /// Opens an image for a series of commands, or connects to its owner. `status` shows `usage` as the
    /// purpose.
    ///
    /// # Errors
    /// As [`Image::run`].
    pub fn open(image: &Image, usage: &'static str) -> Result<Self> {
        Ok(Self { image: image.clone(), usage, way: image.find_way(usage)? })
    }

    /// True if the image is open in this process, for this user alone.
    pub fn is_here(&self) -> bool {
        matches!(self.way, Way::Here(_))
    }

    /// Runs one command. If the owner ends before the command begins, the next owner is asked. The same holds
    /// if it ends later, when the command changes nothing.
    ///
    /// # Errors
    /// Those of the command.
    pub fn execute<T: Answer>(&mut self, command: &Command, progress: Progress<'_>) -> Result<T> {
        let Self { image, usage, way } = self;
        let client = image.client();
        let outcome = client.retry().at_once(|| {
            let owner = match &mut *way {
                Way::Here(host) => return host.execute(command.clone(), progress).map(Some),
                Way::Owner(owner) => owner,
            };
            match owner.try_ask(command, progress) {
                Ok(Some(reply)) => return Ok(Some(reply)),
                Ok(None) => {}
                Err(error) if may_be_repeated(command, &error) && !client.interrupted() => {}
                Err(error) => return Err(error),
            }
            *way = image.find_way(usage)?;
            Ok(None)
        });
        T::from_reply(outcome?.ok_or_else(|| image.unreachable_owner())?)
    }

    /// Closes the image.
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

/// True if an answer was lost that another owner can give as well.
fn may_be_repeated(command: &Command, error: &Error) -> bool {
    let reads = matches!(
        command,
        Command::Read { .. }
            | Command::Extents { .. }
            | Command::Diff { .. }
            | Command::Usage
            | Command::Status
    );
    reads && error.kind() == ErrorKind::Interrupted
}

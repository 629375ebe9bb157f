//! Asking an image's owner from another process.
//!
//! Invariants:
//! - Nothing is sent before it is certain that the socket is one of the expected user's, that no link
//!   led to it, and that the process behind it is that user's or root's.
//! - Nothing waits without a bound: a process that gives no sign of life for a while is given up, and
//!   a user's interruption ends every wait.

use std::io::{ErrorKind as IoErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use super::command::{Command, Reply};
use super::frame::{self, Decoded};
use super::listener::{new_socket, open_directory};
use super::message::{self, Answer};
use super::{Interrupt, Place, READER_PREFIX, READER_SUFFIX, SOCKET_NAME};
use crate::credentials::{self, Credentials};

/// Room offered to each read of the socket.
const RECEIVE_BYTES: usize = 64 << 10;

/// How long a process may give no sign of life before a command that only looks does without it.
/// One that works gives a sign every second.
pub const LOOK_SILENCE_MAX: Duration = Duration::from_secs(5);

/// As [`LOOK_SILENCE_MAX`], for commands that only this process can carry out. A disk that hangs for
/// less than a minute is no reason to give up.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often an interruption is looked for while waiting.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a connection is tried at a socket where too many wait.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// How long a client waits, and what ends its waiting.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Without a sign of life.
    pub silence_max: Duration,
    /// What ends the command early.
    pub interrupt: Interrupt,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence_max: SILENCE_MAX, interrupt: Interrupt::never() }
    }
}

impl Patience {
    /// That of a command that only looks.
    #[must_use]
    pub fn to_look() -> Self {
        Self { silence_max: LOOK_SILENCE_MAX, ..Self::default() }
    }
}

/// A connection to a process that has an image open.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    place: Place,
    peer: Credentials,
    patience: Patience,
}

impl Client {
    /// Connects to the owner of the image at `place`.
    ///
    /// # Errors
    /// `NotFound` if no owner listens there, and in a pool of another user; `PermissionDenied` if
    /// what is there is not a socket of that user; `Owned` if the owner gives no sign of life;
    /// `Interrupted`.
    pub fn connect(place: &Place, patience: &Patience) -> Result<Self> {
        if !place.is_own() {
            let message = format!("{} is another user's", place.directory().display());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let directory = open_directory(place.directory());
        directory
            .map_err(|errno| cannot_reach(place, errno))
            .and_then(|directory| Self::connect_in(place, &directory, SOCKET_NAME, patience))
    }

    /// Connects to all who read the image or a snapshot of it and listen. Sockets that nobody
    /// listens at are removed.
    ///
    /// # Errors
    /// `Interrupted`; those of reading the directory.
    pub fn connect_readers(place: &Place, patience: &Patience) -> Result<Vec<Self>> {
        if !place.is_own() {
            return Ok(Vec::new());
        }
        let at = |errno| cannot_reach(place, errno);
        let directory = open_directory(place.directory()).map_err(at)?;
        let listed = rustix::fs::openat(
            &directory,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut clients = Vec::new();
        for entry in rustix::fs::Dir::new(listed.map_err(at)?).map_err(at)? {
            let entry = entry.map_err(at)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if !name.starts_with(READER_PREFIX) || !name.ends_with(READER_SUFFIX) {
                continue;
            }
            match Self::connect_in(place, &directory, name, patience) {
                Ok(client) => clients.push(client),
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
                }
                // Not ours, or stopped: it is no help.
                Err(error) => {
                    tracing::debug!(error = %error.sentence(), "a reader cannot be asked")
                }
            }
        }
        Ok(clients)
    }

    fn connect_in(
        place: &Place,
        directory: &OwnedFd,
        name: &str,
        patience: &Patience,
    ) -> Result<Self> {
        let (socket, peer) = connect(place, directory, name, patience)?;
        let stream = UnixStream::from(socket);
        // A command is short, except for a write; who takes nothing of that gives no sign of life.
        let timed = stream.set_nonblocking(false);
        let timed = timed.and_then(|()| stream.set_write_timeout(Some(patience.silence_max)));
        timed.map_err(|error| Error::from_io("cannot use a control socket", error))?;
        Ok(Self {
            stream,
            received: Vec::new(),
            place: place.clone(),
            peer,
            patience: patience.clone(),
        })
    }

    /// Has the owner run `command`, passing on its progress (done, total).
    ///
    /// # Errors
    /// Those of the command, with their kind; `Interrupted` if the owner went away, or the user
    /// wants the command to end; `Owned` if the owner gives no sign of life before it has begun.
    pub fn ask(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        let gone = |client: &Self| client.lost(&IoErrorKind::UnexpectedEof.into());
        self.try_ask(command, progress)?.ok_or_else(|| gone(self))
    }

    /// As [`Self::ask`]; `None` if the owner went away before it began: the command was not carried
    /// out, and the next owner can be asked.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn try_ask(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<Reply>> {
        let mut request = Vec::new();
        message::encode_command(self.place.image(), command, &mut request)?;
        // Where sending fails, the owner may still have begun: its answers tell.
        let sent = self.stream.write_all(&request);
        let mut begun = false;
        loop {
            let answer = match self.next_answer() {
                Err(Lost::Connection(_)) if !begun => return Ok(None),
                Err(Lost::Connection(error)) => return Err(self.lost(&sent.err().unwrap_or(error))),
                Err(Lost::Silence) => return Err(self.silent(begun)),
                Err(Lost::Sense(error)) => return Err(error),
                Ok(answer) => answer,
            };
            match answer {
                Answer::Begun => begun = true,
                Answer::Alive => {}
                Answer::Progress { done, total } => progress(done, total),
                Answer::Reply { reply } => return Ok(Some(reply)),
                Answer::Error { kind, message } => {
                    return Err(Error::new(kind, message));
                }
                Answer::LongReply => {
                    return Err(Error::new(ErrorKind::Invalid, "a reply without its content"));
                }
            }
        }
    }

    fn next_answer(&mut self) -> std::result::Result<Answer, Lost> {
        let mut deadline = Instant::now() + self.patience.silence_max;
        loop {
            if let Decoded::Complete(frame) = frame::decode(&self.received)? {
                let answer = message::decode_answer(&frame);
                let bytes = frame.bytes();
                self.received.drain(..bytes);
                return Ok(answer?);
            }
            self.wait_for_bytes(deadline)?;
            let start = self.received.len();
            self.received.resize(start + RECEIVE_BYTES, 0);
            let outcome = self.stream.read(&mut self.received[start..]);
            self.received.truncate(start + outcome.as_ref().map_or(0, |bytes| *bytes));
            match outcome {
                Ok(0) => return Err(Lost::Connection(IoErrorKind::UnexpectedEof.into())),
                Ok(_) => deadline = Instant::now() + self.patience.silence_max,
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(Lost::Connection(error)),
            }
        }
    }

    /// Waits until there is something to read, the deadline, or an interruption.
    fn wait_for_bytes(&self, deadline: Instant) -> std::result::Result<(), Lost> {
        loop {
            if self.patience.interrupt.came() {
                return Err(Lost::Sense(interrupted()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Lost::Silence);
            }
            // A signal may be delivered to another thread, which does not wake this one.
            let slice = Timespec::try_from(left.min(LOOK_INTERVAL)).ok();
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, slice.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Lost::Connection(errno.into())),
            }
        }
    }

    /// The process that was found; 0 where it cannot be seen from here.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.pid
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        let directory = self.place.directory().display();
        Error::new(
            ErrorKind::Interrupted,
            format!("the owner in {directory} went away before it answered: {error}"),
        )
    }

    fn silent(&self, begun: bool) -> Error {
        if begun {
            let message = format!(
                "{}; it had begun with the command, and may still carry it out",
                silence(self.peer.pid, &self.patience)
            );
            return Error::new(ErrorKind::Interrupted, message);
        }
        Error::new(ErrorKind::Owned, silence(self.peer.pid, &self.patience))
    }
}

/// What is wrong, and what to do.
fn silence(pid: u32, patience: &Patience) -> String {
    let seconds = patience.silence_max.as_secs();
    match pid {
        0 => format!(
            "the process that has the image open has given no sign of life for {seconds} s: resume \
             it, or end it"
        ),
        pid => format!(
            "process {pid} has the image open and has given no sign of life for {seconds} s: \
             resume it (kill -CONT {pid}), or end it"
        ),
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

/// Why there is no answer.
enum Lost {
    /// The owner went away.
    Connection(std::io::Error),
    /// The owner says nothing.
    Silence,
    /// What it sent is no answer, or nobody wants one any more.
    Sense(Error),
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Sense(error)
    }
}

fn cannot_reach(place: &Place, errno: Errno) -> Error {
    let directory = place.directory().display();
    match errno {
        Errno::NOENT | Errno::CONNREFUSED => {
            Error::new(ErrorKind::NotFound, format!("no owner listens in {directory}"))
        }
        errno => Error::from_io(format!("cannot reach the owner in {directory}"), errno.into()),
    }
}

/// Connects to the socket `name`, after making sure whose it is, and looks who answers.
fn connect(
    place: &Place,
    directory: &OwnedFd,
    name: &str,
    patience: &Patience,
) -> Result<(OwnedFd, Credentials)> {
    let at = |errno| cannot_reach(place, errno);
    let stranger = |what: &str| {
        let message = format!(
            "{}/{name} {what}, so it is not used; remove it if you do not know where it comes from",
            place.directory().display()
        );
        Err(Error::new(ErrorKind::PermissionDenied, message))
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(at)?;
    let stat = rustix::fs::fstat(&file).map_err(at)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return stranger("is no socket");
    }
    if stat.st_uid != place.user() {
        return stranger("belongs to another user");
    }
    let socket = new_socket().map_err(at)?;
    // Through the descriptor that was looked at: the name may lead elsewhere by now.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(at)?;
    let deadline = Instant::now() + patience.silence_max;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            // Too many wait to be accepted.
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(CONNECT_INTERVAL),
            Err(Errno::AGAIN) => return Err(Error::new(ErrorKind::Owned, silence(0, patience))),
            Err(errno) => return Err(at(errno)),
        }
        if patience.interrupt.came() {
            return Err(interrupted());
        }
    }
    let peer = credentials::of_peer(socket.as_fd())
        .map_err(|error| Error::from_io("cannot tell whose a control socket is", error))?;
    if !peer.acts_for(place.user()) {
        return stranger("is answered by another user's process");
    }
    Ok((socket, peer))
}

/// Asks the owner at `place` once.
///
/// # Errors
/// Those of [`Client::connect`] and [`Client::ask`].
pub fn ask(
    place: &Place,
    command: &Command,
    patience: &Patience,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Reply> {
    Client::connect(place, patience)?.ask(command, progress)
}

//! Asking an image's owner from another process.

use std::io::{ErrorKind as IoErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use marcot::{Command, Error, ErrorKind, Reply, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::frame::{self, Decoded};
use super::listener::{address, open_directory};
use super::message::{self, Answer};

/// Room offered to each read of the socket.
const RECEIVE_BYTES: usize = 64 << 10;

/// A connection to the owner of an image.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    directory: PathBuf,
}

impl Client {
    /// Connects to the owner that listens in an image's `directory`.
    ///
    /// # Errors
    /// `NotFound` if no owner listens there; `PermissionDenied` if it belongs to another user.
    pub fn connect(directory: &Path) -> Result<Self> {
        let stream = connect(directory).map_err(|error| match error.kind() {
            IoErrorKind::NotFound | IoErrorKind::ConnectionRefused => {
                let message = format!("no owner listens in {}", directory.display());
                Error::new(ErrorKind::NotFound, message)
            }
            _ => {
                Error::from_io(format!("cannot reach the owner in {}", directory.display()), error)
            }
        })?;
        Ok(Self { stream, received: Vec::new(), directory: directory.to_owned() })
    }

    /// Has the owner run `command`, passing on its progress (done, total).
    ///
    /// # Errors
    /// Those of the command, with their kind; `Interrupted` if the owner went away.
    pub fn ask(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        let gone = |client: &Self| client.lost(&IoErrorKind::UnexpectedEof.into());
        self.try_ask(command, progress)?.ok_or_else(|| gone(self))
    }

    /// As [`Self::ask`]; `None` if the owner went away before it began: the command was not carried
    /// out, and the next owner can be asked.
    ///
    /// # Errors
    /// Those of the command, with their kind; `Interrupted` if the owner went away in its midst.
    pub fn try_ask(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Option<Reply>> {
        let mut request = Vec::new();
        message::encode_command(command, &mut request)?;
        // Where sending fails, the owner may still have begun: its answers tell.
        let sent = self.stream.write_all(&request);
        let mut begun = false;
        loop {
            let answer = match self.next_answer() {
                Err(Lost::Connection(_)) if !begun => return Ok(None),
                Err(Lost::Connection(error)) => return Err(self.lost(&sent.err().unwrap_or(error))),
                Err(Lost::Sense(error)) => return Err(error),
                Ok(answer) => answer,
            };
            match answer {
                Answer::Begun => begun = true,
                Answer::Progress { done, total } => progress(done, total),
                Answer::Reply { reply } => return Ok(Some(reply)),
                Answer::Error { kind, message } => {
                    return Err(Error::new(message::kind_of_name(&kind), message));
                }
                Answer::LongReply => {
                    return Err(Error::new(ErrorKind::Invalid, "a reply without its content"));
                }
            }
        }
    }

    fn next_answer(&mut self) -> std::result::Result<Answer, Lost> {
        loop {
            if let Decoded::Complete(frame) = frame::decode(&self.received)? {
                let answer = message::decode_answer(&frame);
                let bytes = frame.bytes();
                self.received.drain(..bytes);
                return Ok(answer?);
            }
            let start = self.received.len();
            self.received.resize(start + RECEIVE_BYTES, 0);
            let outcome = self.stream.read(&mut self.received[start..]);
            self.received.truncate(start + outcome.as_ref().map_or(0, |bytes| *bytes));
            match outcome {
                Ok(0) => return Err(Lost::Connection(IoErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(Lost::Connection(error)),
            }
        }
    }

    fn lost(&self, error: &std::io::Error) -> Error {
        let directory = self.directory.display();
        Error::new(
            ErrorKind::Interrupted,
            format!("the owner in {directory} went away before it answered: {error}"),
        )
    }
}

/// Why there is no answer.
enum Lost {
    /// The owner went away.
    Connection(std::io::Error),
    /// What it sent is no answer.
    Sense(Error),
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Sense(error)
    }
}

fn connect(directory: &Path) -> std::io::Result<UnixStream> {
    let directory = open_directory(directory)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &address(&directory)?)?;
    Ok(UnixStream::from(socket))
}

/// Asks the owner that listens in `directory` once.
///
/// # Errors
/// Those of [`Client::connect`] and [`Client::ask`].
pub fn ask(
    directory: &Path,
    command: &Command,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Reply> {
    Client::connect(directory)?.ask(command, progress)
}

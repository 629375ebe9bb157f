//! An export of an NBD server as a disk.
//!
//! After `doc/proto.md` of the NetworkBlockDevice project: the fixed newstyle negotiation, structured replies and
//! `base:allocation` where the server has them. All numbers are big-endian. What the server says is checked: a reply that
//! does not fit its request ends the connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::pages::field;
use crate::source::{Extent, Interrupted, Source, check_range, push};

/// Where an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp(String, u16),
    /// A socket of this machine.
    Unix(String),
}

const PORT: u16 = 10_809;
/// Longest silence of a server.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a read waits before it looks for an interruption.
const POLL: Duration = Duration::from_millis(200);
/// How often a request is sent in all, each time over a new connection, and the pause before that.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// Most that one request reads, in bytes. Servers take 32 MiB without having said so.
const READ_BYTES_MAX: u64 = 4 << 20;
/// Range of which holes are asked for at a time, in bytes, and the replies that are taken.
const STATUS_BYTES_MAX: u64 = 1 << 30;
const STATUS_REPLY_BYTES_MAX: u32 = 4 + 8 * (1 << 16);
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;
/// Replies to one option, and chunks of one reply.
const REPLIES_MAX: usize = 1 << 16;
/// Blocks of a server have at most this, in bytes.
const BLOCK_BYTES_MAX: u32 = 64 << 10;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_IS_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const CMD_READ: u16 = 0;
const CMD_DISC: u16 = 2;
const CMD_BLOCK_STATUS: u16 = 7;
const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_IS_ERROR: u16 = 1 << 15;
const STATE_ZERO: u32 = 1 << 1;

/// Reads `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`: the address and the name of the export.
///
/// # Errors
/// `Invalid` for anything else.
pub fn parse(url: &str) -> Result<(Address, String)> {
    let bad =
        || Error::invalid("it is no nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH");
    if let Some(rest) = url.strip_prefix("nbd+unix://") {
        let (export, query) = rest.split_once('?').ok_or_else(bad)?;
        let socket =
            query.split('&').find_map(|part| part.strip_prefix("socket=")).ok_or_else(bad)?;
        let export = export.strip_prefix('/').unwrap_or(export);
        return Ok((Address::Unix(unescaped(socket)?), unescaped(export)?));
    }
    let rest = url.strip_prefix("nbd://").ok_or_else(bad)?;
    let (place, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| bad())?),
        _ => (place, PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || export.contains(['?', '#']) {
        return Err(bad());
    }
    Ok((Address::Tcp(host.to_string(), port), unescaped(export)?))
}

/// Text with `%20` for a space and the like.
fn unescaped(text: &str) -> Result<String> {
    let bad = || Error::invalid("a % in it is not followed by two hexadecimal digits");
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(value.ok_or_else(bad)?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("it is not UTF-8"))
}

enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    fn set_timeouts(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(POLL))?;
                stream.set_write_timeout(Some(SILENCE_MAX))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(POLL))?;
                stream.set_write_timeout(Some(SILENCE_MAX))
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

struct Connection {
    wire: Wire,
    interrupted: Interrupted,
    cookie: u64,
    structured: bool,
    /// It has failed once: what would come next is not known.
    broken: bool,
    /// The other end is gone.
    lost: bool,
}

/// See the module.
pub struct NbdSource {
    address: Address,
    export: String,
    interrupted: Interrupted,
    connection: Mutex<Connection>,
    about: About,
}

impl NbdSource {
    /// Connects to a server, and opens an export of it for reading.
    ///
    /// # Errors
    /// `Io` if nobody answers, or the server refuses; `Interrupted`; `Damaged` for replies that make no sense.
    pub fn connect(address: &Address, export: &str, interrupted: Interrupted) -> Result<Self> {
        let (connection, about) = Connection::open(address, export, &interrupted)?;
        let (address, export) = (address.clone(), export.to_owned());
        Ok(Self { address, export, interrupted, connection: Mutex::new(connection), about })
    }

    /// Asks the server. Where the connection breaks, it is asked again over another one.
    fn with<T>(&self, mut call: impl FnMut(&mut Connection) -> Result<T>) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tries = 1;
        loop {
            let outcome = match connection.broken {
                true => self.connect_again(&mut connection).and_then(|()| call(&mut connection)),
                false => call(&mut connection),
            };
            let Err(error) = outcome else { return outcome };
            connection.broken = true;
            if !connection.lost || error.kind() != ErrorKind::Io || tries == TRIES {
                return Err(error);
            }
            std::thread::sleep(PAUSE);
            tries += 1;
        }
    }

    fn connect_again(&self, connection: &mut Connection) -> Result<()> {
        let (again, about) = Connection::open(&self.address, &self.export, &self.interrupted)?;
        if (about.size_bytes, about.block_bytes) != (self.about.size_bytes, self.about.block_bytes)
            || about.context != self.about.context
        {
            return Err(Error::damaged("the export has changed while it was read"));
        }
        *connection = again;
        Ok(())
    }
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    use std::net::ToSocketAddrs;
    let mut last = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, SILENCE_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(2)))
}

struct About {
    size_bytes: u64,
    block_bytes: u64,
    /// The number of `base:allocation`, if the server tells holes.
    context: Option<u32>,
}

fn strange() -> Error {
    Error::damaged("what the server answers makes no sense")
}

impl Connection {
    fn open(address: &Address, export: &str, interrupted: &Interrupted) -> Result<(Self, About)> {
        let cannot =
            |error: io::Error| Error::io(format!("no connection comes about: {error}"), error);
        let wire = match address {
            Address::Tcp(host, port) => Wire::Tcp(connect_tcp(host, *port).map_err(cannot)?),
            Address::Unix(path) => Wire::Unix(UnixStream::connect(path).map_err(cannot)?),
        };
        wire.set_timeouts().map_err(cannot)?;
        let interrupted = Arc::clone(interrupted);
        let (structured, broken, lost) = (false, false, false);
        let mut connection = Self { wire, interrupted, cookie: 0, structured, broken, lost };
        let about = connection.negotiate(export)?;
        Ok((connection, about))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = match &mut self.wire {
            Wire::Tcp(stream) => stream.write_all(bytes),
            Wire::Unix(stream) => stream.write_all(bytes),
        };
        self.lost |= sent.is_err();
        sent.map_err(|error| Error::io(format!("the server cannot be reached: {error}"), error))
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        let (mut filled, mut heard) = (0, Instant::now());
        while filled < buf.len() {
            if (self.interrupted)() {
                return Err(io::Error::from(io::ErrorKind::Interrupted).into());
            }
            match self.wire.read(&mut buf[filled..]) {
                Ok(0) => {
                    self.lost = true;
                    return Err(Error::new(ErrorKind::Io, "the server has closed the connection"));
                }
                Ok(bytes) => (filled, heard) = (filled + bytes, Instant::now()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                        if heard.elapsed() > SILENCE_MAX =>
                    {
                        let late = io::Error::from(rustix::io::Errno::TIMEDOUT);
                        return Err(Error::io("the server does not answer", late));
                    }
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    _ => {
                        self.lost = true;
                        return Err(Error::io(format!("the connection fails: {error}"), error));
                    }
                },
            }
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn negotiate(&mut self, export: &str) -> Result<About> {
        let hello: [u8; 18] = self.take()?;
        if hello[..8] != *b"NBDMAGIC" || hello[8..16] != *OPTION_MAGIC || hello[17] & 1 == 0 {
            return Err(Error::invalid("no server of NBD answers there"));
        }
        self.send(&1_u32.to_be_bytes())?;
        self.structured = self.option(OPT_STRUCTURED_REPLY, &[], &mut |_, _| Ok(()))?.is_ok();
        let mut context = None;
        if self.structured {
            let query = b"base:allocation";
            let data = [string(export), 1_u32.to_be_bytes().to_vec(), string_of(query)].concat();
            // A server that does not know it says so; then everything is data.
            let _ = self.option(OPT_SET_META_CONTEXT, &data, &mut |kind, reply| {
                if kind == REP_META_CONTEXT && reply.len() >= 4 && reply[4..] == query[..] {
                    context = Some(u32::from_be_bytes(field(reply, 0)));
                }
                Ok(())
            })?;
        }
        let (mut size_bytes, mut block_bytes) = (None, 1);
        let asks = [1_u16.to_be_bytes(), INFO_BLOCK_SIZE.to_be_bytes()].concat();
        let gone = self.option(OPT_GO, &[string(export), asks].concat(), &mut |kind, reply| {
            if kind != REP_INFO || reply.len() < 2 {
                return Ok(());
            }
            match u16::from_be_bytes(field(reply, 0)) {
                INFO_EXPORT if reply.len() >= 12 => {
                    size_bytes = Some(u64::from_be_bytes(field(reply, 2)));
                }
                INFO_BLOCK_SIZE if reply.len() >= 14 => {
                    let least = u32::from_be_bytes(field(reply, 2));
                    if !least.is_power_of_two() || least > BLOCK_BYTES_MAX {
                        return Err(strange());
                    }
                    block_bytes = u64::from(least);
                }
                _ => {}
            }
            Ok(())
        })?;
        if let Err(said) = gone {
            let none = io::Error::from(rustix::io::Errno::NOENT);
            let why = if said.is_empty() { String::new() } else { format!(": {said}") };
            return Err(Error::io(format!("the server refuses the export '{export}'{why}"), none));
        }
        let size_bytes = size_bytes.filter(|size| *size <= i64::MAX as u64).ok_or_else(strange)?;
        Ok(About { size_bytes, block_bytes, context })
    }

    /// Sends an option, and gives `each` the replies to it. The inner error is that of a server that refuses.
    fn option(
        &mut self,
        number: u32,
        data: &[u8],
        each: &mut dyn FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<std::result::Result<(), String>> {
        let length = u32::try_from(data.len()).map_err(|_| strange())?;
        let head = [&OPTION_MAGIC[..], &number.to_be_bytes(), &length.to_be_bytes()].concat();
        self.send(&[&head, data].concat())?;
        for _ in 0..REPLIES_MAX {
            let head: [u8; 20] = self.take()?;
            let kind = u32::from_be_bytes(field(&head, 12));
            let length = u32::from_be_bytes(field(&head, 16));
            let fits = u64::from_be_bytes(field(&head, 0)) == OPTION_REPLY_MAGIC
                && u32::from_be_bytes(field(&head, 8)) == number
                && length <= OPTION_REPLY_BYTES_MAX;
            if !fits {
                return Err(strange());
            }
            let mut reply = vec![0; length as usize];
            self.fill(&mut reply)?;
            match kind {
                REP_ACK => return Ok(Ok(())),
                kind if kind & REP_IS_ERROR != 0 => {
                    return Ok(Err(String::from_utf8_lossy(&reply).into_owned()));
                }
                kind => each(kind, &reply)?,
            }
        }
        Err(strange())
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> Result<()> {
        self.cookie += 1;
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0; 2]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        self.send(&bytes)
    }

    /// Reads the head of a reply: `None` for a simple one without an error, else flags, kind and length of a chunk.
    fn reply(&mut self) -> Result<Option<(u16, u16, u32)>> {
        let head: [u8; 16] = self.take()?;
        if u64::from_be_bytes(field(&head, 8)) != self.cookie {
            return Err(strange());
        }
        match u32::from_be_bytes(field(&head, 0)) {
            SIMPLE_MAGIC => match u32::from_be_bytes(field(&head, 4)) {
                0 => Ok(None),
                errno => Err(refused(errno)),
            },
            CHUNK_MAGIC if self.structured => {
                let length = u32::from_be_bytes(self.take()?);
                let [flags, kind] = [4, 6].map(|at| u16::from_be_bytes(field(&head, at)));
                Ok(Some((flags, kind, length)))
            }
            _ => Err(strange()),
        }
    }

    /// Reads the payload of a chunk of a known length.
    fn error_chunk(&mut self, length: u32) -> Result<Error> {
        if !(6..=OPTION_REPLY_BYTES_MAX).contains(&length) {
            return Err(strange());
        }
        let mut payload = vec![0; length as usize];
        self.fill(&mut payload)?;
        Ok(refused(u32::from_be_bytes(field(&payload, 0))))
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.request(CMD_READ, offset, u32::try_from(buf.len()).map_err(|_| strange())?)?;
        let (mut came, mut failed) = (0, None);
        for _ in 0..REPLIES_MAX {
            let Some((flags, kind, length)) = self.reply()? else { return self.fill(buf) };
            match kind {
                CHUNK_OFFSET_DATA if length > 8 => {
                    let at = u64::from_be_bytes(self.take()?);
                    let part = part_of(buf, offset, at, u64::from(length - 8))?;
                    came += part.len();
                    self.fill(part)?;
                }
                CHUNK_OFFSET_HOLE if length == 12 => {
                    let at = u64::from_be_bytes(self.take()?);
                    let hole = u32::from_be_bytes(self.take()?);
                    let part = part_of(buf, offset, at, hole.into())?;
                    came += part.len();
                    part.fill(0);
                }
                kind if kind & CHUNK_IS_ERROR != 0 => failed = Some(self.error_chunk(length)?),
                0 if length == 0 => {}
                _ => return Err(strange()),
            }
            if flags & CHUNK_DONE != 0 {
                return match failed {
                    Some(error) => Err(error),
                    None if came == buf.len() => Ok(()),
                    None => Err(strange()),
                };
            }
        }
        Err(strange())
    }

    /// Lengths from `offset` on, and whether they read as zeros.
    fn status(&mut self, context: u32, offset: u64, length: u32) -> Result<Vec<(u64, bool)>> {
        self.request(CMD_BLOCK_STATUS, offset, length)?;
        let (mut parts, mut failed) = (Vec::new(), None);
        for _ in 0..REPLIES_MAX {
            let Some((flags, kind, length)) = self.reply()? else { return Err(strange()) };
            match kind {
                CHUNK_BLOCK_STATUS if (12..=STATUS_REPLY_BYTES_MAX).contains(&length) => {
                    let mut payload = vec![0; length as usize];
                    self.fill(&mut payload)?;
                    if u32::from_be_bytes(field(&payload, 0)) == context {
                        parts = payload[4..]
                            .chunks_exact(8)
                            .map(|part| [0, 4].map(|at| u32::from_be_bytes(field(part, at))))
                            .map(|[length, state]| (u64::from(length), state & STATE_ZERO != 0))
                            .collect();
                    }
                }
                kind if kind & CHUNK_IS_ERROR != 0 => failed = Some(self.error_chunk(length)?),
                0 if length == 0 => {}
                _ => return Err(strange()),
            }
            if flags & CHUNK_DONE != 0 {
                return failed.map_or(Ok(parts), Err);
            }
        }
        Err(strange())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.request(CMD_DISC, 0, 0);
    }
}

fn string(text: &str) -> Vec<u8> {
    string_of(text.as_bytes())
}

fn string_of(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

/// The error that a server tells; its numbers are those of Linux.
fn refused(errno: u32) -> Error {
    let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno)).unwrap_or(5);
    let error = io::Error::from_raw_os_error(errno);
    Error::io(format!("the server cannot read it: {error}"), error)
}

/// The part of `buf`, which begins at `offset`, from the byte `at` on.
fn part_of(buf: &mut [u8], offset: u64, at: u64, length: u64) -> Result<&mut [u8]> {
    let from = at.checked_sub(offset).and_then(|from| usize::try_from(from).ok());
    let length = usize::try_from(length).ok();
    let range = from.zip(length).and_then(|(from, length)| Some(from..from.checked_add(length)?));
    range.and_then(|range| buf.get_mut(range)).ok_or_else(strange)
}

impl Source for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.about.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.about.size_bytes)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            // The server may read whole blocks only.
            let before = at % self.about.block_bytes;
            let length = (rest.len() as u64).min(READ_BYTES_MAX - self.about.block_bytes);
            let (part, after) = rest.split_at_mut(length as usize);
            let start = at - before;
            let whole = (before + length)
                .next_multiple_of(self.about.block_bytes)
                .min(self.about.size_bytes - start);
            if whole == length {
                self.with(|connection| connection.read(start, &mut *part))?;
            } else {
                let mut blocks = vec![0; whole as usize];
                self.with(|connection| connection.read(start, &mut blocks))?;
                part.copy_from_slice(&blocks[before as usize..(before + length) as usize]);
            }
            (at, rest) = (at + length, after);
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        check_range(offset, length, self.about.size_bytes)?;
        let whole = vec![Extent { offset, length, data: true }];
        let Some(context) = self.about.context.filter(|_| length > 0) else { return Ok(whole) };
        let start = offset - offset % self.about.block_bytes;
        let asked = STATUS_BYTES_MAX
            .min((offset + length - start).next_multiple_of(self.about.block_bytes));
        let asked = asked.min(self.about.size_bytes - start);
        // At most STATUS_BYTES_MAX.
        let parts = self.with(|connection| connection.status(context, start, asked as u32))?;
        let (mut extents, mut at, end) = (Vec::new(), start, offset + length);
        for (length, zero) in parts {
            let part_end = at.saturating_add(length).min(end);
            let from = at.max(offset);
            if part_end > from {
                push(&mut extents, from, part_end - from, !zero);
            }
            at = part_end;
        }
        match extents.is_empty() {
            true => Err(strange()),
            false => Ok(extents),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_other_programs_read_them() {
        let tcp = |host: &str, port| Address::Tcp(host.into(), port);
        assert_eq!(parse("nbd://h/a%20b").unwrap(), (tcp("h", 10_809), "a b".into()));
        assert_eq!(parse("nbd://h:1").unwrap(), (tcp("h", 1), String::new()));
        assert_eq!(parse("nbd://[::1]:7/p/i").unwrap(), (tcp("::1", 7), "p/i".into()));
        assert_eq!(
            parse("nbd+unix:///p/i?socket=/run/s").unwrap(),
            (Address::Unix("/run/s".into()), "p/i".into())
        );
        for bad in ["nbd://", "nbd://h:x/", "nbd+unix:///x", "nbd+unix:///x?y=1", "nbd://h/%2"] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}

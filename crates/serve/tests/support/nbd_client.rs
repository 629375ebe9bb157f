//! A small NBD client that sends exactly what a test wants.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub use marcot_serve::nbd::wire::command::*;
pub use marcot_serve::nbd::wire::command_flag::FUA;
pub use marcot_serve::nbd::wire::option::{GO, INFO, LIST};
pub use marcot_serve::nbd::wire::option_reply::{ACK, ERR_POLICY, ERR_UNKNOWN, SERVER};

/// Only a server that hangs takes this long, not a slow machine.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    pub payload: Vec<u8>,
}

pub struct NbdClient(pub UnixStream);

/// The bytes of a request without its payload.
pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The bytes of a write with its payload.
pub fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(WRITE, flags, cookie, offset, data.len() as u32);
    bytes.extend(data);
    bytes
}

/// Client flags and an option.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT");
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Connects and asks for an export by GO or INFO. The answer is not read yet.
pub fn ask(socket: &Path, number: u32, name: &str) -> NbdClient {
    let mut client = NbdClient::new(UnixStream::connect(socket).unwrap());
    client.bytes(18);
    let length = (name.len() as u32).to_be_bytes();
    client.send(&option(number, &[&length, name.as_bytes(), &[0; 2]].concat()));
    client
}

/// Kind and data of a reply to an option.
pub fn option_reply(client: &mut NbdClient) -> (u32, Vec<u8>) {
    let head = client.bytes(20);
    let length = u32::from_be_bytes(head[16..].try_into().unwrap());
    (u32::from_be_bytes(head[12..16].try_into().unwrap()), client.bytes(length as usize))
}

impl NbdClient {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
        stream.set_write_timeout(Some(WAIT_MAX)).unwrap();
        Self(stream)
    }

    /// Connects and negotiates with EXPORT_NAME: simple replies.
    pub fn connect(socket: &Path, export: &str) -> Self {
        let mut client = Self::new(UnixStream::connect(socket).unwrap());
        assert_eq!(client.bytes(18)[..8], *b"NBDMAGIC");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1_u32.to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        client.send(&hello);
        client.bytes(10);
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Error number and cookie of a simple reply.
    pub fn simple(&mut self) -> (u32, u64) {
        let bytes = self.bytes(16);
        assert_eq!(bytes[..4], 0x6744_6698_u32.to_be_bytes(), "not a simple reply: {bytes:?}");
        let errno = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        (errno, u64::from_be_bytes(bytes[8..].try_into().unwrap()))
    }

    pub fn chunk(&mut self) -> Chunk {
        let bytes = self.bytes(20);
        assert_eq!(bytes[..4], 0x668e_33ef_u32.to_be_bytes(), "not a chunk: {bytes:?}");
        let length = u32::from_be_bytes(bytes[16..].try_into().unwrap());
        Chunk {
            done: bytes[5] & 1 != 0,
            kind: u16::from_be_bytes([bytes[6], bytes[7]]),
            cookie: u64::from_be_bytes(bytes[8..16].try_into().unwrap()),
            payload: self.bytes(length as usize),
        }
    }

    /// Reads with simple replies.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        self.send(&request(READ, 0, 1, offset, length));
        match self.simple() {
            (0, 1) => Ok(self.bytes(length as usize)),
            (errno, _) => Err(errno),
        }
    }

    /// A request that has neither payload nor data in its reply.
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        self.send(&request(command, flags, 2, offset, length));
        self.simple().0
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.send(&write(flags, 3, offset, data));
        self.simple().0
    }

    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

//! The fastest server that there can be for a client: it keeps nothing, computes nothing, never
//! sleeps, receives all that waits with one call and answers it with one. What a client reaches here
//! is the limit of the client and the socket.
//!
//! usage: client_limit SOCKET SIZE_BYTES

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

// Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project).
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 8;
const REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const REQUEST_BYTES: usize = 28;

const RECEIVE_BYTES: usize = 4 << 20;

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let [_, socket, size_bytes] = &words[..] else {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "usage: client_limit SOCKET SIZE_BYTES",
        ));
    };
    let size_bytes: u64 = size_bytes.parse().map_err(io::Error::other)?;
    let listener = UnixListener::bind(socket)?;
    loop {
        let (mut stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            // A client that goes away in the middle is no failure of the measurement's.
            if let Ok(structured) = negotiate(&mut stream, size_bytes) {
                let _ = answer(&mut stream, structured);
            }
        });
    }
}

/// Until the client wants to begin; true where it wants structured replies, which cost it more.
fn negotiate(stream: &mut UnixStream, size_bytes: u64) -> io::Result<bool> {
    let mut structured = false;
    stream.write_all(GREETING)?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let option = u32::from_be_bytes(number(&head, 8));
        let length = u32::from_be_bytes(number(&head, 12));
        io::copy(&mut (&*stream).take(length.into()), &mut io::sink())?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut message = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            message.extend(option.to_be_bytes());
            message.extend(kind.to_be_bytes());
            message.extend((data.len() as u32).to_be_bytes());
            message.extend(data);
            stream.write_all(&message)
        };
        match option {
            OPTION_GO => {}
            OPTION_STRUCTURED_REPLY => {
                structured = true;
                reply(REPLY_ACK, &[])?;
                continue;
            }
            _ => {
                reply(REPLY_UNSUPPORTED, &[])?;
                continue;
            }
        }
        let mut export = vec![0, 0];
        export.extend(size_bytes.to_be_bytes());
        export.extend(EXPORT_FLAGS.to_be_bytes());
        reply(REPLY_INFO, &export)?;
        reply(REPLY_ACK, &[])?;
        return Ok(structured);
    }
}

/// Answers requests until the client leaves.
fn answer(stream: &mut UnixStream, structured: bool) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut received = vec![0; RECEIVE_BYTES];
    let (mut filled, mut replies) = (0, Vec::new());
    loop {
        match stream.read(&mut received[filled..]) {
            Ok(0) => return Ok(()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                continue;
            }
            Err(error) => return Err(error),
        }
        let mut at = 0;
        while filled - at >= REQUEST_BYTES {
            let request = &received[at..at + REQUEST_BYTES];
            let length = u32::from_be_bytes(number(request, 24)) as usize;
            let (data, read) = match u16::from_be_bytes(number(request, 6)) {
                COMMAND_READ => (0, length),
                COMMAND_WRITE => (length, 0),
                COMMAND_DISCONNECT => return Ok(()),
                _ => (0, 0),
            };
            if filled - at < REQUEST_BYTES + data {
                break;
            }
            let (cookie, offset) = (&request[8..16], &request[16..24]);
            if structured && read > 0 {
                replies.extend(CHUNK_MAGIC.to_be_bytes());
                replies.extend(CHUNK_DONE.to_be_bytes());
                replies.extend(CHUNK_OFFSET_DATA.to_be_bytes());
                replies.extend_from_slice(cookie);
                replies.extend((offset.len() as u32 + length as u32).to_be_bytes());
                replies.extend_from_slice(offset);
            } else {
                replies.extend(REPLY_MAGIC.to_be_bytes());
                replies.extend([0; 4]);
                replies.extend_from_slice(cookie);
            }
            replies.resize(replies.len() + read, 0);
            at += REQUEST_BYTES + data;
        }
        received.copy_within(at..filled, 0);
        filled -= at;
        send(stream, &replies)?;
        replies.clear();
    }
}

fn send(stream: &mut UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

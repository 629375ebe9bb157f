//! As much of HTTP/1.1 as clients of object stores use: bodies with a length, connections that stay open.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// The longest line of a head.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The longest body.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// The first byte of a client that wants TLS.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// `PUT`.
    pub method: String,
    /// Without the query, decoded, with the slash at its start.
    pub path: String,
    /// Decoded.
    pub query: HashMap<String, String>,
    /// By names in small letters.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Beside the length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Reads the next request of a connection; `None` at its end.
///
/// # Errors
/// What the connection says; `InvalidData` for what is not HTTP.
pub fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    if stream.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return Err(invalid());
    }
    let Some(first) = read_line(stream)? else { return Ok(None) };
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(invalid());
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HashMap::new();
    loop {
        let line = read_line(stream)?.ok_or_else(invalid)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(invalid)?;
        headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_string());
    }
    if headers.get("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let length = headers.get("content-length").map_or(Ok(0), |v| v.parse::<u64>());
    let length = length.ok().filter(|length| *length <= BODY_BYTES_MAX).ok_or_else(invalid)?;
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        return Ok(None);
    }
    let query = query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decoded(name, true), decoded(value, true))
    });
    Ok(Some(Request {
        method: method.to_string(),
        path: decoded(path, false),
        query: query.collect(),
        headers,
        body,
    }))
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a request that this server understands")
}

fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8(line).map_err(|_| invalid())?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_string()))
}

/// Text without its percent signs.
fn decoded(text: &str, plus_is_blank: bool) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digits = || std::str::from_utf8(tail.get(..2)?).ok();
        match first {
            b'%' => match digits().and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &tail[2..];
                }
                None => bytes.push(b'%'),
            },
            b'+' if plus_is_blank => bytes.push(b' '),
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends an answer. Only half of its body goes out where `half` is true.
///
/// # Errors
/// What the connection says.
pub fn write_answer(stream: &mut TcpStream, answer: &Answer, half: bool) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    // An answer with this status has no body and no length.
    if answer.status != 204 && !answer.headers.iter().any(|(name, _)| *name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    head.push_str("\r\n");
    let body = if half { &answer.body[..answer.body.len() / 2] } else { &answer.body[..] };
    stream.write_all(&[head.as_bytes(), body].concat())?;
    stream.flush()
}

fn reason(status: u16) -> &'static str {
    match status {
        200..=299 => "OK",
        300..=399 => "Moved",
        400..=499 => "Refused",
        _ => "Failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_decoded() {
        assert_eq!(decoded("a%2Fb%20c+d", false), "a/b c+d");
        assert_eq!(decoded("a+b%", true), "a b%");
        assert_eq!(decoded("%CF%80", false), "π");
    }
}

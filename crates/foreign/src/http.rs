//! A file of an HTTP server: with requests for ranges where the server answers them, else as one stream.
//!
//! A request that is cut off is sent again. A file that changes meanwhile is told by its tag, its time or its length. No
//! more is read of an answer than was asked for. A redirection is followed, but never from TLS to a place without.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, LAST_MODIFIED, RANGE,
};
use reqwest::{Response, StatusCode, Url};
use tokio::runtime::Runtime;

use crate::error::{Error, ErrorKind, Result};
use crate::source::{Extent, Interrupted, Source, check_range};

/// How long the server may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long is waited before an interruption is looked for.
const POLL: Duration = Duration::from_millis(200);
/// How often a request is sent in all, and the pause before it is sent again.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
const REDIRECTIONS_MAX: usize = 10;
/// Small reads are served from pieces of this length, in bytes, of which so many are kept: tables lie side by side.
const PIECE_BYTES: u64 = 1 << 20;
const PIECES_MAX: usize = 8;
/// Longest range of one request, in bytes.
const RANGE_BYTES_MAX: u64 = 16 << 20;

/// What is at a URL.
pub enum Opened {
    /// It can be read at any place.
    Ranges(Arc<HttpSource>),
    /// It can be read from its start to its end.
    Whole(Body),
}

/// The text of a URL without what may be secret in it: a password, and the query.
#[must_use]
pub fn shown(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "the URL".into() };
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// True for a URL with a password in it.
#[must_use]
pub fn has_password(url: &str) -> bool {
    Url::parse(url).is_ok_and(|url| url.password().is_some())
}

struct Client {
    runtime: Runtime,
    client: reqwest::Client,
    url: Url,
    interrupted: Interrupted,
}

/// A file that can be read at any place.
pub struct HttpSource {
    client: Arc<Client>,
    size_bytes: u64,
    state: State,
    pieces: Mutex<Vec<(u64, Vec<u8>)>>,
}

/// What tells one state of a file from others, as far as the server says it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    tag: Option<String>,
    changed: Option<String>,
}

impl State {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
        Self { tag: text(ETAG), changed: text(LAST_MODIFIED) }
    }
}

/// A file that is read from its start to its end.
pub struct Body {
    client: Arc<Client>,
    response: Response,
    rest: Vec<u8>,
    at: usize,
}

/// Asks for a file.
///
/// # Errors
/// `Invalid` for a URL that makes no sense; `Io` if it cannot be had; `Interrupted`.
pub fn open(url: &str, interrupted: Interrupted) -> Result<Opened> {
    let url = Url::parse(url).map_err(|error| Error::invalid(format!("it is no URL: {error}")))?;
    let client = Arc::new(Client::new(url, interrupted)?);
    let response = client.get(Some((0, 1)))?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let (first, size_bytes) = range_of(response.headers()).ok_or_else(strange)?;
            if first != 0 {
                return Err(strange());
            }
            let state = State::of(response.headers());
            drop(response);
            let pieces = Mutex::default();
            Ok(Opened::Ranges(Arc::new(HttpSource { client, size_bytes, state, pieces })))
        }
        _ => Ok(Opened::Whole(Body { client, response, rest: Vec::new(), at: 0 })),
    }
}

fn strange() -> Error {
    Error::new(ErrorKind::Io, "what the server answers makes no sense")
}

/// The first byte and the length of the whole file, of `bytes 0-99/1000`.
fn range_of(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, all) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, all.trim().parse().ok()?))
}

impl Client {
    fn new(url: Url, interrupted: Interrupted) -> Result<Self> {
        // Fails only where a provider is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let follow = reqwest::redirect::Policy::custom(|attempt| {
            let from_tls = attempt.previous().iter().any(|url| url.scheme() == "https");
            match attempt.url().scheme() {
                "http" if from_tls => attempt.error("it leads to a place without TLS"),
                _ if attempt.previous().len() > REDIRECTIONS_MAX => {
                    attempt.error("it leads in circles")
                }
                _ => attempt.follow(),
            }
        });
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("marcot/", env!("CARGO_PKG_VERSION")))
                .redirect(follow)
                .retry(reqwest::retry::never())
                .http1_only()
                .connect_timeout(SILENCE_MAX)
        };
        let made = match url.scheme() {
            // A host without certificates of authorities can still use a server without TLS.
            "http" => builder().tls_certs_only([]).build(),
            _ => builder().build(),
        };
        let client = made.map_err(|_| {
            Error::new(
                ErrorKind::Io,
                "this host has no certificates of authorities: install ca-certificates",
            )
        })?;
        Ok(Self { runtime, client, url, interrupted })
    }

    /// Waits for a step of a request, as long as nobody interrupts.
    fn wait<T>(&self, step: impl Future<Output = reqwest::Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            let (mut step, begun) = (std::pin::pin!(step), Instant::now());
            loop {
                match tokio::time::timeout(POLL, step.as_mut()).await {
                    Ok(outcome) => return outcome.map_err(|error| failed(&error)),
                    Err(_) if (self.interrupted)() => {
                        return Err(io::Error::from(io::ErrorKind::Interrupted).into());
                    }
                    Err(_) if begun.elapsed() > SILENCE_MAX => {
                        let late = io::Error::from(rustix::io::Errno::TIMEDOUT);
                        return Err(Error::io("the server does not answer", late));
                    }
                    Err(_) => {}
                }
            }
        })
    }

    /// The answer for the range from the first to before the second byte, or for all. Only its head is there.
    fn get(&self, range: Option<(u64, u64)>) -> Result<Response> {
        let mut request = self.client.get(self.url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some((start, end)) = range {
            request = request.header(RANGE, format!("bytes={start}-{}", end.max(start + 1) - 1));
        }
        let response = self.wait(request.send())?;
        let status = response.status();
        if ![StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&status) {
            let errno = match status.as_u16() {
                404 | 410 => rustix::io::Errno::NOENT,
                401 | 403 | 407 => rustix::io::Errno::ACCESS,
                _ => rustix::io::Errno::IO,
            };
            return Err(Error::io(format!("the server answers {status}"), errno.into()));
        }
        if response.headers().get(CONTENT_ENCODING).is_some_and(|value| value != "identity") {
            return Err(Error::unsupported("the server packs what it sends"));
        }
        Ok(response)
    }
}

/// The sentence for a request without an answer: that of its lowest cause.
fn failed(error: &reqwest::Error) -> Error {
    let (mut lowest, mut errno) = (error.to_string(), None);
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        lowest = error.to_string();
        errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(errno);
        next = error.source();
    }
    let below = errno.map_or_else(|| io::Error::other("no answer"), io::Error::from_raw_os_error);
    Error::io(format!("the server gives no whole answer: {lowest}"), below)
}

impl HttpSource {
    /// A text that tells the state of the file from others, as far as the server says it.
    #[must_use]
    pub fn state(&self) -> String {
        let shown = |text: &Option<String>| text.clone().unwrap_or_default();
        let State { tag, changed } = &self.state;
        format!("http {} {} {}", self.size_bytes, shown(tag), shown(changed))
    }

    /// Reads a range with one request, which is sent again if the answer is cut off.
    fn fetch(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut tries = 1;
        loop {
            let outcome = self.try_fetch(offset, buf);
            let again = matches!(&outcome, Err(error) if error.kind() == ErrorKind::Io
                && !matches!(error.raw_os_error(), Some(2 | 13)) && tries < TRIES);
            if !again {
                return outcome;
            }
            std::thread::sleep(PAUSE);
            tries += 1;
        }
    }

    fn try_fetch(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        let mut response = self.client.get(Some((offset, end)))?;
        let range = range_of(response.headers());
        if range.is_some_and(|(_, size_bytes)| size_bytes != self.size_bytes)
            || State::of(response.headers()) != self.state
        {
            return Err(Error::damaged("it has changed while it was read"));
        }
        if response.status() != StatusCode::PARTIAL_CONTENT
            || range.is_none_or(|(first, _)| first != offset)
        {
            return Err(strange());
        }
        let mut filled = 0;
        while let Some(part) = self.client.wait(response.chunk())? {
            let rest = buf.get_mut(filled..filled + part.len()).ok_or_else(strange)?;
            rest.copy_from_slice(&part);
            filled += part.len();
        }
        match filled == buf.len() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Io, "an answer of the server is cut off")),
        }
    }

    /// Reads a part of one piece.
    fn read_piece(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let start = offset / PIECE_BYTES * PIECE_BYTES;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pieces.iter().position(|(at, _)| *at == start);
        let piece = match found {
            Some(index) => pieces.remove(index),
            None => {
                let mut bytes = vec![0; PIECE_BYTES.min(self.size_bytes - start) as usize];
                self.fetch(start, &mut bytes)?;
                (start, bytes)
            }
        };
        let from = (offset - start) as usize;
        buf.copy_from_slice(&piece.1[from..from + buf.len()]);
        // The one that was used last stands first.
        pieces.insert(0, piece);
        pieces.truncate(PIECES_MAX);
        Ok(())
    }
}

impl Source for HttpSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size_bytes)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let within = PIECE_BYTES - at % PIECE_BYTES;
            let is_small = (rest.len() as u64) < PIECE_BYTES;
            let length = if is_small { within } else { RANGE_BYTES_MAX }.min(rest.len() as u64);
            let (part, after) = rest.split_at_mut(length as usize);
            if is_small {
                self.read_piece(at, part)?
            } else {
                self.fetch(at, part)?
            }
            (at, rest) = (at + length, after);
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        Ok(vec![Extent { offset, length, data: true }])
    }
}

impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.rest.len() {
            let part =
                self.client.wait(self.response.chunk()).map_err(|error| match error.kind() {
                    ErrorKind::Interrupted => io::Error::from(io::ErrorKind::Interrupted),
                    _ => io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string()),
                })?;
            let Some(part) = part else { return Ok(0) };
            (self.rest, self.at) = (part.to_vec(), 0);
        }
        let bytes = buf.len().min(self.rest.len() - self.at);
        buf[..bytes].copy_from_slice(&self.rest[self.at..self.at + bytes]);
        self.at += bytes;
        Ok(bytes)
    }
}

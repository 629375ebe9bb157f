//! The HTTP client below `object_store`. It sends every request once, follows no redirects, and keeps what
//! the answer said, so that no outcome has to be guessed from an error of the library.
//!
//! Invariants:
//! - A request that has begun to go out is never sent again here. (A connection that the service closed before
//!   anything was written to it is replaced. The service has seen nothing of such a request.)
//! - What is kept of an answer has no secrets: a status, a code word and the name of a region. Bodies of
//!   errors may repeat keys and signatures, and URLs may have signatures in them; neither is ever kept.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections without requests are closed after this time. Services close them after 20 s and more, and a
/// request that meets a closed connection costs a repetition.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest answer that is accepted, far above the largest object of a pool.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// The status of a part of an object.
const PARTIAL_CONTENT: u16 = 206;
/// The status for a range that begins at the end of an object or behind it.
pub(super) const RANGE_NOT_SATISFIABLE: u16 = 416;
/// The longest code word in an error that is believed to be one.
const CODE_BYTES_MAX: usize = 64;

/// What is known of a request after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// A request went to the service itself, and not only to one that gives credentials.
    pub sent: bool,
    /// The status of the last answer.
    pub status: Option<u16>,
    /// The code word of the last answer: `NoSuchBucket`.
    pub code: Option<String>,
    /// The region that the last answer names.
    pub region: Option<String>,
    /// Why there was no answer, or none that is whole.
    pub failure: Option<Failure>,
    /// Why credentials could not be read. One sentence.
    pub credentials: Option<String>,
    /// An error came as something else than the service would send it.
    pub foreign: bool,
}

/// Why there was no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such host.
    NoHost,
    /// The name of the host could not be looked up now.
    Lookup,
    /// Nobody accepts connections there: why.
    Connect(String),
    /// The connection could not be secured: why.
    Tls(String),
    /// No answer came in time.
    TimedOut,
    /// The connection was cut, or what came was not HTTP.
    Cut,
}

/// What is seen while one call of the library runs.
pub(super) type Trace = Arc<Mutex<Seen>>;

tokio::task_local! {
    static TRACE: Trace;
}

/// Runs a call of the library. What its requests show is kept in `trace`.
pub(super) async fn traced<F: Future>(trace: Trace, call: F) -> F::Output {
    TRACE.scope(trace, call).await
}

/// Changes what was seen of the present call.
pub(super) fn note(change: impl FnOnce(&mut Seen)) {
    let _ = TRACE.try_with(|trace| change(&mut lock(trace)));
}

pub(super) fn lock(trace: &Trace) -> std::sync::MutexGuard<'_, Seen> {
    trace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the HTTP clients of a store: for its service, and for those that give credentials.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    /// `host:port` of the service.
    authority: String,
    client: reqwest::Client,
}

impl Connector {
    /// For the service at this URL. A file of more certificates of authorities may be named.
    ///
    /// # Errors
    /// Why no client could be made. One sentence.
    pub fn new(service: &str, authorities: Option<&[u8]>) -> Result<Self, String> {
        // Fails only where a provider is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url =
            reqwest::Url::parse(service).map_err(|e| format!("'{service}' is no URL: {e}"))?;
        let more = match authorities {
            None => Vec::new(),
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem)
                .map_err(|_| "AWS_CA_BUNDLE names a file that has no certificates".to_string())?,
        };
        let client = match builder().tls_certs_merge(more).build() {
            Ok(client) => client,
            // A host without certificates of authorities can still use a service without TLS.
            Err(_) if url.scheme() == "http" => builder()
                .tls_certs_only([])
                .build()
                .map_err(|_| "cannot make a client for HTTP".to_string())?,
            Err(_) => {
                return Err("this host has no certificates of authorities to check the service's \
                            certificate with: install the package ca-certificates"
                    .to_string());
            }
        };
        Ok(Self { authority: authority(&url), client })
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("marcot/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
}

fn authority(url: &reqwest::Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let uri = request.uri().to_string();
        let own = reqwest::Url::parse(&uri).is_ok_and(|url| authority(&url) == self.authority);
        let batch = uri.contains("comp=batch");
        let list = uri.contains("list-type=2") || uri.contains("comp=list");
        let removal = request.method().as_str() == "DELETE";
        note(|seen| {
            *seen = Seen { sent: seen.sent || own, ..Seen::default() };
        });
        let answer = self.client.call(request).await;
        let response =
            answer.inspect_err(|error| note(|seen| seen.failure = Some(failure(error))))?;
        let (parts, body) = response.into_parts();
        let whole = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let status = parts.status.as_u16();
        note(|seen| seen.status = Some(status));
        let bytes: Bytes = match whole {
            Ok(whole) => whole.to_bytes(),
            Err(error) => {
                note(|seen| seen.failure = Some(Failure::Cut));
                return Err(HttpError::new_boxed(HttpErrorKind::Interrupted, error));
            }
        };
        if status == PARTIAL_CONTENT && bytes.is_empty() {
            // Some services say so of a range behind the end, which the library does not understand.
            note(|seen| seen.status = Some(RANGE_NOT_SATISFIABLE));
        }
        let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
        if !parts.status.is_success() {
            note(|seen| {
                let named = header("x-ms-error-code").and_then(code_word);
                seen.code = named.or_else(|| element(&bytes, "Code"));
                seen.region = header("x-amz-bucket-region")
                    .and_then(code_word)
                    .or_else(|| element(&bytes, "Region"));
                seen.foreign = seen.code.is_none() && !bytes.is_empty();
            });
        } else if (list && !is_list(&bytes)) || (removal && !bytes.is_empty()) {
            // The library would take a page of a proxy for an empty list.
            note(|seen| seen.foreign = true);
            let error = std::io::Error::from(std::io::ErrorKind::InvalidData);
            return Err(HttpError::new(HttpErrorKind::Decode, error));
        } else if batch {
            note(|seen| of_batch(seen, &bytes));
        }
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }
}

/// True for a whole list of objects.
fn is_list(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    let text = text.trim_start_matches('\u{feff}').trim();
    let inside = match text.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, inside)| inside.trim_start()),
        None => text,
    };
    ["ListBucketResult", "EnumerationResults"].into_iter().any(|name| {
        let begun = inside.strip_prefix('<').is_some_and(|rest| rest.starts_with(name));
        let empty = inside.ends_with("/>") && inside.rfind('<') == Some(0);
        begun && (empty || inside.ends_with(&format!("</{name}>")))
    })
}

/// The outcome of the one request in a batch of Azure's.
fn of_batch(seen: &mut Seen, answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            seen.status = rest.split(' ').next().and_then(|status| status.parse().ok());
        } else if let Some(code) = line.strip_prefix("x-ms-error-code:") {
            seen.code = code_word(code.trim());
        }
    }
}

/// Text, if it can be a code word or the name of a region.
fn code_word(text: &str) -> Option<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let fit = !text.is_empty() && text.len() <= CODE_BYTES_MAX && text.bytes().all(fits);
    fit.then(|| text.to_string())
}

/// The text of an element of an XML error, if it is a code word.
fn element(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    code_word(rest.split_once('<')?.0.trim())
}

/// Why a request got no answer. The texts of the errors below are looked at where their types say too little.
fn failure(error: &HttpError) -> Failure {
    if error.kind() == HttpErrorKind::Timeout {
        return Failure::TimedOut;
    }
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut refused = None;
    while let Some(error) = next {
        let below = error.source();
        if let Some(tls) = tls_error(error) {
            return Failure::Tls(tls_words(tls));
        }
        let text = error.to_string();
        if text.contains("dns error") || text.contains("failed to lookup address") {
            let all = with_sources(error);
            let later = all.contains("Temporary failure") || all.contains("try again");
            return if later { Failure::Lookup } else { Failure::NoHost };
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            refused = Some(match io.kind() {
                std::io::ErrorKind::ConnectionRefused => "it refuses connections".to_string(),
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                    "it cannot be reached from here".to_string()
                }
                _ => "no connection comes about".to_string(),
            });
        }
        next = below;
    }
    match (error.kind(), refused) {
        (HttpErrorKind::Connect, Some(why)) => Failure::Connect(why),
        (HttpErrorKind::Connect, None) => Failure::Connect("no connection comes about".to_string()),
        _ => Failure::Cut,
    }
}

/// The error of TLS in an error, also inside errors of I/O, which do not show what they hold as their source.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut error = error;
    loop {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        error = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    }
}

fn tls_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("its certificate is not accepted ({why:?})").replace('\n', " ")
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_string(),
        _ => "TLS fails".to_string(),
    }
}

fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        all.push_str(": ");
        all.push_str(&error.to_string());
        next = error.source();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_words_are_kept_of_an_error() {
        let body = b"<Error><Code>SignatureDoesNotMatch</Code><Key>SECRET</Key></Error>";
        assert_eq!(element(body, "Code").as_deref(), Some("SignatureDoesNotMatch"));
        assert_eq!(element(b"<Error><Code>a b</Code></Error>", "Code"), None);
        assert_eq!(element(b"<html>no</html>", "Code"), None);
        assert_eq!(element(b"<Code>unfinished", "Code"), None);
        assert_eq!(code_word(&"x".repeat(CODE_BYTES_MAX + 1)), None);
    }

    #[test]
    fn only_a_whole_list_is_a_list() {
        let whole = "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\"><Name>b</Name></ListBucketResult>";
        assert!(is_list(whole.as_bytes()));
        assert!(is_list(b"\xef\xbb\xbf<EnumerationResults></EnumerationResults>\n"));
        for end in [0, 20, whole.len() / 2, whole.len() - 1] {
            assert!(!is_list(&whole.as_bytes()[..end]), "{end}");
        }
        assert!(!is_list(b"<html><body>ListBucketResult</body></html>"));
    }

    #[test]
    fn the_answer_in_a_batch_counts() {
        let mut seen = Seen { status: Some(202), ..Seen::default() };
        of_batch(&mut seen, b"--b\r\nHTTP/1.1 403 no\r\nx-ms-error-code: AuthorizationFailure\r\n");
        assert_eq!((seen.status, seen.code.as_deref()), (Some(403), Some("AuthorizationFailure")));
    }
}

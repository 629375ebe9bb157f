//! A small S3 service over HTTP, for tests: in the process, or as the program `marcot-s3-test`.
//!
//! It keeps objects in memory, and checks and changes them behind one mutex, so that conditions hold however
//! many clients race. [`Dialect`] makes it a service that lacks something for good. [`Fault`] breaks single
//! requests, by plan or by chance. It checks the access key and the time of a signature, not the signature
//! itself. It counts requests as a bill does.

mod bucket;
mod counts;
mod faults;
mod http;

use std::collections::{BTreeMap, HashMap};
use std::io::BufReader;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use marcot_store::{Clock, SystemClock};

use bucket::{Bucket, failure};
pub use counts::Counts;
pub use faults::{Chance, Dialect, Fault, Kind, Planned};
use http::{Answer, Request, read_request, write_answer};

/// The access key of a server that is not told another.
pub const ACCESS_KEY: &str = "AKMARCOT";
/// The secret key that tests use. The server does not check it, and repeats it in no answer.
pub const SECRET_KEY: &str = "secret-of-marcot";
/// The bucket of a server that is not told another.
pub const BUCKET: &str = "bucket";
/// How far a request's time may be from the service's, as in S3.
const SKEW_MAX_S: i64 = 15 * 60;

/// What a server begins with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address to listen at.
    pub address: IpAddr,
    /// The port there; 0 for any.
    pub port: u16,
    /// The buckets that exist.
    pub buckets: Vec<String>,
    /// Users who may do everything.
    pub access_keys: Vec<String>,
    /// Users who may read, and change objects only whose names contain the second part.
    pub readers: Vec<(String, String)>,
    /// Everybody may read and list, also without a signature.
    pub public: bool,
    /// The region that signatures must name; `None` for any.
    pub region: Option<String>,
    /// How the service is.
    pub dialect: Dialect,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            buckets: vec![BUCKET.to_string()],
            access_keys: vec![ACCESS_KEY.to_string()],
            readers: Vec::new(),
            public: false,
            region: None,
            dialect: Dialect::default(),
        }
    }
}

struct State {
    buckets: BTreeMap<String, Bucket>,
    options: Options,
    planned: Vec<Planned>,
    chance: Option<Chance>,
    away: Option<Fault>,
    counts: Counts,
    /// The same for each key, and for the prefix of each list.
    counts_of_keys: BTreeMap<String, Counts>,
}

struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
    connections: Mutex<HashMap<u64, TcpStream>>,
}

/// A server. It ends when it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server.
    ///
    /// # Panics
    /// Where it cannot listen.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let listener =
            TcpListener::bind((options.address, options.port)).expect("a port to listen at");
        let address = listener.local_addr().expect("the address of a listener");
        let buckets = options.buckets.iter().map(|name| (name.clone(), Bucket::default()));
        let state = State {
            buckets: buckets.collect(),
            options,
            planned: Vec::new(),
            chance: None,
            away: None,
            counts: Counts::default(),
            counts_of_keys: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            stopped: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        let listener = std::thread::spawn(move || accept(&accepting, &listener));
        Self { shared, address, listener: Some(listener) }
    }

    /// A server as S3 promises to be.
    #[must_use]
    pub fn plain() -> Self {
        Self::start(Options::default())
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Changes how it is.
    pub fn set_dialect(&self, dialect: Dialect) {
        self.state().options.dialect = dialect;
    }

    /// Breaks the next request of a kind.
    pub fn plan(&self, kind: Kind, fault: Fault) {
        self.plan_all(Planned { kind: Some(kind), key: String::new(), count: 1, fault });
    }

    /// Breaks the next requests that fit.
    pub fn plan_all(&self, planned: Planned) {
        self.state().planned.push(planned);
    }

    /// Faults that were planned and have not come yet.
    #[must_use]
    pub fn planned(&self) -> usize {
        self.state().planned.len()
    }

    /// Breaks requests by chance; `None` ends that.
    pub fn set_chance(&self, chance: Option<Chance>) {
        self.state().chance = chance;
    }

    /// All requests end so, until this is `None` again.
    pub fn set_away(&self, fault: Option<Fault>) {
        self.state().away = fault;
    }

    /// The requests until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The requests until now for objects whose names contain this, and for lists whose prefixes do.
    #[must_use]
    pub fn counts_of(&self, part: &str) -> Counts {
        let state = self.state();
        let of_part = state.counts_of_keys.iter().filter(|(key, _)| key.contains(part));
        of_part.fold(Counts::default(), |sum, (_, counts)| sum + *counts)
    }

    /// The names of all objects of a bucket.
    #[must_use]
    pub fn names(&self, bucket: &str) -> Vec<String> {
        self.state().buckets.get(bucket).map(Bucket::keys).unwrap_or_default()
    }

    /// The bytes of an object.
    #[must_use]
    pub fn bytes(&self, bucket: &str, name: &str) -> Option<Vec<u8>> {
        self.state().buckets.get(bucket)?.bytes(name)
    }

    /// Stores an object, as if it had always been there.
    ///
    /// # Panics
    /// Where the bucket does not exist.
    pub fn store(&self, bucket: &str, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let dialect = state.options.dialect.clone();
        let bucket = state.buckets.get_mut(bucket).expect("a bucket");
        bucket.put(name, bytes, &dialect, SystemClock.now_s());
    }

    /// Waits for the end of the listener, so for ever.
    pub fn wait(mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        for stream in lock(&self.shared.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for (number, stream) in (0_u64..).zip(listener.incoming()) {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        if let Ok(other) = stream.try_clone() {
            lock(&shared.connections).insert(number, other);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            serve(&shared, stream);
            lock(&shared.connections).remove(&number);
        });
    }
}

/// Serves the requests of one connection.
fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    let Ok(mut answers) = stream.try_clone() else { return };
    let mut requests = BufReader::new(stream);
    loop {
        match read_request(&mut requests) {
            Ok(Some(request)) => {
                if !answer(shared, &mut answers, request) {
                    break;
                }
            }
            Ok(None) => break,
            Err(_) => {
                let _ = write_answer(&mut answers, &failure(400, "BadRequest", ""), false);
                break;
            }
        }
    }
    // Other handles of the connection are open still, so that it does not close by itself.
    let _ = answers.shutdown(Shutdown::Both);
}

/// Answers a request. False where the connection is to be cut.
fn answer(shared: &Arc<Shared>, stream: &mut TcpStream, request: Request) -> bool {
    let target = Target::of(&request);
    let counted_as = target.counted_as(&request);
    let fault = shared.state().begin(&target, &request);
    let answer = match fault {
        None | Some(Fault::HalfBody) => perform(shared, &target, request),
        Some(Fault::DoneThen(status, code)) => {
            perform(shared, &target, request);
            failure(status, code, "")
        }
        Some(Fault::DoneThenCut) => {
            perform(shared, &target, request);
            return false;
        }
        Some(Fault::Cut) => return false,
        Some(Fault::CutThenDone(later)) => {
            let shared = Arc::clone(shared);
            std::thread::spawn(move || {
                std::thread::sleep(later);
                perform(&shared, &target, request);
            });
            return false;
        }
        Some(Fault::Refuse(status, code)) => {
            failure(status, code, request.header("authorization").unwrap_or_default())
        }
        Some(Fault::Slow(time)) => {
            let answer = perform(shared, &target, request);
            std::thread::sleep(time);
            answer
        }
        Some(Fault::Foreign(status)) => {
            let headers = vec![("content-type", "text/html".to_string())];
            Answer { status, headers, body: b"<html><body>Welcome!</body></html>".to_vec() }
        }
    };
    let half = fault == Some(Fault::HalfBody) && !answer.body.is_empty();
    shared.state().count_answer(&counted_as, answer.body.len());
    write_answer(stream, &answer, half).is_ok() && !half
}

/// What a request is about.
#[derive(Debug, Clone)]
struct Target {
    kind: Kind,
    bucket: String,
    key: String,
}

impl Target {
    fn of(request: &Request) -> Self {
        let path = request.path.trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let kind = match (request.method.as_str(), key.is_empty()) {
            ("PUT", false) => Kind::Put,
            ("GET", false) => Kind::Get,
            ("HEAD", false) => Kind::Head,
            ("DELETE", false) => Kind::Delete,
            ("GET", true) if !bucket.is_empty() => Kind::List,
            _ => Kind::Other,
        };
        Self { kind, bucket: bucket.to_string(), key: key.to_string() }
    }

    /// Under which name it counts: its key, or the prefix of a list.
    fn counted_as(&self, request: &Request) -> String {
        match self.kind {
            Kind::List => request.query.get("prefix").cloned().unwrap_or_default(),
            _ => self.key.clone(),
        }
    }
}

impl State {
    /// Counts the bytes of an answer.
    fn count_answer(&mut self, counted_as: &str, bytes: usize) {
        self.counts.sent_bytes += bytes as u64;
        if let Some(counts) = self.counts_of_keys.get_mut(counted_as) {
            counts.sent_bytes += bytes as u64;
        }
    }

    /// Counts a request, and decides whether it fails.
    fn begin(&mut self, target: &Target, request: &Request) -> Option<Fault> {
        let of_key = self.counts_of_keys.entry(target.counted_as(request)).or_default();
        for counts in [&mut self.counts, of_key] {
            counts.add(target.kind, request.body.len());
        }
        if self.away.is_some() {
            return self.away;
        }
        let fits = |planned: &Planned| {
            planned.kind.is_none_or(|kind| kind == target.kind) && target.key.contains(&planned.key)
        };
        if let Some(place) = self.planned.iter().position(fits) {
            let planned = &mut self.planned[place];
            let fault = planned.fault;
            planned.count -= 1;
            if planned.count == 0 {
                self.planned.remove(place);
            }
            return Some(fault);
        }
        self.chance.as_mut().and_then(|chance| chance.fault(target.kind))
    }

    /// The answer to a user who may not do this.
    fn refuse(&self, target: &Target, request: &Request, now_s: i64) -> Option<Answer> {
        let authorization = request.header("authorization").unwrap_or_default();
        let no = |status, code| Some(failure(status, code, authorization));
        let credential = authorization.split("Credential=").nth(1).unwrap_or_default();
        let mut scope = credential.split(['/', ',']);
        let (user, _, region) = (scope.next(), scope.next(), scope.next());
        let user = user.unwrap_or_default();
        let changes = matches!(target.kind, Kind::Put | Kind::Delete | Kind::Other);
        if user.is_empty() {
            return if self.options.public && !changes { None } else { no(403, "AccessDenied") };
        }
        let reader = self.options.readers.iter().find(|(name, _)| name == user);
        if reader.is_none() && !self.options.access_keys.iter().any(|name| name == user) {
            return no(403, "InvalidAccessKeyId");
        }
        let signed_s = request.header("x-amz-date").and_then(bucket::signature_time);
        let own_s = now_s + self.options.dialect.clock_ahead_s;
        if signed_s.is_none_or(|signed_s| (own_s - signed_s).abs() > SKEW_MAX_S) {
            return no(403, "RequestTimeTooSkewed");
        }
        if let Some(own) = &self.options.region
            && region != Some(own.as_str())
        {
            let mut answer = failure(400, "AuthorizationHeaderMalformed", authorization);
            answer.body = String::from_utf8_lossy(&answer.body)
                .replace("</Code>", &format!("</Code><Region>{own}</Region>"))
                .into_bytes();
            return Some(answer);
        }
        if changes && reader.is_some_and(|(_, part)| !target.key.contains(part.as_str())) {
            return no(403, "AccessDenied");
        }
        None
    }
}

/// Does what a request asks for.
fn perform(shared: &Shared, target: &Target, request: Request) -> Answer {
    let now_s = SystemClock.now_s();
    let mut state = shared.state();
    if let Some(answer) = state.refuse(target, &request, now_s) {
        return answer;
    }
    let dialect = state.options.dialect.clone();
    if target.kind == Kind::Other {
        return other(&mut state, target, &request);
    }
    let Some(bucket) = state.buckets.get_mut(&target.bucket) else {
        return failure(404, "NoSuchBucket", "");
    };
    match target.kind {
        Kind::Put => {
            if let Err(answer) = bucket.check(&target.key, &request, &dialect) {
                return answer;
            }
            let of_swaps = dialect.unlocked_swaps.filter(|_| request.header("if-match").is_some());
            let Some(gap) = dialect.unlocked.or(of_swaps) else {
                return bucket.put(&target.key, request.body, &dialect, now_s);
            };
            drop(state);
            std::thread::sleep(gap);
            match shared.state().buckets.get_mut(&target.bucket) {
                Some(bucket) => bucket.put(&target.key, request.body, &dialect, now_s),
                None => failure(404, "NoSuchBucket", ""),
            }
        }
        Kind::Get => bucket.get(&target.key, &request, &dialect),
        Kind::Head => {
            let mut answer = bucket.get(&target.key, &request, &dialect);
            answer.headers.push(("content-length", answer.body.len().to_string()));
            answer.body.clear();
            answer
        }
        Kind::Delete => bucket.delete(&target.key, &dialect),
        Kind::List | Kind::Other => bucket.list(&target.bucket, &request, &dialect),
    }
}

/// Requests about buckets, so that other programs can make their own.
fn other(state: &mut State, target: &Target, request: &Request) -> Answer {
    match (request.method.as_str(), target.bucket.is_empty()) {
        ("PUT", false) => {
            state.buckets.entry(target.bucket.clone()).or_default();
            Answer { status: 200, ..Answer::default() }
        }
        ("HEAD", false) if state.buckets.contains_key(&target.bucket) => {
            Answer { status: 200, ..Answer::default() }
        }
        ("HEAD" | "DELETE", false) => failure(404, "NoSuchBucket", ""),
        _ => failure(501, "NotImplemented", ""),
    }
}

//! The server as a whole: listening, negotiating, opening on demand, closing when idle, stopping.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use marcot::{Error, ErrorKind, Result};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use marcot_serve::nbd::{Address, ExportName, Exports, NbdServer, ServerOptions, StopHandle};
use support::memory_device::{MemoryDevice, Probes};
use support::nbd_client::{
    ERR_POLICY, FLUSH, GO, INFO, LIST, NbdClient, ask, option, option_reply, request,
};

/// Exports with one letter or digit as name. Opening "s" lasts until the test allows it. Opening a digit never
/// ends; all digits are in one pool.
#[derive(Default)]
struct Letters {
    lists: AtomicUsize,
    opened: AtomicUsize,
    probes: Mutex<Vec<Probes>>,
    slow: Mutex<Slow>,
    changed: Condvar,
}

/// The state of the opening of "s".
#[derive(Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slow {
    #[default]
    NotYet,
    Begun,
    LetGo,
}

impl Letters {
    fn advance(&self, to: Slow) {
        *self.slow.lock().unwrap() = to;
        self.changed.notify_all();
    }

    fn wait_for(&self, state: Slow) {
        let slow = self.slow.lock().unwrap();
        let waited = self.changed.wait_timeout_while(slow, WAIT_MAX, |slow| *slow < state);
        assert!(!waited.unwrap().1.timed_out(), "the slow export does not get on");
    }
}

impl Exports for Letters {
    fn list(&self) -> Result<Vec<ExportName>> {
        std::thread::sleep(Duration::from_millis(100));
        self.lists.fetch_add(1, Ordering::SeqCst);
        Ok(vec![self.describe("a")?])
    }

    fn describe(&self, name: &str) -> Result<ExportName> {
        let name = if name.is_empty() { "a" } else { name };
        if name.len() > 1 {
            return Err(Error::new(ErrorKind::NotFound, "a name is one letter"));
        }
        Ok(ExportName { name: name.to_owned(), description: String::new() })
    }

    fn pool(&self, name: &str) -> String {
        if name.starts_with(|c: char| c.is_ascii_digit()) { "hung" } else { "good" }.to_owned()
    }

    fn open(&self, name: &str) -> Result<HostHandle> {
        while self.pool(name) == "hung" {
            std::thread::park();
        }
        if name == "s" {
            self.advance(Slow::Begun);
            self.wait_for(Slow::LetGo);
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        let device = MemoryDevice::new(1 << 20);
        self.probes.lock().unwrap().push(device.probe());
        ImageHost::start(Box::new(device), HostOptions::default())
    }
}

/// Much longer than a client's negotiation takes on a busy machine.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(4);
/// Only a hang takes this long, not a slow machine.
const WAIT_MAX: Duration = Duration::from_secs(120);

struct Running {
    exports: Arc<Letters>,
    socket: PathBuf,
    addresses: Vec<Address>,
    stop: StopHandle,
    thread: Option<JoinHandle<Result<()>>>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start(change: impl FnOnce(&mut ServerOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nbd");
        let mut options = ServerOptions {
            addresses: vec![Address::Unix { path: socket.clone(), mode: 0o600 }],
            ..ServerOptions::default()
        };
        change(&mut options);
        let exports = Arc::new(Letters::default());
        let server = NbdServer::bind(&options, Arc::clone(&exports) as _).unwrap();
        let stop = server.stop_handle();
        let addresses = server.addresses().to_vec();
        let thread = Some(std::thread::spawn(move || server.run()));
        Self { exports, socket, addresses, stop, thread, _directory: directory }
    }

    fn opened(&self) -> usize {
        self.exports.opened.load(Ordering::SeqCst)
    }

    fn stop(&mut self) -> Result<()> {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn connect(socket: &Path) -> NbdClient {
    NbdClient::new(UnixStream::connect(socket).unwrap())
}

#[test]
fn an_image_is_opened_once_for_all_its_names_and_clients() {
    let mut server = Running::start(|_| {});
    let mut first = NbdClient::connect(&server.socket, "a");
    let mut second = NbdClient::connect(&server.socket, "");
    assert_eq!(first.write(0, 5, b"shared"), 0);
    assert_eq!(second.read(5, 6).unwrap(), b"shared");
    let mut other = NbdClient::connect(&server.socket, "b");
    assert_eq!(other.read(5, 6).unwrap(), [0; 6]);
    assert_eq!(server.opened(), 2);
    server.stop().unwrap();
    assert!(first.is_closed() && other.is_closed());
    assert!(server.exports.probes.lock().unwrap().iter().all(|probe| probe.get().closed));
    assert!(!server.socket.exists());
}

#[test]
fn an_unused_image_is_closed_and_opened_again() {
    let mut server = Running::start(|options| options.idle_time = Duration::ZERO);
    let client = NbdClient::connect(&server.socket, "a");
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!server.exports.probes.lock().unwrap()[0].get().closed);
    drop(client);
    let start = Instant::now();
    while !server.exports.probes.lock().unwrap()[0].get().closed {
        assert!(start.elapsed() < WAIT_MAX);
        std::thread::sleep(Duration::from_millis(20));
    }
    NbdClient::connect(&server.socket, "a");
    assert_eq!(server.opened(), 2);
    server.stop().unwrap();
}

#[test]
fn a_poisoned_image_is_opened_afresh_for_the_next_client() {
    let mut server = Running::start(|_| {});
    let mut client = NbdClient::connect(&server.socket, "a");
    server.exports.probes.lock().unwrap()[0].get().fail_flushes = Some(ErrorKind::Poisoned);
    // The client is disconnected long before the image is closed, and the next client comes at once.
    server.exports.probes.lock().unwrap()[0].get().close_time = Duration::from_millis(500);
    client.send(&request(FLUSH, 0, 1, 0, 0));
    assert_eq!(client.simple(), (5, 1));
    assert!(client.is_closed());
    let mut client = NbdClient::connect(&server.socket, "a");
    assert_eq!(client.write(1, 0, b"fresh"), 0);
    assert_eq!(server.opened(), 2);
    server.stop().unwrap();
}

#[test]
fn slow_and_malformed_clients_disturb_nobody() {
    let mut server = Running::start(|options| {
        options.handshake_time_max = HANDSHAKE_TIME_MAX;
    });
    let mut silent = connect(&server.socket);
    let mut garbage = connect(&server.socket);
    garbage.0.write_all(&[0xff; 1000]).unwrap();
    let socket = server.socket.clone();
    let slow = std::thread::spawn(move || NbdClient::connect(&socket, "s").read(0, 1).unwrap());
    server.exports.wait_for(Slow::Begun);
    assert_eq!(NbdClient::connect(&server.socket, "a").read(0, 1).unwrap(), [0]);
    assert_eq!(server.opened(), 1, "the slow export is still being opened");
    assert_eq!(garbage.bytes(18)[..8], *b"NBDMAGIC");
    assert!(garbage.is_closed());
    assert_eq!(silent.bytes(18)[..8], *b"NBDMAGIC");
    assert!(silent.is_closed(), "the handshake has no time limit");
    // The time limit is for the client's own messages, not for the opening of an image.
    std::thread::sleep(HANDSHAKE_TIME_MAX);
    server.exports.advance(Slow::LetGo);
    assert_eq!(slow.join().unwrap(), [0]);
    server.stop().unwrap();
}

#[test]
fn clients_that_never_negotiate_keep_nobody_waiting() {
    let mut server = Running::start(|options| options.negotiating_max = 2);
    let mut idle: Vec<NbdClient> = (0..4).map(|_| connect(&server.socket)).collect();
    let start = Instant::now();
    assert_eq!(NbdClient::connect(&server.socket, "a").read(0, 1).unwrap(), [0]);
    assert!(start.elapsed() < Duration::from_secs(5), "waited for the silent");
    assert_eq!(idle[0].bytes(18)[..8], *b"NBDMAGIC");
    assert!(idle[0].is_closed(), "the one that was silent longest made room");
    server.stop().unwrap();
}

#[test]
fn one_client_too_many_is_disconnected_until_another_leaves() {
    let mut server = Running::start(|options| options.connections_max = 2);
    let mut first = NbdClient::connect(&server.socket, "a");
    let second = NbdClient::connect(&server.socket, "b");
    assert!(connect(&server.socket).is_closed());
    assert_eq!(first.read(0, 1).unwrap(), [0]);
    drop(second);
    let deadline = Instant::now() + WAIT_MAX;
    while connect(&server.socket).is_closed() {
        assert!(Instant::now() < deadline, "the place of the second stays taken");
        std::thread::sleep(Duration::from_millis(10));
    }
    server.stop().unwrap();
}

#[test]
fn tcp_serves_too_and_a_busy_address_is_refused() {
    let mut server = Running::start(|options| {
        options.addresses.push(Address::Tcp("127.0.0.1:0".parse().unwrap()));
    });
    let Address::Tcp(address) = server.addresses[1] else { panic!() };
    let mut greeting = [0; 18];
    TcpStream::connect(address).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..8], *b"NBDMAGIC");
    let taken = Address::Unix { path: server.socket.clone(), mode: 0o600 };
    let options = ServerOptions { addresses: vec![taken], ..ServerOptions::default() };
    let refused = NbdServer::bind(&options, Arc::new(Letters::default())).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Exists);
    server.stop().unwrap();
}

#[test]
fn a_pool_that_hangs_keeps_only_itself_busy_and_its_clients_get_an_error() {
    let mut server = Running::start(|options| options.answer_time_max = Duration::from_secs(3));
    let mut waiting: Vec<NbdClient> =
        (0..40).map(|i| ask(&server.socket, GO, &(i % 10).to_string())).collect();
    assert_eq!(NbdClient::connect(&server.socket, "a").read(0, 1).unwrap(), [0]);
    for client in &mut waiting {
        assert_eq!(option_reply(client).0, ERR_POLICY);
    }
    // A client that got this error can go on.
    waiting[0].send(&option(GO, &[0, 0, 0, 1, b'b', 0, 0])[4..]);
    assert_eq!(option_reply(&mut waiting[0]).0, 3);
    server.stop().unwrap();
}

#[test]
fn one_list_serves_all_who_wait() {
    let mut server = Running::start(|_| {});
    let mut clients: Vec<NbdClient> = (0..100).map(|_| connect(&server.socket)).collect();
    for client in &mut clients {
        client.send(&option(LIST, b""));
    }
    for client in &mut clients {
        client.bytes(18);
        assert_eq!(option_reply(client), (2, b"\0\0\0\x01a".to_vec()));
        assert_eq!(option_reply(client), (1, vec![]));
    }
    let lists = server.exports.lists.load(Ordering::SeqCst);
    assert!(lists < 20, "{lists} lists were made");
    // An option sent after a LIST is answered after it.
    let mut both = connect(&server.socket);
    both.send(&[option(LIST, b""), option(INFO, &[0, 0, 0, 1, b'a', 0, 0])[4..].to_vec()].concat());
    both.bytes(18);
    let kinds: Vec<u32> = (0..4).map(|_| option_reply(&mut both).0).collect();
    assert_eq!(kinds, [2, 1, 3, 1]);
    server.stop().unwrap();
}

#[test]
fn one_image_too_many_is_refused_and_an_unused_one_makes_room() {
    let mut server = Running::start(|options| options.images_max = 2);
    let mut first = NbdClient::connect(&server.socket, "a");
    let second = NbdClient::connect(&server.socket, "b");
    let mut refused = ask(&server.socket, GO, "c");
    assert_eq!(option_reply(&mut refused).0, ERR_POLICY);
    assert_eq!(first.write(0, 0, b"goes on"), 0);
    drop(second);
    let deadline = Instant::now() + Duration::from_secs(10);
    while option_reply(&mut ask(&server.socket, INFO, "c")).0 == ERR_POLICY {
        assert!(Instant::now() < deadline, "the unused image does not make room");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(first.read(0, 7).unwrap(), b"goes on");
    server.stop().unwrap();
}

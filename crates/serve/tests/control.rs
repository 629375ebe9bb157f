//! The owner's control socket, used by its own client and by hostile ones.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use marcot::ErrorKind;
use marcot_serve::control::message::{Answer, encode_answer, encode_command};
use marcot_serve::control::{
    self, Client, Command, Interrupt, Patience, Place, Reply, SOCKET_NAME,
};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use support::memory_device::{MemoryDevice, Probes};

fn place(directory: &Path) -> Place {
    Place::new(directory, "pool/image")
}

fn connect(directory: &Path) -> marcot::Result<Client> {
    Client::connect(&place(directory), &Patience::default())
}

fn ask(
    directory: &Path,
    command: &Command,
    progress: &mut dyn FnMut(u64, u64),
) -> marcot::Result<Reply> {
    control::ask(&place(directory), command, &Patience::default(), progress)
}

fn own(directory: &Path) -> HostHandle {
    let options = HostOptions {
        name: "pool/image".to_owned(),
        control: Some(place(directory)),
        ..HostOptions::default()
    };
    ImageHost::start(Box::new(MemoryDevice::new(64 << 20)), options).unwrap()
}

fn quiet(_done: u64, _total: u64) {}

#[test]
fn commands_reach_the_owner_and_replies_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let host = own(directory.path());
    let mut client = connect(directory.path()).unwrap();
    let data: Vec<u8> = (0..20_u32 << 20).map(|i| (i % 249) as u8).collect();
    let write = Command::Write { offset: 99, data: data.clone() };
    assert_eq!(client.ask(&write, &mut quiet).unwrap(), Reply::Done);
    let read = Command::Read { offset: 99, length: data.len() as u64 };
    assert!(client.ask(&read, &mut quiet).unwrap() == Reply::Data { data });
    let resize = Command::Resize { size_bytes: 1 << 30, allow_shrink: false };
    assert_eq!(ask(directory.path(), &resize, &mut quiet).unwrap(), Reply::Done);
    assert_eq!(host.size_bytes(), 1 << 30);
    host.stop().unwrap();
    assert!(!directory.path().join(SOCKET_NAME).exists());
}

#[test]
fn status_tells_who_and_how() {
    let directory = tempfile::tempdir().unwrap();
    let host = own(directory.path());
    let usage = || match ask(directory.path(), &Command::Status, &mut quiet).unwrap() {
        Reply::Status { watchers } => (watchers[0].pid, watchers[0].usage.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(usage(), (std::process::id(), "nbd, 0 connections".to_owned()));
    host.set_usage(Some("device /dev/loop0".to_owned())).unwrap();
    assert_eq!(usage().1, "device /dev/loop0");
}

#[test]
fn progress_arrives_before_the_reply_and_errors_keep_their_kind() {
    let directory = tempfile::tempdir().unwrap();
    let host = own(directory.path());
    let mut told = Vec::new();
    ask(directory.path(), &Command::Flatten, &mut |done, total| told.push((done, total))).unwrap();
    assert_eq!(told.first(), Some(&(0, 10)));
    let mut told = 0;
    host.execute(Command::Flatten, &mut |_, _| told += 1).unwrap();
    assert_eq!(told, 11);
    let protect = Command::SnapProtect { name: "x".to_owned() };
    let error = ask(directory.path(), &protect, &mut quiet).unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::NotFound, "no snapshot x"));
}

#[test]
fn no_owner_is_told_from_a_dead_one_by_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let missing = connect(directory.path()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    drop(std::os::unix::net::UnixListener::bind(directory.path().join(SOCKET_NAME)).unwrap());
    let dead = connect(directory.path()).unwrap_err();
    assert_eq!(dead.kind(), ErrorKind::NotFound);
    let _host = own(directory.path());
    connect(directory.path()).unwrap();
}

#[test]
fn a_directory_with_a_very_long_path_works() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    let _host = own(&deep);
    ask(&deep, &Command::Status, &mut quiet).unwrap();
    let mode = std::fs::metadata(deep.join(SOCKET_NAME)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn malformed_frames_close_one_connection_and_unknown_commands_none() {
    let directory = tempfile::tempdir().unwrap();
    let _host = own(directory.path());
    let path = directory.path().join(SOCKET_NAME);
    let mut bad = UnixStream::connect(&path).unwrap();
    bad.write_all(&[0xff; 64]).unwrap();
    assert!(bad.read_to_end(&mut Vec::new()).map_or(true, |count| count == 0));

    let mut newer = UnixStream::connect(&path).unwrap();
    for _ in 0..2 {
        let json = br#"{"image":"pool/image","command":"from_the_future"}"#;
        newer.write_all(&(json.len() as u32).to_le_bytes()).unwrap();
        newer.write_all(&[0; 4]).unwrap();
        newer.write_all(json).unwrap();
    }
    for _ in 0..2 {
        let mut header = [0; 8];
        newer.read_exact(&mut header).unwrap();
        let mut json = vec![0; u32::from_le_bytes(header[..4].try_into().unwrap()) as usize];
        newer.read_exact(&mut json).unwrap();
        assert!(String::from_utf8(json).unwrap().contains("invalid"));
    }
    ask(directory.path(), &Command::Status, &mut quiet).unwrap();
}

#[test]
fn a_panic_in_the_engine_ends_that_image_with_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let host = own(directory.path());
    let lost = ask(directory.path(), &Command::Reclaim, &mut quiet).unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Interrupted);
    assert_eq!(host.wait().unwrap_err().kind(), ErrorKind::Io);
    assert!(!directory.path().join(SOCKET_NAME).exists());
}

/// An owner that accepts, reads a command, sends `answer`, and ends.
fn short_lived_owner(directory: &Path, answer: Vec<u8>) -> std::thread::JoinHandle<()> {
    let listener = std::os::unix::net::UnixListener::bind(directory.join(SOCKET_NAME)).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 1024]).unwrap();
        socket.write_all(&answer).unwrap();
    })
}

#[test]
fn a_client_knows_whether_an_owner_that_went_away_had_begun() {
    let command = Command::Flatten;
    let mut begun = Vec::new();
    encode_answer(&Answer::Begun, &mut begun).unwrap();
    let ask = |answer: Vec<u8>| {
        let directory = tempfile::tempdir().unwrap();
        let owner = short_lived_owner(directory.path(), answer);
        let outcome = connect(directory.path()).unwrap().try_ask(&command, &mut |_, _| {});
        owner.join().unwrap();
        outcome
    };
    assert_eq!(ask(Vec::new()).unwrap(), None);
    assert_eq!(ask(begun).unwrap_err().kind(), ErrorKind::Interrupted);
}

/// An image that a server keeps open without a client.
fn keep(directory: &Path) -> (HostHandle, Probes) {
    let device = MemoryDevice::new(64 << 20);
    let probes = device.probe();
    let options = HostOptions {
        name: "pool/image".to_owned(),
        control: Some(place(directory)),
        gives_way: true,
        ..HostOptions::default()
    };
    (ImageHost::start(Box::new(device), options).unwrap(), probes)
}

#[test]
fn an_image_that_nobody_uses_gives_way_and_the_answer_comes_when_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let (host, probes) = keep(directory.path());
    assert_eq!(ask(directory.path(), &Command::GiveWay, &mut quiet).unwrap(), Reply::Done);
    assert!(probes.get().closed);
    assert!(host.hold().is_none());
    host.wait().unwrap();
}

#[test]
fn an_image_that_somebody_uses_does_not_give_way_and_says_to_whom() {
    let directory = tempfile::tempdir().unwrap();
    let (host, _) = keep(directory.path());
    let refusal = || {
        let error = ask(directory.path(), &Command::GiveWay, &mut quiet).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        error.message().to_owned()
    };
    let hold = host.hold().unwrap();
    assert!(refusal().contains("a client that has just come"));
    drop(hold);
    let mut session = connect(directory.path()).unwrap();
    session.ask(&Command::Flush, &mut quiet).unwrap();
    let by = format!("a command of process {}", std::process::id());
    assert!(refusal().contains(&by), "{}", refusal());
    assert!(host.stop_if_unused().is_none());
    drop(session);
    assert!(matches!(host.stop_if_unused(), Some(Ok(()))));
    let other = tempfile::tempdir().unwrap();
    let _device = own(other.path());
    let error = ask(other.path(), &Command::GiveWay, &mut quiet).unwrap_err();
    assert!(error.message().contains("nbd, 0 connections"), "{error}");
}

#[test]
fn many_who_want_the_image_for_themselves_are_not_in_each_others_way() {
    let directory = tempfile::tempdir().unwrap();
    let (_host, _) = keep(directory.path());
    let mut first = connect(directory.path()).unwrap();
    let hold = _host.hold().unwrap();
    assert!(first.ask(&Command::GiveWay, &mut quiet).is_err());
    drop(hold);
    assert_eq!(ask(directory.path(), &Command::GiveWay, &mut quiet).unwrap(), Reply::Done);
}

#[test]
fn a_slow_owner_is_waited_for_and_a_silent_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let (_host, probes) = keep(directory.path());
    let silence_max = Duration::from_secs(2);
    let impatient = Patience { silence_max, ..Patience::default() };
    probes.get().checkpoint_time = 2 * silence_max;
    let mut first = Client::connect(&place(directory.path()), &impatient).unwrap();
    // One client whose turn has not come, and one that has not even been accepted.
    let others = std::thread::scope(|scope| {
        let first = scope.spawn(|| first.ask(&Command::Checkpoint, &mut quiet));
        std::thread::sleep(silence_max / 4);
        let place = place(directory.path());
        let other = control::ask(&place, &Command::Flush, &impatient, &mut quiet);
        assert_eq!(first.join().unwrap().unwrap(), Reply::Done);
        other
    });
    assert_eq!(others.unwrap(), Reply::Done);

    let silent = tempfile::tempdir().unwrap();
    let _listens = UnixListener::bind(silent.path().join(SOCKET_NAME)).unwrap();
    let start = Instant::now();
    let error = control::ask(&place(silent.path()), &Command::Flush, &impatient, &mut quiet);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Owned);
    assert!(error.message().contains("kill -CONT"), "{error}");
    assert!(start.elapsed() >= silence_max);
    let hasty = Patience { interrupt: Interrupt::when(|| true), ..Patience::default() };
    let error = control::ask(&place(silent.path()), &Command::Flush, &hasty, &mut quiet);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Interrupted);
}

#[test]
fn a_command_whose_client_is_gone_before_it_begins_is_not_carried_out() {
    let directory = tempfile::tempdir().unwrap();
    let (host, probes) = keep(directory.path());
    probes.get().checkpoint_time = Duration::from_secs(1);
    let mut busy = connect(directory.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| busy.ask(&Command::Checkpoint, &mut quiet).unwrap());
        std::thread::sleep(Duration::from_millis(200));
        let mut bytes = Vec::new();
        let resize = Command::Resize { size_bytes: 1 << 30, allow_shrink: false };
        encode_command("pool/image", &resize, &mut bytes).unwrap();
        let mut gone = UnixStream::connect(directory.path().join(SOCKET_NAME)).unwrap();
        gone.write_all(&bytes).unwrap();
    });
    ask(directory.path(), &Command::Flush, &mut quiet).unwrap();
    assert_eq!(host.size_bytes(), 64 << 20);
}

#[test]
fn no_link_is_followed_and_no_other_image_is_spoken_to() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = own(other.path());
    let link = ours.path().join(SOCKET_NAME);
    let resize = Command::Resize { size_bytes: 1 << 30, allow_shrink: false };
    std::os::unix::fs::symlink(other.path().join(SOCKET_NAME), &link).unwrap();
    let refused = ask(ours.path(), &resize, &mut quiet).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    // A hard link cannot be told from the socket itself. The owner refuses the wrong image.
    std::fs::remove_file(&link).unwrap();
    std::fs::hard_link(other.path().join(SOCKET_NAME), &link).unwrap();
    let theirs = Place::new(ours.path(), "pool/another");
    let refused = control::ask(&theirs, &resize, &Patience::default(), &mut quiet).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, "no socket").unwrap();
    assert_eq!(
        ask(ours.path(), &resize, &mut quiet).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
    assert_eq!(host.size_bytes(), 64 << 20);
}

#[test]
fn the_sockets_of_another_users_place_are_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let host = own(directory.path());
    let user = rustix::process::geteuid().as_raw() + 1;
    let theirs = place(directory.path()).of_user(user);
    let refused = control::ask(&theirs, &Command::Flush, &Patience::default(), &mut quiet);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(Client::connect_readers(&theirs, &Patience::default()).unwrap().is_empty());
    let options = HostOptions { control: Some(theirs), ..HostOptions::default() };
    assert!(ImageHost::start(Box::new(MemoryDevice::new(4096)), options).is_err());
    ask(directory.path(), &Command::Flush, &mut quiet).unwrap();
    drop(host);
}

//! The owner's control socket, asked by its client and by worse ones.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use marcot::{Command, ErrorKind, Reply};
use marcot_serve::control::message::{Answer, encode_answer};
use marcot_serve::control::{Client, SOCKET_NAME, ask};
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use support::memory_device::MemoryDevice;

fn own(directory: &Path) -> HostHandle {
    let options = HostOptions {
        name: "pool/image".to_owned(),
        control_directory: Some(directory.to_owned()),
        ..HostOptions::default()
    };
    ImageHost::start(Box::new(MemoryDevice::new(64 << 20)), options).unwrap()
}

fn quiet(_done: u64, _total: u64) {}

#[test]
fn commands_reach_the_owner_and_replies_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let host = own(directory.path());
    let mut client = Client::connect(directory.path()).unwrap();
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
    let missing = Client::connect(directory.path()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    drop(std::os::unix::net::UnixListener::bind(directory.path().join(SOCKET_NAME)).unwrap());
    let dead = Client::connect(directory.path()).unwrap_err();
    assert_eq!(dead.kind(), ErrorKind::NotFound);
    let _host = own(directory.path());
    Client::connect(directory.path()).unwrap();
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
        let json = br#"{"command":"from_the_future"}"#;
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

/// An owner that accepts, reads a command, says `answer`, and goes away.
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
        let outcome = Client::connect(directory.path()).unwrap().try_ask(&command, &mut |_, _| {});
        owner.join().unwrap();
        outcome
    };
    assert_eq!(ask(Vec::new()).unwrap(), None);
    assert_eq!(ask(begun).unwrap_err().kind(), ErrorKind::Interrupted);
}

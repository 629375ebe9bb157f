//! The attendant's work around commands, while the image is served.

mod support;

use std::sync::{Arc, Mutex};

use marcot::{Error, ErrorKind, Result};
use marcot_serve::control::{Command, QuiesceMode};
use marcot_serve::host::{Attendant, DeviceRequest, HostHandle, HostOptions, ImageHost};
use support::memory_device::MemoryDevice;

/// An attendant that writes to the image in every event, as a file system does while it is frozen.
struct Writer {
    host: HostHandle,
    events: Mutex<Vec<String>>,
    fails: bool,
}

impl Writer {
    fn note(&self, event: &str) {
        let data = event.as_bytes().to_vec();
        let write = DeviceRequest::Write { offset: 0, data, fua: true };
        self.host.submit_and_wait(write).expect("the image is served meanwhile");
        self.events.lock().unwrap().push(event.to_owned());
    }
}

impl Attendant for Writer {
    fn before_snapshot(&self) -> Result<()> {
        self.note("before");
        if self.fails { Err(Error::new(ErrorKind::Io, "not quiet")) } else { Ok(()) }
    }

    fn after_snapshot(&self) {
        self.note("after");
    }

    fn resized(&self, size_bytes: u64) -> Result<()> {
        self.note(&format!("{size_bytes} bytes"));
        Ok(())
    }
}

fn attended(fails: bool) -> (HostHandle, Arc<Writer>) {
    let device = Box::new(MemoryDevice::new(1 << 20));
    let host = ImageHost::start(device, HostOptions::default()).unwrap();
    let writer = Arc::new(Writer { host: host.clone(), events: Mutex::default(), fails });
    host.set_attendant(writer.clone()).unwrap();
    (host, writer)
}

fn run(host: &HostHandle, command: Command) -> Result<()> {
    host.execute(command, &mut |_, _| {}).map(drop)
}

fn events(writer: &Writer) -> Vec<String> {
    std::mem::take(&mut *writer.events.lock().unwrap())
}

#[test]
fn a_resize_is_answered_when_the_attendant_has_been_called() {
    let (host, writer) = attended(false);
    run(&host, Command::Resize { size_bytes: 2 << 20, allow_shrink: false }).unwrap();
    assert_eq!(events(&writer), ["2097152 bytes"]);
    run(&host, Command::Resize { size_bytes: 2 << 20, allow_shrink: false }).unwrap();
    run(&host, Command::Flush).unwrap();
    assert!(events(&writer).is_empty());
    host.stop().unwrap();
}

#[test]
fn a_snapshot_is_not_taken_where_quiescing_fails_and_that_is_undone_all_the_same() {
    let snapshot = || Command::SnapCreate { name: "s".to_owned() };
    let (host, writer) = attended(true);
    let refused = run(&host, snapshot()).unwrap_err();
    assert_eq!((refused.kind(), refused.message()), (ErrorKind::Io, "not quiet"));
    assert_eq!(events(&writer), ["before", "after"]);
    let with = |quiesce| Command::SnapCreateWith { name: "s".to_owned(), quiesce };
    run(&host, with(QuiesceMode::IgnoreErrors)).unwrap();
    assert_eq!(events(&writer), ["before", "after"]);
    run(&host, with(QuiesceMode::Skip)).unwrap();
    assert!(events(&writer).is_empty());
    host.stop().unwrap();
}

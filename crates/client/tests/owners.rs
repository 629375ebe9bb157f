//! Operations on open images. The owner is in this process, behind its control socket: for the client that is
//! the same as an owner in another process.
#![allow(missing_docs)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use marcot::{CloneOptions, CreateOptions, DiffExtent, ErrorKind, LockInfo};
use marcot_client::Quiesce;
use marcot_client::inspect::Diff;
use marcot_client::layering::Children;
use marcot_client::{Client, Image, ImageSpec, Interrupt, Options};
use marcot_serve::control::message::{Answer, encode_answer};
use marcot_serve::control::{Place, SOCKET_NAME};
use marcot_serve::host::{DeviceRequest, HostDevice, HostHandle, HostOptions, ImageHost};
use tempfile::TempDir;

const SIZE_BYTES: u64 = 64 << 20;

/// A store in a temporary directory.
struct World {
    client: Client,
    _directory: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(Options::new())
    }

    fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let client = Client::open(directory.path(), options).unwrap();
        Self { client, _directory: directory }
    }

    fn create(&self, name: &str) -> Image {
        let options = CreateOptions::sized(SIZE_BYTES);
        self.client.create(&ImageSpec::new("rbd", name), &options).unwrap()
    }
}

fn quiet(_: u64, _: u64) {}

/// Makes this process the owner of an image, as a server or a device does.
fn own(image: &Image, gives_way: bool) -> HostHandle {
    let (pool, id) = (image.pool().engine(), image.id());
    serve(image, Box::new(pool.open(id).unwrap()), gives_way)
}

fn serve(image: &Image, device: Box<dyn HostDevice>, gives_way: bool) -> HostHandle {
    let control = Some(Place::of(image.pool().engine(), image.id()));
    let name = image.spec().to_string();
    let options = HostOptions { name, control, gives_way, ..HostOptions::default() };
    ImageHost::start(device, options).unwrap()
}

fn write(host: &HostHandle, offset: u64, data: &[u8]) {
    let data = data.to_vec();
    host.submit_and_wait(DeviceRequest::Write { offset, data, fua: false }).unwrap();
}

#[test]
fn an_open_image_is_changed_by_its_owner() {
    let world = World::new();
    let image = world.create("a");
    let host = own(&image, false);
    write(&host, 4096, &[7; 4096]);

    let snapshot = image.create_snapshot("v1", Quiesce::Required).unwrap();
    snapshot.protect().unwrap();
    assert_eq!(snapshot.protect().unwrap_err().kind(), ErrorKind::Protected);
    assert!(snapshot.info().unwrap().protected);
    let protected = snapshot.remove(false, &mut quiet).unwrap_err();
    assert_eq!(protected.kind(), ErrorKind::Protected);

    image.resize(2 * SIZE_BYTES, false, &mut quiet).unwrap();
    assert_eq!(host.size_bytes(), 2 * SIZE_BYTES);
    let shrunk = image.resize(SIZE_BYTES, false, &mut quiet).unwrap_err();
    assert_eq!(shrunk.kind(), ErrorKind::Invalid);
    image.resize(SIZE_BYTES, true, &mut quiet).unwrap();

    image.set_metadata("who", "me").unwrap();
    assert_eq!(image.metadata().unwrap(), [("who".to_owned(), "me".to_owned())]);

    write(&host, 4096, &[8; 4096]);
    snapshot.unprotect().unwrap();
    let renamed = snapshot.rename("v2").unwrap();
    assert_eq!(snapshot.info().unwrap_err().kind(), ErrorKind::NotFound);
    renamed.roll_back(&mut quiet).unwrap();
    let read = DeviceRequest::Read { offset: 4096, length: 4096 };
    assert_eq!(host.submit_and_wait(read).unwrap(), [7; 4096]);
    renamed.remove(false, &mut quiet).unwrap();
    assert!(image.info().unwrap().snapshots.is_empty());
    image.reclaim().unwrap();
    host.stop().unwrap();
}

#[test]
fn who_has_an_image_open_holds_its_lock_and_changes_its_settings() {
    let world = World::new();
    let options = CreateOptions::sized(SIZE_BYTES).features("layering,exclusive-lock");
    let image = world.client.create(&ImageSpec::new("rbd", "a"), &options).unwrap();
    let host = own(&image, false);
    let held = image.locks().unwrap();
    assert_eq!((held.len(), held[0].client), (1, u64::from(std::process::id())));
    let lock = LockInfo {
        client: 7,
        cookie: "backup".to_owned(),
        address: "here".to_owned(),
        shared: false,
        tag: String::new(),
    };
    let refused = image.add_lock(&lock).unwrap_err().kind();
    assert!(matches!(refused, ErrorKind::Owned | ErrorKind::Busy), "{refused:?}");
    let refused = image.remove_lock(held[0].client, &held[0].cookie).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Owned);
    image.change_features(&["object-map".to_owned()], true).unwrap();
    let features = image.info().unwrap().features;
    assert_eq!(features, "layering,exclusive-lock,object-map,fast-diff");
    image.limit_snapshots(Some(1)).unwrap();
    image.create_snapshot("v1", Quiesce::Required).unwrap();
    let refused = image.create_snapshot("v2", Quiesce::Required).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooMany);
    image.configure("rbd_cache", Some("false")).unwrap();
    assert!(image.configure("rbd_cache", Some("maybe")).is_err());
    host.stop().unwrap();

    assert!(image.locks().unwrap().is_empty());
    image.add_lock(&lock).unwrap();
    assert_eq!(image.locks().unwrap(), [lock]);
    assert_eq!(image.open().err().unwrap().kind(), ErrorKind::ReadOnly);
    image.remove_lock(7, "backup").unwrap();
    image.open().unwrap().close().unwrap();
}

#[test]
fn an_open_image_is_looked_at_through_its_owner_who_knows_more_than_the_disk() {
    let world = World::new();
    let image = world.create("a");
    let host = own(&image, false);
    image.create_snapshot("v1", Quiesce::Required).unwrap();
    write(&host, 8192, &[7; 4096]);

    let rows = image.usage().unwrap();
    let used: Vec<_> = rows.iter().map(|r| (r.snapshot.as_deref(), r.used_bytes)).collect();
    assert_eq!(used, [(Some("v1"), 0), (None, 4096)]);
    let diff = Diff { from: Some("v1"), to: None, offset: 0, length: SIZE_BYTES };
    let changed = DiffExtent { offset: 8192, length: 4096, data: true };
    assert_eq!(image.diff(&diff).unwrap(), [changed]);
    let watchers = image.status().unwrap();
    assert_eq!((watchers.len(), watchers[0].pid), (1, std::process::id()));
    assert_eq!(watchers[0].usage, "nbd, 0 connections");
    host.stop().unwrap();
    assert!(image.status().unwrap().is_empty());
    assert_eq!(image.diff(&diff).unwrap(), [changed]);
}

#[test]
fn reading_goes_on_where_the_owner_ends_it() {
    let world = World::new();
    let image = world.create("a");
    let host = own(&image, false);
    write(&host, 0, &[1; 4096]);
    let mut content = image.content().unwrap();
    let mut buf = [0; 4096];
    content.read(0, &mut buf).unwrap();
    assert_eq!(buf, [1; 4096]);
    host.stop().unwrap();
    // This process is the owner now.
    buf.fill(0);
    content.read(0, &mut buf).unwrap();
    assert_eq!(buf, [1; 4096]);
    assert_eq!(image.status().unwrap()[0].usage, "reading");
    content.close().unwrap();
    assert!(image.status().unwrap().is_empty());
}

/// An owner that breaks its connection in the middle of its first command.
fn goes_away_at_once(image: &Image) -> std::thread::JoinHandle<()> {
    let (pool, id) = (image.pool().engine(), image.id());
    let open = pool.open(id).unwrap();
    let path = pool.image_directory(id).join(SOCKET_NAME);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
        let mut begun = Vec::new();
        encode_answer(&Answer::Begun, &mut begun).unwrap();
        std::fs::remove_file(path).unwrap();
        open.close().unwrap();
        socket.write_all(&begun).unwrap();
    })
}

#[test]
fn only_what_changes_nothing_is_asked_again_where_an_answer_is_lost() {
    let world = World::new();
    let image = world.create("a");
    let owner = goes_away_at_once(&image);
    let error = image.create_snapshot("v1", Quiesce::Required).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    owner.join().unwrap();
    assert!(image.info().unwrap().snapshots.is_empty());

    let owner = goes_away_at_once(&image);
    let mut content = image.content().unwrap();
    let mut buf = [1; 4096];
    content.read(0, &mut buf).unwrap();
    assert_eq!(buf, [0; 4096]);
    content.close().unwrap();
    owner.join().unwrap();
}

#[test]
fn an_image_that_is_only_kept_open_gives_way() {
    let world = World::new();
    let image = world.create("a");
    let host = own(&image, true);
    image.open().unwrap().close().unwrap();
    assert!(host.is_over());
    let _again = own(&image, true);
    image.remove(&mut quiet).unwrap();
    assert_eq!(image.info().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_image_in_use_is_refused_with_who_uses_it() {
    let world = World::new();
    let image = world.create("a");
    let host = own(&image, false);
    host.set_usage(Some("device /dev/nbd9".to_owned())).unwrap();
    let expected = format!("rbd/a is in use by process {}: device /dev/nbd9", std::process::id());
    for error in [image.remove(&mut quiet).unwrap_err(), image.open().map(drop).unwrap_err()] {
        assert_eq!(
            (error.kind(), error.sentence().to_string()),
            (ErrorKind::Owned, expected.clone())
        );
    }
}

#[test]
fn a_handle_does_nothing_to_another_image_that_has_the_name_by_now() {
    let world = World::new();
    let (first, second) = (world.create("a"), world.create("b"));
    let pool = world.client.pool("rbd").unwrap();
    pool.rename("a", "c").unwrap();
    assert_eq!(first.remove(&mut quiet).unwrap_err().kind(), ErrorKind::NotFound);
    second.rename("a").unwrap();
    for error in [
        first.remove(&mut quiet).unwrap_err(),
        first.give_up(&mut quiet).unwrap_err(),
        first.rename("d").map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    }
    // Operations that need no name still reach the same image.
    first.resize(2 * SIZE_BYTES, false, &mut quiet).unwrap();
    let sizes = ["c", "a"].map(|name| pool.image(name).unwrap().info().unwrap().size_bytes);
    assert_eq!(sizes, [2 * SIZE_BYTES, SIZE_BYTES]);
}

#[test]
fn a_snapshot_that_is_read_is_refused_until_its_reader_only_keeps_it_open() {
    let world = World::new();
    let image = world.create("a");
    let snapshot = image.create_snapshot("v1", Quiesce::Required).unwrap();
    let open = || Box::new(image.pool().engine().open_snapshot(image.id(), "v1").unwrap());
    let reader = serve(&image, open(), false);
    let error = snapshot.remove(false, &mut quiet).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        error.sentence().to_string().contains(&format!("by process {}", std::process::id())),
        "{error}"
    );
    reader.stop().unwrap();
    let _idle = serve(&image, open(), true);
    snapshot.remove(false, &mut quiet).unwrap();
}

#[test]
fn the_owner_of_a_parent_is_told_of_clones_that_come_and_go() {
    let world = World::new();
    let parent = world.create("parent");
    let host = own(&parent, false);
    write(&host, 0, &[3; 4096]);
    let snapshot = parent.create_snapshot("v1", Quiesce::Required).unwrap();
    let options = CloneOptions::new().format(2);
    let spec = ImageSpec::new("rbd", "child");
    let child = snapshot.clone_to(&spec, &options).unwrap();
    assert_eq!(parent.children(Children::Direct, None).unwrap().len(), 1);
    assert!(parent.has_unprotected_child().unwrap());
    // The snapshot is kept for its child. It is freed when the owner hears that the child is gone.
    snapshot.remove(false, &mut quiet).unwrap();
    assert!(parent.info().unwrap().snapshots[0].trashed);
    assert!(parent.usage().unwrap().iter().all(|row| row.snapshot.is_none()));
    child.flatten(&mut quiet).unwrap();
    assert!(parent.info().unwrap().snapshots.is_empty());
    assert!(child.info().unwrap().parent.is_none());
    let mut buf = [0; 4096];
    child.content().unwrap().read(0, &mut buf).unwrap();
    assert_eq!(buf, [3; 4096]);
    host.stop().unwrap();
}

#[test]
fn a_forced_removal_flattens_the_children_first_also_those_in_use() {
    let world = World::new();
    let parent = world.create("parent");
    let snapshot = parent.create_snapshot("v1", Quiesce::Required).unwrap();
    snapshot.protect().unwrap();
    let spec = ImageSpec::new("rbd", "child");
    let child = snapshot.clone_to(&spec, &CloneOptions::default()).unwrap();
    let host = own(&child, false);
    let refused = snapshot.unprotect().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    snapshot.remove(true, &mut quiet).unwrap();
    assert!(child.info().unwrap().parent.is_none());
    assert!(parent.info().unwrap().snapshots.is_empty());
    host.stop().unwrap();
}

#[test]
fn purging_leaves_what_is_protected() {
    let world = World::new();
    let image = world.create("a");
    for name in ["a", "b", "c"] {
        image.create_snapshot(name, Quiesce::Skip).unwrap();
    }
    image.snapshot("b").protect().unwrap();
    let mut told = Vec::new();
    let purged = image.purge_snapshots(&mut |done, total| told.push((done, total))).unwrap();
    assert_eq!((purged.removed, purged.protected), (2, vec!["b".to_owned()]));
    assert_eq!(told, [(1, 3), (2, 3)]);
}

#[test]
fn an_owner_that_says_nothing_is_warned_of_once_and_the_disk_answers() {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&warnings);
    let world = World::with(Options::new().on_warning(move |warning| {
        heard.lock().unwrap().push(warning.to_string());
    }));
    let image = world.create("a");
    let socket = image.pool().engine().image_directory(image.id()).join(SOCKET_NAME);
    let _listens = UnixListener::bind(socket).unwrap();
    assert_eq!(image.usage().unwrap().len(), 1);
    assert!(image.status().unwrap().is_empty());
    let warnings = warnings.lock().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].ends_with("; this is what is on disk"), "{warnings:?}");
}

#[test]
fn an_interruption_ends_the_wait_for_an_owner() {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let interrupt = Interrupt::when(move || seen.load(Ordering::Relaxed));
    let world = World::with(Options::new().interrupt(interrupt));
    let (silent, deaf) = (world.create("silent"), world.create("deaf"));
    // One owner listens but never answers. The other has the image open and does not listen.
    let socket = silent.pool().engine().image_directory(silent.id()).join(SOCKET_NAME);
    let _listens = UnixListener::bind(socket).unwrap();
    let _open = [&silent, &deaf].map(|image| image.pool().engine().open(image.id()).unwrap());
    stop.store(true, Ordering::Relaxed);
    for image in [silent, deaf] {
        let error = image.create_snapshot("v1", Quiesce::Required).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    }
}

#[test]
fn an_owner_that_has_left_is_no_error_even_for_a_process_that_is_about_to_end() {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let options = Options::new().interrupt(Interrupt::when(move || seen.load(Ordering::Relaxed)));
    let world = World::with(options);
    let image = world.create("a");
    let host = own(&image, false);
    assert!(image.io_counts().unwrap().is_some());
    drop(host);
    assert_eq!(image.io_counts().unwrap(), None);
    over.store(true, Ordering::Relaxed);
    assert_eq!(image.io_counts().unwrap(), None);
}

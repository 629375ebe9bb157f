//! Images that are being made from data, and copies.
#![allow(missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use marcot::{CloneOptions, CreateOptions, ErrorKind, Keep, Namespace};
use marcot_client::Quiesce;
use marcot_client::copy::GRAIN_BYTES;
use marcot_client::{Client, Image, ImageSpec, Interrupt, Options};
use tempfile::TempDir;

const SIZE_BYTES: u64 = 64 << 20;

fn store(options: Options) -> (TempDir, Client) {
    let directory = tempfile::tempdir().unwrap();
    let client = Client::open(directory.path(), options).unwrap();
    (directory, client)
}

fn sized(size_bytes: u64) -> CreateOptions {
    CreateOptions::sized(size_bytes)
}

fn names(client: &Client) -> Vec<String> {
    let images = client.pool("rbd").unwrap().images(&Namespace::DEFAULT).unwrap();
    images.into_iter().map(|(name, _)| name).collect()
}

/// The number of all names, also of incomplete images.
fn all_names(client: &Client) -> usize {
    client.pool("rbd").unwrap().engine().image_names(&Namespace::DEFAULT).unwrap().len()
}

fn write(image: &Image, offset: u64, data: &[u8]) {
    let mut device = image.open().unwrap();
    device.write_at(offset, data).unwrap();
    device.close().unwrap();
}

fn byte_at(image: &Image, offset: u64) -> u8 {
    let mut buf = [0];
    let mut content = image.content().unwrap();
    content.read(offset, &mut buf).unwrap();
    content.close().unwrap();
    buf[0]
}

#[test]
fn an_image_is_listed_when_it_is_complete_and_removed_when_it_is_dropped() {
    let (_directory, client) = store(Options::new());
    let pool = client.pool("rbd").unwrap();
    let mut incoming = pool.begin_image("a", &sized(0)).unwrap();
    assert!(names(&client).is_empty() && all_names(&client) == 1);
    incoming.grow_to_hold(8192).unwrap();
    incoming.write(4096, &[5; 4096], GRAIN_BYTES).unwrap();
    drop(incoming);
    assert_eq!(all_names(&client), 0);

    let mut incoming = pool.begin_image("a", &sized(0)).unwrap();
    incoming.grow_to_hold(8192).unwrap();
    incoming.write(4096, &[5; 4096], GRAIN_BYTES).unwrap();
    incoming.resize(8192).unwrap();
    let image = incoming.finish().unwrap();
    assert_eq!((image.spec().to_string().as_str(), names(&client).len()), ("rbd/a", 1));
    assert_eq!((image.info().unwrap().size_bytes, byte_at(&image, 4096)), (8192, 5));
    let taken = pool.begin_image("a", &sized(0)).map(drop).unwrap_err();
    assert_eq!((taken.kind(), all_names(&client)), (ErrorKind::Exists, 1));
}

#[test]
fn a_copy_is_independent_and_has_the_content_at_its_start() {
    let (_directory, client) = store(Options::new());
    let parent = client.create(&ImageSpec::new("rbd", "parent"), &sized(SIZE_BYTES)).unwrap();
    write(&parent, 0, &[1; 4096]);
    let snapshot = parent.create_snapshot("v1", Quiesce::Required).unwrap();
    snapshot.protect().unwrap();
    let child = ImageSpec::new("rbd", "child");
    let child = snapshot.clone_to(&child, &CloneOptions::default()).unwrap();
    child.create_snapshot("s", Quiesce::Required).unwrap();
    write(&child, 0, &[2; 4096]);

    let pool = client.pool("rbd").unwrap();
    let mut told = (0, 0);
    let mut progress = |done, total| told = (done, total);
    let head = child.copy_into(&pool, "head", None, &mut progress).unwrap();
    assert_eq!(told, (SIZE_BYTES, SIZE_BYTES));
    let larger = CreateOptions::default().order(23);
    let old = child.snapshot("s").copy_into(&pool, "old", Some(larger), &mut |_, _| {}).unwrap();
    assert_eq!((byte_at(&head, 0), byte_at(&old, 0)), (2, 1));
    for copy in [&head, &old] {
        let info = copy.info().unwrap();
        assert!(info.parent.is_none() && info.snapshots.is_empty());
        assert_eq!(info.size_bytes, SIZE_BYTES);
    }
    assert_eq!(old.info().unwrap().order, 23);
    let missing = child.snapshot("t").copy_into(&pool, "no", None, &mut |_, _| {});
    assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_interrupted_copy_is_hidden_and_the_same_copy_goes_on_with_it() {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let interrupt = Interrupt::when(move || seen.load(Ordering::Relaxed));
    let (_directory, client) = store(Options::new().interrupt(interrupt));
    let image = client.create(&ImageSpec::new("rbd", "a"), &sized(SIZE_BYTES)).unwrap();
    for offset in [0, SIZE_BYTES / 2] {
        write(&image, offset, &[1; 4096]);
    }
    let pool = client.pool("rbd").unwrap();
    let mut progress = |_, _| stop.store(true, Ordering::Relaxed);
    let error = image.copy_into(&pool, "b", None, &mut progress).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    assert_eq!((names(&client), all_names(&client)), (vec!["a".to_owned()], 2));
    stop.store(false, Ordering::Relaxed);
    // A collection leaves it, and a copy of the same state takes it up: nothing before its end is read again.
    pool.collect_garbage(&mut |_, _| {}).unwrap();
    let mut first = None;
    let copy = image.copy_into(&pool, "b", None, &mut |done, _| {
        first.get_or_insert(done);
    });
    assert_eq!(byte_at(&copy.unwrap(), SIZE_BYTES / 2), 1);
    assert!(first.unwrap() > 4096, "{first:?}");
    assert_eq!(all_names(&client), 2);
}

#[test]
fn a_copy_of_an_image_that_was_written_since_begins_anew() {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let interrupt = Interrupt::when(move || seen.load(Ordering::Relaxed));
    let (_directory, client) = store(Options::new().interrupt(interrupt));
    let image = client.create(&ImageSpec::new("rbd", "a"), &sized(SIZE_BYTES)).unwrap();
    write(&image, 0, &[1; 4096]);
    write(&image, SIZE_BYTES / 2, &[1; 4096]);
    let pool = client.pool("rbd").unwrap();
    let mut progress = |_, _| stop.store(true, Ordering::Relaxed);
    image.copy_into(&pool, "b", None, &mut progress).unwrap_err();
    stop.store(false, Ordering::Relaxed);
    write(&image, 0, &[2; 4096]);
    let copy = image.copy_into(&pool, "b", None, &mut |_, _| {}).unwrap();
    assert_eq!((byte_at(&copy, 0), byte_at(&copy, SIZE_BYTES / 2)), (2, 1));
    // What was begun before is gone.
    assert_eq!(all_names(&client), 2);
    stop.store(true, Ordering::Relaxed);
    image.copy_into(&pool, "c", None, &mut |_, _| {}).unwrap_err();
    stop.store(false, Ordering::Relaxed);
    pool.collect_garbage_keeping(Keep::Nothing, &mut |_, _| {}).unwrap();
    assert_eq!(all_names(&client), 2);
}

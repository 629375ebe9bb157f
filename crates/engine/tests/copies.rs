//! Segments of which there is a copy that is read faster.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{BlockDevice, CreateOptions, Image, Limits, Read, Store};
use support::{Faults, faulty_world, pattern, segments};

const BYTES: usize = 64 * 4096;

/// An image with content, copies of its segments, and whether its reads may stay in flight.
fn image_with_copies(directory: &Path, cold: bool) -> (Image, Arc<Faults>) {
    let (world, faults) = faulty_world();
    let store = Store::open_with(world, directory, Limits::default()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let id = pool.create("image", &CreateOptions::sized(BYTES as u64)).unwrap();
    let mut image = pool.open(id).unwrap();
    image.write_at(0, &pattern(3, BYTES)).unwrap();
    image.close().unwrap();
    let copies = directory.join("copies");
    fs::create_dir(&copies).unwrap();
    for segment in segments(&pool, 'd') {
        fs::copy(&segment, copies.join(segment.file_name().unwrap())).unwrap();
    }
    *faults.copies.lock().unwrap() = Some(copies);
    faults.cold.store(cold, Ordering::Relaxed);
    faults.may_complete.store(1000, Ordering::Relaxed);
    (pool.open(id).unwrap(), faults)
}

/// Reads all of it, each piece by a request that may stay in flight.
fn read_all(image: &mut Image) -> Vec<u8> {
    let mut all = vec![0; BYTES];
    for (i, buf) in all.chunks_mut(8 * 4096).enumerate() {
        let offset = (i * 8 * 4096) as u64;
        let mut reads = [Read { in_flight: Some(7), ..Read::new(offset, buf) }];
        image.read_batch(&mut reads);
        let [Read { in_flight, result, .. }] = reads;
        result.unwrap();
        if in_flight.is_some() {
            let done = loop {
                if let Some(marcot::Completion::Read(done)) = image.take_completion() {
                    break done;
                }
            };
            buf.copy_from_slice(&done.result.unwrap());
        }
    }
    all
}

fn change_copies(faults: &Faults, change: impl Fn(&mut Vec<u8>)) {
    let copies = faults.copies.lock().unwrap().clone().unwrap();
    for copy in fs::read_dir(copies).unwrap() {
        let path = copy.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn a_copy_of_a_segment_is_read_in_its_place() {
    for cold in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (mut image, faults) = image_with_copies(directory.path(), cold);
        let before = faults.read_bytes.load(Ordering::Relaxed);
        assert!(read_all(&mut image) == pattern(3, BYTES));
        let read = faults.read_bytes.load(Ordering::Relaxed) - before;
        assert!(read < BYTES as i64, "{read} bytes of the segments were read");
    }
}

#[test]
fn what_is_wrong_in_a_copy_or_missing_is_read_from_the_segment() {
    let changes: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 4),
        |bytes| bytes.iter_mut().step_by(9000).for_each(|byte| *byte ^= 1),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.clear(),
    ];
    for change in changes {
        for cold in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let (mut image, faults) = image_with_copies(directory.path(), cold);
            change_copies(&faults, change);
            assert!(read_all(&mut image) == pattern(3, BYTES));
        }
    }
}

#[test]
fn damage_of_the_segment_itself_is_an_error_whatever_the_copy_holds() {
    let directory = tempfile::tempdir().unwrap();
    let (mut image, faults) = image_with_copies(directory.path(), false);
    change_copies(&faults, Vec::clear);
    let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
    for segment in segments(&pool, 'd') {
        let bytes: Vec<u8> = fs::read(&segment).unwrap().iter().map(|byte| byte ^ 1).collect();
        fs::write(&segment, bytes).unwrap();
    }
    let error = image.read_at(0, &mut [0; 4096]).unwrap_err();
    assert_eq!(error.kind(), marcot::ErrorKind::Corrupt, "{error}");
}

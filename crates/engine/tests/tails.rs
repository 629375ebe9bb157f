//! What a host had acknowledged with `flush=local` before another host took the image over, read back.

mod support;

use std::fs;
use std::path::PathBuf;

use support::hosts::{BLOCK, Hosts, write};
use support::pattern;

use marcot::{ErrorKind, Pool, TailChange};

/// Writes of the owner that is replaced; they fill several segments.
const WRITES: u64 = 40;

/// Hosts, of which the first one has put aside what it had written: block `n` with seed `n`, flushed, then a
/// discard of block 1 that was not.
fn replaced() -> (Hosts, String, PathBuf) {
    let hosts = Hosts::new(2, false);
    let id = hosts.image();
    let mut first = hosts.pool(0).open(id).unwrap();
    for number in 1..=WRITES {
        write(&mut first, number, number as u8);
        if number == WRITES / 2 {
            first.flush().unwrap();
        }
    }
    first.flush().unwrap();
    first.discard(BLOCK, BLOCK).unwrap();
    hosts.pool(1).take_over(id).unwrap().close().unwrap();
    drop(first);
    hosts.pool(0).open(id).unwrap().close().unwrap();
    let tails = hosts.pool(0).tails().unwrap();
    let [tail] = tails.as_slice() else { panic!("{tails:?}") };
    assert_eq!((tail.image, tail.image_name.as_deref()), (id, Some("rbd/image")));
    assert!(tail.bytes > WRITES * BLOCK, "{tail:?}");
    assert!(hosts.pool(1).tails().unwrap().is_empty());
    let path = hosts.directories[0].path().join("pools/rbd/aside").join(&tail.name);
    (hosts, tail.name.clone(), path)
}

/// The blocks that are written, in their order, and how many changes are discards.
fn read(pool: &Pool, name: &str) -> Result<(Vec<u64>, usize), ErrorKind> {
    let (mut written, mut discards) = (Vec::new(), 0);
    let tail = pool.tail(name).map_err(|error| error.kind())?;
    let read = pool.read_tail(&tail, &mut |change| {
        match change {
            TailChange::Write { offset, data } => {
                assert!(data == pattern((offset / BLOCK) as u8, BLOCK as usize));
                written.push(offset / BLOCK);
            }
            TailChange::Discard { offset, length } => {
                assert_eq!((offset, length), (BLOCK, BLOCK));
                discards += 1;
            }
        }
        Ok(())
    });
    read.map(|()| (written, discards)).map_err(|error| error.kind())
}

/// The data segments, by their numbers.
fn segments(path: &PathBuf) -> Vec<PathBuf> {
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let is_data = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with('d');
    // A segment that was prepared holds its header at the most.
    let mut found: Vec<PathBuf> = files
        .filter(is_data)
        .filter(|path| fs::read(path).unwrap()[BLOCK as usize..].iter().any(|byte| *byte != 0))
        .collect();
    found.sort();
    found
}

#[test]
fn all_changes_come_in_their_order_and_go_with_the_tail() {
    let (hosts, name, path) = replaced();
    assert_eq!(read(&hosts.pool(0), &name), Ok(((1..=WRITES).collect(), 1)));
    assert_eq!(read(&hosts.pool(1), &name), Err(ErrorKind::NotFound));
    hosts.pool(0).remove_tail(&name).unwrap();
    assert!(!path.exists());
    assert_eq!(read(&hosts.pool(0), &name), Err(ErrorKind::NotFound));
    assert_eq!(hosts.pool(0).remove_tail(&name).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_end_that_did_not_reach_the_medium_is_left_out() {
    let (hosts, name, path) = replaced();
    let last = segments(&path).pop().unwrap();
    let mut bytes = fs::read(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end] ^= 1;
    fs::write(&last, bytes).unwrap();
    assert_eq!(read(&hosts.pool(0), &name), Ok(((1..=WRITES).collect(), 0)));
}

#[test]
fn damage_to_what_was_flushed_is_told() {
    let (hosts, name, path) = replaced();
    let first = segments(&path).remove(0);
    let mut bytes = fs::read(&first).unwrap();
    // The first group: its header in block 1, its data in block 2.
    bytes[2 * BLOCK as usize + 7] ^= 1;
    fs::write(&first, bytes).unwrap();
    assert_eq!(read(&hosts.pool(0), &name), Err(ErrorKind::Corrupt));
}

#[test]
fn what_lies_before_a_segment_that_was_removed_is_no_part_of_the_end() {
    let (hosts, name, path) = replaced();
    let segments = segments(&path);
    assert!(segments.len() > 2, "{segments:?}");
    fs::remove_file(&segments[1]).unwrap();
    let (written, discards) = read(&hosts.pool(0), &name).unwrap();
    assert!(!written.is_empty() && written.len() < WRITES as usize - 10, "{written:?}");
    assert_eq!(written, ((WRITES + 1 - written.len() as u64)..=WRITES).collect::<Vec<_>>());
    assert_eq!(discards, 1);
}

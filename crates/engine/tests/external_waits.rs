//! A source outside the store that is slow: the thread of an image that is migrated from it does not wait for it.

mod support;

use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread::{self, ThreadId};

use marcot::{
    BLOCK_BYTES, BlockDevice, Completion, CreateOptions, Error, ErrorKind, Extent, ExternalDisk,
    ExternalSources, Image, ImageId, Pool, Read, Result, Store, Write,
};
use support::{MIB, assert_sound, pattern};

const BYTES: u64 = 9 * MIB + 1000;
const BLOCK: usize = BLOCK_BYTES as usize;

/// What the source says to those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Nothing,
    Data,
    Error,
}

/// A disk that answers when the test lets it. Where the thread of the image asks it, it fails.
struct Slow {
    says: Mutex<Says>,
    changed: Condvar,
    thread: ThreadId,
}

impl Slow {
    fn new() -> Arc<Self> {
        let thread = thread::current().id();
        Arc::new(Self { says: Mutex::new(Says::Nothing), changed: Condvar::new(), thread })
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
        self.changed.notify_all();
    }

    fn check(&self) -> Result<()> {
        if thread::current().id() == self.thread {
            return Err(Error::new(ErrorKind::Io, "the thread of the image waits for the source"));
        }
        let says = self.says.lock().unwrap();
        match *self.changed.wait_while(says, |says| *says == Says::Nothing).unwrap() {
            Says::Error => Err(Error::new(ErrorKind::Io, "it says no")),
            _ => Ok(()),
        }
    }
}

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(1, BYTES as usize));

fn content() -> Vec<u8> {
    CONTENT.clone()
}

struct Disk(Arc<Slow>);

impl ExternalDisk for Disk {
    fn size_bytes(&self) -> u64 {
        BYTES
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.check()?;
        buf.copy_from_slice(&CONTENT[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.0.check()?;
        Ok(vec![Extent { offset, length, data: true }])
    }
}

struct Sources(Arc<Slow>);

impl ExternalSources for Sources {
    fn open(&self, _: &str, _: &str) -> Result<Arc<dyn ExternalDisk>> {
        Ok(Arc::new(Disk(Arc::clone(&self.0))))
    }
}

struct Scene {
    store: Store,
    pool: Pool,
    id: ImageId,
    source: Arc<Slow>,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// An image that has nothing but its source.
    fn new() -> (Self, Image) {
        let directory = tempfile::tempdir().unwrap();
        let (store, source) = (Store::open(directory.path()).unwrap(), Slow::new());
        store.set_external_sources(Arc::new(Sources(Arc::clone(&source))));
        let pool = store.pool("rbd").unwrap();
        let mut image = pool.create_partial("i", &CreateOptions::sized(BYTES)).unwrap();
        image.leave_to_source("{}", "", &[(0, BYTES)]).unwrap();
        pool.publish_partial(image.id(), "i").unwrap();
        let scene = Self { store, pool, id: image.id(), source, _directory: directory };
        (scene, image)
    }

    fn assert_has(&self, image: Image, wanted: &[u8]) {
        image.close().unwrap();
        assert_sound(&self.store, &self.pool);
        // Another thread may wait for the source.
        let bytes = thread::scope(|scope| scope.spawn(|| self.read()).join()).unwrap();
        assert!(bytes == wanted);
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; BYTES as usize];
        self.pool.open_read_only(self.id).unwrap().read_at(0, &mut bytes).unwrap();
        bytes
    }
}

fn park(image: &mut Image, offset: u64, data: &[u8]) -> u64 {
    assert!(image.may_park());
    BlockDevice::park_write(image, Write { offset, data }).expect("it waits for the source")
}

/// A write that needs nothing of the source.
fn write_at_once(image: &mut Image, offset: u64, data: &[u8]) {
    let write = Write { offset, data };
    assert_eq!(BlockDevice::park_write(image, write), None);
    image.write_batch(&[write]).unwrap();
}

fn read(image: &mut Image, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    image.read_at(offset, &mut bytes).unwrap();
    bytes
}

fn next_completion(image: &mut Image) -> Completion {
    loop {
        match BlockDevice::take_completion(image) {
            Some(completion) => return completion,
            None => thread::yield_now(),
        }
    }
}

#[test]
fn a_write_of_a_part_of_a_block_waits_for_the_source_and_others_do_not_wait_for_it() {
    let (scene, mut image) = Scene::new();
    let here = pattern(7, 3 * BLOCK);
    write_at_once(&mut image, MIB, &here);
    // Both ends of this one are inside blocks of the source.
    let first = park(&mut image, 5000, &pattern(8, 2 * BLOCK));
    let second = park(&mut image, BYTES - 10, &[3; 10]);
    assert!(BlockDevice::take_completion(&mut image).is_none());
    assert!(read(&mut image, MIB + 100, BLOCK) == here[100..][..BLOCK]);
    write_at_once(&mut image, 2 * MIB, &here);
    image.write_at(MIB + 100, &[9; 50]).unwrap();
    image.flush().unwrap();
    // What overlaps comes behind it.
    let mut bytes = vec![0; BLOCK];
    let mut reads = [Read { in_flight: Some(77), ..Read::new(BLOCK_BYTES, &mut bytes) }];
    image.read_batch(&mut reads);
    assert_eq!(reads[0].in_flight, Some(77));
    assert!(BlockDevice::take_completion(&mut image).is_none());
    scene.source.say(Says::Data);
    let mut wanted = content();
    wanted[MIB as usize..][..3 * BLOCK].copy_from_slice(&here);
    wanted[MIB as usize + 100..][..50].fill(9);
    wanted[2 * MIB as usize..][..3 * BLOCK].copy_from_slice(&here);
    wanted[5000..][..2 * BLOCK].copy_from_slice(&pattern(8, 2 * BLOCK));
    wanted[BYTES as usize - 10..].fill(3);
    let mut ended = Vec::new();
    for _ in 0..3 {
        match next_completion(&mut image) {
            Completion::Parked(number, Ok(())) => ended.push(number),
            Completion::Read(done) => {
                assert!(ended.contains(&first), "the write came first");
                assert!(done.result.unwrap() == wanted[BLOCK..2 * BLOCK]);
            }
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [first, second]);
    scene.assert_has(image, &wanted);
}

#[test]
fn a_discard_of_a_part_of_a_block_waits_for_the_source_too() {
    let (scene, mut image) = Scene::new();
    let number = BlockDevice::park_discard(&mut image, 5000, MIB).expect("it waits");
    write_at_once(&mut image, 2 * MIB, &[1; BLOCK]);
    scene.source.say(Says::Data);
    assert!(matches!(next_completion(&mut image), Completion::Parked(n, Ok(())) if n == number));
    let mut wanted = content();
    wanted[5000..][..MIB as usize].fill(0);
    wanted[2 * MIB as usize..][..BLOCK].fill(1);
    scene.assert_has(image, &wanted);
}

#[test]
fn a_source_that_fails_fails_the_write_that_needs_it_and_no_other() {
    let (scene, mut image) = Scene::new();
    let number = park(&mut image, 5000, &[1; 10]);
    scene.source.say(Says::Error);
    match next_completion(&mut image) {
        Completion::Parked(failed, Err(error)) => {
            assert_eq!((failed, error.kind()), (number, ErrorKind::Io));
            let said = error.sentence().to_string();
            assert!(said.contains("it says no"), "{said}");
        }
        other => panic!("{other:?}"),
    }
    write_at_once(&mut image, 0, &[2; BLOCK]);
    // When the source is there again, so is the write.
    scene.source.say(Says::Data);
    let number = park(&mut image, 5000, &[1; 10]);
    assert!(matches!(next_completion(&mut image), Completion::Parked(n, Ok(())) if n == number));
    let mut wanted = content();
    wanted[..BLOCK].fill(2);
    wanted[5000..5010].fill(1);
    scene.assert_has(image, &wanted);
}

#[test]
fn an_error_of_the_source_fails_no_later_write() {
    // Both ends of these are inside blocks of the source.
    let requests: [fn(&mut Image) -> u64; 2] = [
        |image| park(image, 5000, &[1; 2 * BLOCK]),
        |image| BlockDevice::park_discard(image, 5000, 2 * BLOCK_BYTES).expect("it waits"),
    ];
    for request in requests {
        let (scene, mut image) = Scene::new();
        let number = request(&mut image);
        scene.source.say(Says::Error);
        let ended = next_completion(&mut image);
        assert!(matches!(ended, Completion::Parked(n, Err(_)) if n == number), "{ended:?}");
        // When the source is there again, each of the blocks is asked for again.
        scene.source.say(Says::Data);
        let mut wanted = content();
        for offset in [3 * BLOCK + 1000, 4500] {
            let number = park(&mut image, offset as u64, &[2; 10]);
            let ended = next_completion(&mut image);
            assert!(matches!(ended, Completion::Parked(n, Ok(())) if n == number), "{ended:?}");
            wanted[offset..][..10].fill(2);
        }
        scene.assert_has(image, &wanted);
    }
}

#[test]
fn many_writes_that_wait_for_the_source_are_all_carried_out() {
    let (scene, mut image) = Scene::new();
    let mut wanted = content();
    let mut numbers: Vec<u64> = (0..300)
        .map(|n| {
            let at = n * 7000 + 100;
            wanted[at..at + 10].fill(n as u8);
            park(&mut image, at as u64, &[n as u8; 10])
        })
        .collect();
    scene.source.say(Says::Data);
    while !numbers.is_empty() {
        match next_completion(&mut image) {
            Completion::Parked(number, Ok(())) => numbers.retain(|n| *n != number),
            other => panic!("{other:?}"),
        }
    }
    scene.assert_has(image, &wanted);
}

#[test]
fn a_part_that_is_copied_is_read_by_a_worker_and_takes_nothing_back_that_was_written_meanwhile() {
    let (scene, mut image) = Scene::new();
    let mut wanted = content();
    let part = image.migrate_part().unwrap();
    assert!(part.waits && part.more && part.left_blocks > 0, "{part:?}");
    for (n, offset) in [BLOCK_BYTES, MIB, 8 * MIB].into_iter().enumerate() {
        write_at_once(&mut image, offset, &[n as u8; BLOCK]);
        wanted[offset as usize..][..BLOCK].fill(n as u8);
    }
    image.discard(2 * MIB, 2 * BLOCK_BYTES).unwrap();
    wanted[2 * MIB as usize..][..2 * BLOCK].fill(0);
    let parked = park(&mut image, 3 * MIB + 5, &[6; 5]);
    wanted[3 * MIB as usize + 5..][..5].fill(6);
    assert!(image.migrate_part().unwrap().waits, "the source has said nothing");
    assert!(read(&mut image, MIB, BLOCK) == [1; BLOCK]);
    scene.source.say(Says::Data);
    loop {
        let part = image.migrate_part().unwrap();
        if part.waits {
            thread::yield_now();
        }
        if !part.more {
            break;
        }
    }
    assert!(matches!(next_completion(&mut image), Completion::Parked(n, Ok(())) if n == parked));
    image.migrate(&mut |_, _| {}).unwrap();
    image.check_migrated().unwrap();
    image.end_migration().unwrap();
    scene.assert_has(image, &wanted);
}

#[test]
fn copying_that_fails_begins_again_where_it_was() {
    let (scene, mut image) = Scene::new();
    scene.source.say(Says::Error);
    let failed = loop {
        match image.migrate_part() {
            Ok(part) => assert!(part.waits),
            Err(error) => break error,
        }
    };
    assert_eq!(failed.kind(), ErrorKind::Io);
    scene.source.say(Says::Data);
    while image.migrate_part().unwrap().more {}
    image.migrate(&mut |_, _| {}).unwrap();
    image.end_migration().unwrap();
    scene.assert_has(image, &content());
}

//! Names of segments, pages placed and written, files opened, closed and removed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use marcot_backend::local;
use marcot_format::group::{GroupHeader, Record, RecordKind};
use marcot_store::{DiskFile, LocalDisk, SystemRandom};

use super::*;
use crate::error::ErrorKind;
use crate::{CreateOptions, Pool, Store};

fn name(kind: SegmentKind, sequence: u32) -> SegmentName {
    SegmentName { pool: PoolId(1), copies: 0, author: ImageId(0xAB), kind, sequence }
}

#[test]
fn a_segment_is_shown_by_author_kind_and_number() {
    assert_eq!(name(SegmentKind::Map, 0x1F).to_string(), "00000000000000ab/m0000001f");
    let copy = SegmentName { copies: 0xCD, ..name(SegmentKind::Data, 7) };
    assert_eq!(SegmentName::of(copy.pool, copy.key()), copy);
}

/// A file that records what was written, and how often it was synced.
#[derive(Default)]
struct Recorded {
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
    syncs: Mutex<usize>,
    fails: AtomicBool,
}

impl Recorded {
    fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }

    fn syncs(&self) -> usize {
        std::mem::take(&mut self.syncs.lock().unwrap())
    }

    fn result(&self) -> io::Result<()> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl DiskFile for Recorded {
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.result()?;
        self.writes.lock().unwrap().push((offset, parts.concat()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.result()?;
        *self.syncs.lock().unwrap() += 1;
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_length(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn advise(&self, _: u64, _: u64) {}

    fn drop_cached(&self, _: u64, _: u64) {}
}

/// A writer with an open segment.
fn writer(sequence: u32) -> (PageWriter, Arc<Recorded>) {
    let mut writer = PageWriter::default();
    let file = Arc::new(Recorded::default());
    writer.start_segment(name(SegmentKind::Map, sequence), Arc::<Recorded>::clone(&file));
    (writer, file)
}

/// Places a page of `bytes` bytes, all `fill`, and returns its offset.
fn place(writer: &mut PageWriter, bytes: usize, fill: u8) -> u64 {
    let placed = writer.place(|out| {
        out.resize(out.len() + bytes, fill);
        fill
    });
    let (offset, value) = placed.unwrap();
    assert_eq!(value, fill);
    offset
}

#[test]
fn pages_are_placed_one_behind_the_other_and_written_at_once() {
    let (mut writer, file) = writer(1);
    assert_eq!(writer.open_segment(), Some((name(SegmentKind::Map, 1), 4096)));
    assert_eq!(place(&mut writer, 512, 1), 4096);
    assert_eq!(place(&mut writer, 1024, 2), 4608);
    assert_eq!(writer.open_segment().unwrap().1, 5632);
    let mut pages = writer.take();
    assert_eq!((file.writes(), file.syncs()), (vec![], 0), "placing is no writing");
    pages.write().unwrap();
    let bytes = [vec![1; 512], vec![2; 1024]].concat();
    assert_eq!(file.writes(), [(4096, bytes)]);
    // A second call writes nothing.
    pages.write().unwrap();
    assert_eq!((file.writes(), file.syncs()), (vec![], 0));
    pages.write_and_sync().unwrap();
    assert_eq!((file.writes(), file.syncs()), (vec![], 1));
    // The next page starts at a block, so that no write tears a durable page.
    assert_eq!(writer.open_segment().unwrap().1, 8192);
    assert_eq!(place(&mut writer, 512, 3), 8192);
    writer.take().write_and_sync().unwrap();
    assert_eq!(file.writes(), [(8192, vec![3; 512])]);
}

#[test]
fn a_segment_takes_pages_up_to_its_end() {
    let (mut writer, first) = writer(1);
    assert!(PageWriter::default().needs_segment(1, u64::MAX));
    assert!(PageWriter::default().place(|_| ()).is_none());
    assert!(!writer.needs_segment(512, 4608) && writer.needs_segment(513, 4608));
    place(&mut writer, 512, 1);
    assert!(writer.needs_segment(512, 5119) && !writer.needs_segment(512, 5120));
    let second = Arc::new(Recorded::default());
    writer.start_segment(name(SegmentKind::Map, 2), Arc::<Recorded>::clone(&second));
    assert_eq!(place(&mut writer, 512, 2), 4096);
    writer.take().write_and_sync().unwrap();
    assert_eq!((first.writes(), first.syncs()), (vec![(4096, vec![1; 512])], 1));
    assert_eq!((second.writes(), second.syncs()), (vec![(4096, vec![2; 512])], 1));
    writer.close_segment();
    assert!(writer.open_segment().is_none() && writer.needs_segment(0, u64::MAX));
    writer.take().write_and_sync().unwrap();
}

#[test]
fn pages_that_failed_are_written_again_at_the_same_places() {
    let (mut writer, file) = writer(1);
    place(&mut writer, 512, 1);
    let mut pages = writer.take();
    let (mut others, other) = self::writer(2);
    place(&mut others, 512, 2);
    pages.extend(others.take());
    file.fails.store(true, Ordering::Relaxed);
    assert_eq!(pages.write().unwrap_err().kind(), ErrorKind::NoSpace);
    file.fails.store(false, Ordering::Relaxed);
    pages.write().unwrap();
    assert_eq!((file.writes().len(), other.writes().len()), (1, 1));
    // After a failed sync nobody knows what reached the medium.
    other.fails.store(true, Ordering::Relaxed);
    assert!(pages.write_and_sync().is_err());
    other.fails.store(false, Ordering::Relaxed);
    file.syncs();
    pages.write_and_sync().unwrap();
    assert_eq!((file.writes(), file.syncs()), (vec![(4096, vec![1; 512])], 1));
    assert_eq!((other.writes(), other.syncs()), (vec![(4096, vec![2; 512])], 1));
}

/// Pages whose memory has these capacities, in bytes.
fn pages_of(capacities: &[usize]) -> WrittenPages {
    let mut pages = WrittenPages::default();
    for (sequence, bytes) in (1..).zip(capacities) {
        let (mut writer, _file) = writer(sequence);
        let fill = |out: &mut Vec<u8>| {
            *out = Vec::with_capacity(*bytes);
            out.push(1);
        };
        writer.place(fill).unwrap();
        pages.extend(writer.take());
    }
    pages
}

#[test]
fn memory_of_durable_pages_serves_the_next_unless_it_is_much() {
    const MOST: usize = 4 << 20;
    let (mut writer, _file) = writer(1);
    assert_eq!(writer.drop_spare(), 0);
    writer.reuse(pages_of(&[3000, 9000, 5000]));
    assert_eq!(writer.drop_spare(), 9000);
    assert_eq!(writer.drop_spare(), 0);
    for (before, now, kept) in [(9000, 3000, 9000), (3000, 9000, 9000), (9000, MOST, MOST as u64)] {
        writer.reuse(pages_of(&[before]));
        writer.reuse(pages_of(&[now]));
        assert_eq!(writer.drop_spare(), kept);
    }
    writer.reuse(pages_of(&[9000, MOST + 1]));
    // What it held before is gone.
    let (_, memory) = writer.place(|out| (out.len(), out.capacity())).unwrap();
    assert_eq!(memory, (0, 9000));
    assert_eq!(writer.drop_spare(), 0);
}

/// A pool with the directory of an author.
struct Fixture {
    _directory: tempfile::TempDir,
    pool: Pool,
    author: ImageId,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
        let author = pool.create("image", &CreateOptions::default()).unwrap();
        pool.create_own_set(author).unwrap();
        Self { _directory: directory, pool, author }
    }

    fn files(&self) -> &Files {
        self.pool.files()
    }

    fn name(&self, kind: SegmentKind, sequence: u32) -> SegmentName {
        let (pool, author) = (self.pool.id(), self.author);
        SegmentName { pool, copies: 0, author, kind, sequence }
    }

    fn create(&self, kind: SegmentKind, sequence: u32) -> SegmentName {
        let name = self.name(kind, sequence);
        self.files().create(name, 5).unwrap();
        name
    }

    fn path(&self, name: SegmentName) -> PathBuf {
        PathBuf::from(self.files().show(name))
    }

    fn write(&self, name: SegmentName, offset: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(self.path(name)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Changes a byte of a segment, whatever it is.
    fn damage(&self, name: SegmentName, offset: u64) {
        let byte = std::fs::read(self.path(name)).unwrap()[offset as usize];
        self.write(name, offset, &[!byte]);
    }

    /// Whether the cache has the segment: it is read although its file is gone.
    fn is_open(&self, name: SegmentName) -> bool {
        let (path, away) = (self.path(name), self.path(name).with_extension("away"));
        std::fs::rename(&path, &away).unwrap();
        let found = self.files().get(name);
        std::fs::rename(&away, &path).unwrap();
        match found {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(error.sentence().to_string().contains("is missing"), "{error}");
                false
            }
        }
    }
}

#[test]
fn a_segment_is_created_once_with_its_header() {
    let fixture = Fixture::new();
    let name = fixture.create(SegmentKind::Data, 1);
    let again = fixture.files().create(name, 5).err().unwrap();
    assert_eq!(again.kind(), ErrorKind::Exists);
    let bytes = std::fs::read(fixture.path(name)).unwrap();
    let header = marcot_format::segment::SegmentHeader::decode(&bytes).unwrap();
    assert_eq!((header.author, header.sequence, header.epoch), (fixture.author.0, 1, 5));
    assert_eq!(header.kind, SegmentKind::Data);
    assert_eq!(bytes.len(), 4096);
    let list = |copies| {
        let set = SegmentSet { author: fixture.author, copies };
        fixture.files().list(fixture.pool.id(), set).unwrap()
    };
    assert_eq!((list(0), list(7)), (vec![name], vec![]));
}

#[test]
fn the_header_of_another_segment_is_refused_and_a_damaged_one_is_not() {
    let fixture = Fixture::new();
    let (first, second) =
        (fixture.create(SegmentKind::Map, 1), fixture.create(SegmentKind::Map, 2));
    assert!(!fixture.files().header_is_damaged(first).unwrap());
    fixture.files().forget(first);
    std::fs::copy(fixture.path(second), fixture.path(first)).unwrap();
    let other = fixture.files().get(first).err().unwrap();
    assert_eq!(other.kind(), ErrorKind::Corrupt);
    assert!(other.sentence().to_string().contains("holds another segment"), "{other}");
    fixture.damage(second, 24);
    fixture.files().get(second).unwrap();
    assert!(fixture.files().header_is_damaged(second).unwrap());
    fixture.files().restore_header(second).unwrap();
    assert!(!fixture.files().header_is_damaged(second).unwrap());
    // A version that does not exist yet.
    fixture.files().forget(second);
    fixture.write(second, 8, &[2]);
    let newer = fixture.files().get(second).err().unwrap();
    assert_eq!(newer.kind(), ErrorKind::NewerFormat);
}

#[test]
fn the_header_of_a_data_segment_is_made_from_its_first_group() {
    let fixture = Fixture::new();
    let name = fixture.create(SegmentKind::Data, 3);
    fixture.damage(name, 24);
    let lost = fixture.files().restore_header(name).unwrap_err();
    assert!(lost.sentence().to_string().contains("cannot restore the header"), "{lost}");
    let group = |author: u64, sequence: u32| GroupHeader {
        author,
        epoch: 77,
        sequence,
        group: 1,
        durable_below: 1,
        records: vec![Record { kind: RecordKind::Discard, block: 1, count: 1 }],
        crcs: Vec::new(),
    };
    let mut bytes = Vec::new();
    for (author, segment) in [(fixture.author.0 + 1, 3), (fixture.author.0, 4)] {
        group(author, segment).encode_into(&mut bytes);
        fixture.write(name, 4096, &bytes);
        let other = fixture.files().restore_header(name).unwrap_err();
        assert!(other.sentence().to_string().contains("its group is another's"), "{other}");
        assert!(fixture.files().header_is_damaged(name).unwrap());
    }
    group(fixture.author.0, 3).encode_into(&mut bytes);
    fixture.write(name, 4096, &bytes);
    fixture.files().restore_header(name).unwrap();
    let bytes = std::fs::read(fixture.path(name)).unwrap();
    let header = marcot_format::segment::SegmentHeader::decode(&bytes).unwrap();
    assert_eq!((header.sequence, header.epoch), (3, 77));
}

#[test]
fn files_stay_open_until_nobody_needs_them() {
    let fixture = Fixture::new();
    let files = fixture.files();
    let name = fixture.create(SegmentKind::Map, 1);
    let own: Authors = [(fixture.pool.id(), fixture.author)].into();
    let others: Authors = [(PoolId(1), fixture.author), (fixture.pool.id(), ImageId(1))].into();
    let open = || {
        files.get(name).unwrap();
        assert!(fixture.is_open(name));
    };
    open();
    files.forget(fixture.name(SegmentKind::Map, 2));
    files.forget_authors(&others);
    assert!(fixture.is_open(name));
    files.forget_authors(&own);
    assert!(!fixture.is_open(name));
    open();
    files.forget(name);
    assert!(!fixture.is_open(name));
    // Closing the last image closes all files. Closing another image closes those that it had.
    open();
    files.image_opened();
    files.image_opened();
    files.image_closed(&others);
    assert!(fixture.is_open(name));
    files.image_opened();
    files.image_closed(&own);
    assert!(!fixture.is_open(name));
    open();
    files.image_closed(&others);
    assert!(!fixture.is_open(name));
}

#[test]
fn what_was_used_longest_ago_is_closed_where_too_many_are_open() {
    let fixture = Fixture::new();
    let files = fixture.files();
    files.set_open_max(4);
    let names: Vec<_> = (1..=5).map(|n| fixture.create(SegmentKind::Map, n)).collect();
    names[..4].iter().for_each(|name| drop(files.get(*name).unwrap()));
    assert!(names[..4].iter().all(|name| fixture.is_open(*name)));
    // The first two are used again before one more is opened.
    names[..2].iter().for_each(|name| drop(files.get(*name).unwrap()));
    files.get(names[4]).unwrap();
    let open: Vec<bool> = names.iter().map(|name| fixture.is_open(*name)).collect();
    assert_eq!(open.iter().filter(|open| **open).count(), 2);
    assert!(open[1] && open[4], "{open:?}");
    // One is always kept.
    files.set_open_max(0);
    files.get(names[0]).unwrap();
    assert!(fixture.is_open(names[0]));
}

#[test]
fn removing_tells_what_it_freed_and_twice_is_no_error() {
    let fixture = Fixture::new();
    let name = fixture.create(SegmentKind::Data, 1);
    fixture.write(name, 4096, &[1; 65_536]);
    fixture.files().get(name).unwrap();
    let bytes = fixture.files().remove(name).unwrap();
    assert!((65_536..1 << 20).contains(&bytes), "{bytes}");
    assert!(!fixture.path(name).exists());
    assert_eq!(fixture.files().remove(name).unwrap(), 0);
    // It is not served from memory either.
    assert_eq!(fixture.files().get(name).err().unwrap().kind(), ErrorKind::Io);
}

#[test]
fn what_somebody_else_removed_is_closed_by_a_sweep() {
    let fixture = Fixture::new();
    let (gone, stays) = (fixture.create(SegmentKind::Map, 1), fixture.create(SegmentKind::Map, 2));
    let files = fixture.files();
    files.get(gone).unwrap();
    files.get(stays).unwrap();
    std::fs::remove_file(fixture.path(gone)).unwrap();
    assert!(files.get(gone).is_ok());
    files.sweep();
    assert!(files.get(gone).is_err());
    assert!(fixture.is_open(stays));
}

#[test]
fn a_pool_that_is_not_known_is_out_of_reach() {
    let fixture = Fixture::new();
    let name = SegmentName { pool: PoolId(9), ..fixture.name(SegmentKind::Map, 1) };
    let error = fixture.files().get(name).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.sentence().to_string().contains("is not known to this store"), "{error}");
}

/// The place of a pool in a directory. The directory need not hold one.
fn place_in(directory: &Path) -> Place {
    let (disk, random) = (Arc::new(LocalDisk::new()), Arc::new(SystemRandom));
    Place {
        shown: directory.display().to_string(),
        backend: local::open(disk, directory, 0o755, random),
        identity: (0, 0, 0),
        foreign: None,
        public: false,
        attached: false,
    }
}

#[test]
fn another_users_images_name_data_of_that_user_and_of_public_pools_only() {
    let fixture = Fixture::new();
    let files = fixture.files();
    let add = |number: u64, foreign: Option<u32>, public: bool| {
        let directory = fixture.pool.directory().join(number.to_string());
        let place = Place { foreign, public, ..place_in(&directory) };
        files.add_pool(PoolId(number), place).unwrap();
    };
    add(1, Some(1000), false);
    add(2, Some(1000), false);
    add(3, Some(2000), false);
    add(4, Some(2000), true);
    add(5, None, false);
    let named = |reader: u64, named: u64| files.check_named(PoolId(reader), PoolId(named));
    for allowed in [1, 2, 4] {
        assert!(named(1, allowed).unwrap(), "{allowed}");
    }
    for refused in [3, 5] {
        let error = named(1, refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }
    assert!(!named(1, 99).unwrap(), "nothing is known of it");
    for any in [1, 3, 5, 99] {
        assert!(named(5, any).unwrap(), "one's own images name what they name");
    }
    assert!(named(99, 1).is_err());
}

#[test]
fn of_two_pools_with_one_number_the_stores_own_has_it() {
    let fixture = Fixture::new();
    let files = fixture.files();
    let own = files.place(fixture.pool.id()).unwrap();
    let other = fixture.pool.directory().parent().unwrap().join("copy");
    let copy = |attached| Place { attached, ..place_in(&other) };
    for attached in [true, false] {
        let refused = files.add_pool(fixture.pool.id(), copy(attached)).map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    }
    // The same place again is no conflict.
    files.add_pool(fixture.pool.id(), own.clone()).unwrap();
    // The store's own pool takes the number from an attached pool, whose files are closed.
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("pool"), b"").unwrap();
    let number = PoolId(77);
    files.add_pool(number, copy(true)).unwrap();
    let name = fixture.create(SegmentKind::Map, 1);
    files.get(name).unwrap();
    files.add_pool(number, own.clone()).unwrap();
    assert_eq!(files.place(number).unwrap().shown, own.shown);
    assert!(fixture.is_open(name), "of another number");
    // A pool whose directory is gone loses its number.
    let gone = place_in(&other.join("gone"));
    files.add_pool(PoolId(78), gone).unwrap();
    files.add_pool(PoolId(78), copy(true)).unwrap();
    assert_eq!(files.place(PoolId(78)).unwrap().shown, other.display().to_string());
}

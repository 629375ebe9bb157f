//! What `check` reads grows with the differences between the snapshots of an image, and not with the number
//! of snapshots times the size of the image. Pages that it does not read again are checked all the same.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use marcot::{CheckOptions, CheckReport, CreateOptions, ImageId, Pool, Store};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::HeadRecord;
use marcot_format::segment::SegmentKind;
use marcot_format::table::{TABLE_PAGE_BYTES, TablePage, decode_table, encode_segments};
use support::{Faults, faulty_world};

/// Data under one leaf of the map.
const LEAF_BYTES: u64 = 2 << 20;
const LEAVES: u64 = 200;
/// Pages from the top of a map to a block.
const PATH_PAGES: u64 = 4;
/// Most bytes that are read for a snapshot with one block more: its path twice (as the later and as the
/// earlier of two), its table, the block, and its part of the head. Pages are read at their full length.
const SNAPSHOT_BYTES_MAX: i64 = 200 << 10;

struct Place {
    directory: tempfile::TempDir,
    store: Store,
    pool: Pool,
    image: ImageId,
    faults: Arc<Faults>,
}

/// An image with a block under each leaf.
fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let (world, faults) = faulty_world();
    let store = Store::open_in(world, directory.path()).unwrap();
    let pool = store.pool("rbd").unwrap();
    let options = CreateOptions::sized(LEAVES * LEAF_BYTES);
    let image = pool.create("image", &options).unwrap();
    let place = Place { directory, store, pool, image, faults };
    place.change(|image| {
        for leaf in 0..LEAVES {
            image.write_at(leaf * LEAF_BYTES, &[7; 4096]).unwrap();
        }
    });
    place
}

impl Place {
    fn change(&self, work: impl FnOnce(&mut marcot::Image)) {
        let mut image = self.pool.open(self.image).unwrap();
        work(&mut image);
        image.close().unwrap();
    }

    /// Takes snapshots, each after another block was written.
    fn snapshots(&self, numbers: std::ops::Range<u64>) {
        self.change(|image| {
            for number in numbers {
                let at = number % LEAVES * LEAF_BYTES + (1 + number / LEAVES) * 4096;
                image.write_at(at, &[number as u8; 4096]).unwrap();
                let name = format!("s{number}");
                image.snapshot(&name).unwrap();
            }
        });
    }

    fn check(&self, skip_data: bool) -> (CheckReport, i64) {
        let before = self.faults.read_bytes.load(Ordering::Relaxed);
        let options = CheckOptions { skip_data, ..CheckOptions::default() };
        let report = self.store.check(&self.pool, &options, &mut |_, _| {}).unwrap();
        (report, self.faults.read_bytes.load(Ordering::Relaxed) - before)
    }
}

#[test]
fn check_reads_for_one_more_snapshot_only_what_differs() {
    let place = place();
    place.snapshots(0..20);
    let (few, few_bytes) = place.check(false);
    place.snapshots(20..220);
    let (many, many_bytes) = place.check(false);
    assert!(few.findings.is_empty() && many.findings.is_empty(), "{few:?} {many:?}");
    assert_eq!((few.snapshots, many.snapshots), (20, 220));
    assert!(few.pages >= LEAVES, "{few:?}");
    // Ten times as many snapshots are compared. Each adds a page for each level, and no leaf of the rest.
    assert!(many.pages - few.pages <= 201 * PATH_PAGES, "{} and {}", few.pages, many.pages);
    // The blocks of a new leaf are read again: here there are at most three under one leaf.
    assert!(many.blocks - few.blocks <= 201 * 3, "{} and {}", few.blocks, many.blocks);
    let each = (many_bytes - few_bytes) / 200;
    assert!(each <= SNAPSHOT_BYTES_MAX, "{each} bytes are read for a snapshot");
}

#[test]
fn damage_to_shared_pages_is_reported_for_every_snapshot() {
    let place = place();
    place.snapshots(0..5);
    // The first map segment holds pages that all snapshots share.
    let author = place.pool.directory().join("segments").join(place.image.to_string());
    let mut segments: Vec<_> =
        std::fs::read_dir(author).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let map =
        segments.iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with('m'));
    let map = map.unwrap();
    let whole = std::fs::read(map).unwrap();
    std::fs::write(map, vec![0xee; whole.len()]).unwrap();
    let (report, _) = place.check(true);
    for snapshot in 0..5 {
        let label = format!("rbd/image@s{snapshot}");
        let of_it = |f: &&marcot::Finding| f.image == label && f.serious;
        let found = report.findings.iter().filter(of_it).count();
        assert!(found > 0, "{label}: {:?}", report.findings);
    }
    std::fs::write(map, whole).unwrap();
    assert!(place.check(false).0.findings.is_empty());
    drop(place.directory);
}

#[test]
fn blocks_in_a_segment_that_the_table_lacks_are_reported() {
    let place = place();
    let head_path = place.pool.image_directory(place.image).join("head");
    let bytes = std::fs::read(&head_path).unwrap();
    let (mut head, _): (HeadRecord, _) = decode_message(FrameKind::Head, &bytes).unwrap();
    let root = head.root.as_mut().unwrap();
    assert_eq!(root.table_levels, 1);
    let table = root.table.as_mut().unwrap();
    // The table as a faulty writer would leave it, with good checksums.
    let segments = place.pool.directory().join("segments").join(place.image.to_string());
    let path = segments.join(format!("t{:08x}", table.sequence));
    let mut file = std::fs::read(&path).unwrap();
    let at = table.page as usize * TABLE_PAGE_BYTES;
    let end = file.len().min(at + TABLE_PAGE_BYTES);
    let (TablePage::Segments(mut entries), _) = decode_table(&file[at..end], 0, 0).unwrap() else {
        panic!("a page of the lowest level")
    };
    for entry in &mut entries {
        if entry.is_some_and(|entry| entry.kind == SegmentKind::Data) {
            *entry = None;
        }
    }
    let mut page = Vec::new();
    table.crc = encode_segments(place.image.0, 0, &entries, &mut page);
    file.truncate(at);
    file.extend(page);
    std::fs::write(&path, file).unwrap();
    std::fs::write(&head_path, encode_message(FrameKind::Head, &head)).unwrap();
    let (report, _) = place.check(true);
    let lacks = |f: &&marcot::Finding| f.serious && f.message.contains("the table lacks segment");
    assert!(report.findings.iter().any(|f| lacks(&f)), "{:?}", report.findings);
}

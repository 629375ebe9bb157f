use super::map_pages::MAP_PAGES_MAX;
use super::*;

const BLOCK: usize = BLOCK_BYTES as usize;

use crate::{CreateOptions, Limits, Store};
use marcot_format::page::PAGE_READ_BYTES;
use marcot_store::World;

/// An image of 1 GiB in a store of its own.
fn new_image(directory: &std::path::Path, dead_bytes_min: u64) -> (crate::Pool, Image) {
    let image = image_with(directory, Limits { dead_bytes_min, ..Limits::default() });
    (image.pool().clone(), image)
}

fn image_with(directory: &std::path::Path, limits: Limits) -> Image {
    let store = Store::open_with(World::system(), directory, limits).unwrap();
    let pool = store.pool("rbd").unwrap();
    let id = pool.create("image", &CreateOptions::sized(1 << 30)).unwrap();
    pool.open(id).unwrap()
}

fn compact_all(image: &mut Image) {
    image.state.compaction.due = true;
    while image.compact_step(true).unwrap() {}
}

/// Writes a block under each of so many leaves, and again under most of them, with a checkpoint after each round: so pages
/// of the earlier rounds are dead.
fn wear_map(image: &mut Image, rounds: u8, leaves: u64) {
    for round in 0..rounds {
        for leaf in (0..leaves).filter(|leaf| round == 0 || leaf % 4 != 0) {
            image.write_at(leaf << 21, &[round; BLOCK]).unwrap();
        }
        image.checkpoint().unwrap();
    }
}

/// Ends the log, so that its segment can be emptied; returns the segment's index in the table.
fn close_segment(image: &mut Image) -> SegmentIndex {
    let index = image.journal.open_segment().unwrap().index;
    image.end_log().unwrap();
    image.checkpoint().unwrap();
    index
}

/// A rollback brings another table, in which an index may stand for another segment.
#[test]
fn a_rollback_forgets_which_segments_could_not_be_emptied() {
    let directory = tempfile::tempdir().unwrap();
    let (pool, mut image) = new_image(directory.path(), 1 << 20);
    image.snap_create("empty").unwrap();
    image.write_at(0, &[1; BLOCK]).unwrap();
    let index = close_segment(&mut image);
    let name = image.state.table.name(index, pool.files()).unwrap();
    let file = pool.files().open_as_it_is(name, true).unwrap();
    file.write_at(2 * BLOCK_BYTES, &[&[9; BLOCK]]).unwrap();
    compact_all(&mut image);
    assert!(image.state.compaction.stuck.contains(&index), "a block in it is damaged");

    image.snap_rollback("empty").unwrap();
    image.write_at(0, &[2; BLOCK]).unwrap();
    image.write_at(BLOCK_BYTES, &[3; BLOCK]).unwrap();
    assert_eq!(close_segment(&mut image), index, "the index is used again");
    let name = image.state.table.name(index, pool.files()).unwrap();
    compact_all(&mut image);
    image.checkpoint().unwrap();
    let gone = pool.files().open_as_it_is(name, false).err().map(|error| error.kind());
    assert_eq!(gone, Some(ErrorKind::NotFound), "the segment was emptied and removed");
    let mut blocks = [0; 2 * BLOCK];
    image.read_at(0, &mut blocks).unwrap();
    assert!(blocks[..BLOCK].iter().all(|b| *b == 2) && blocks[BLOCK..].iter().all(|b| *b == 3));
}

/// An image with copies in a segment beside its log, and that segment.
fn with_copies(directory: &std::path::Path) -> (Image, SegmentName) {
    let (dead_bytes_min, checkpoint_log_bytes) = (1 << 20, 1 << 40);
    let limits = Limits { dead_bytes_min, checkpoint_log_bytes, ..Limits::default() };
    let mut image = image_with(directory, limits);
    image.write_at(0, &[1; 100 * BLOCK]).unwrap();
    close_segment(&mut image);
    image.write_at(0, &[2; 50 * BLOCK]).unwrap();
    compact_all(&mut image);
    let target = image.state.compaction.open_name().unwrap();
    assert!(target.sequence > image.journal.open_name().unwrap().sequence);
    (image, target)
}

/// Writes until the log goes on behind the segment of copies.
fn pass(image: &mut Image, target: SegmentName) {
    while image.journal.open_name().unwrap().sequence < target.sequence {
        image.write_at(0, &vec![4; 1024 * BLOCK]).unwrap();
    }
}

#[test]
fn heads_say_from_which_segment_on_copies_are_added() {
    let directory = tempfile::tempdir().unwrap();
    let (mut image, target) = with_copies(directory.path());
    let open_from = |image: &mut Image| {
        image.publish_root(|_| {}).unwrap();
        image.head.open_from.unwrap().data
    };
    pass(&mut image, target);
    assert_eq!(open_from(&mut image), target.sequence, "it is written");
    image.close_target();
    assert_eq!(open_from(&mut image), target.sequence, "the durable root lacks copies in it");
    image.checkpoint().unwrap();
    let log = image.journal.open_name().unwrap().sequence;
    assert_eq!(open_from(&mut image), log, "it is closed, and its copies are in the root");
}

/// Copies make map pages dirty, and only a checkpoint makes it possible to drop these.
#[test]
fn compaction_of_blocks_under_many_pages_stays_within_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits {
        map_memory_bytes: 4 << 20,
        dead_bytes_min: 1 << 20,
        checkpoint_log_bytes: 1 << 40,
        ..Limits::default()
    };
    let store = Store::open_with(World::system(), directory.path(), limits).unwrap();
    let pool = store.pool("rbd").unwrap();
    let leaves = 3000;
    let id = pool.create("image", &CreateOptions::sized(leaves << 21)).unwrap();
    let mut image = pool.open(id).unwrap();
    for leaf in 0..leaves {
        image.write_at(leaf << 21, &[1; BLOCK]).unwrap();
    }
    let emptied = image.journal.open_name().unwrap();
    close_segment(&mut image);
    image.write_at(0, &[2; BLOCK]).unwrap();
    image.state.compaction.due = true;
    // A job moves up to one part before anything can be written.
    let bytes_max = limits.map_memory_bytes + (PART_SLOTS * PAGE_READ_BYTES) as u64;
    let mut copied = 0;
    while image.compact_step(true).unwrap() {
        copied = copied.max(image.state.compaction.moves.len());
        image.keep_within_bounds().unwrap();
        let bytes = image.state.memory_bytes();
        assert!(bytes <= bytes_max, "{bytes} bytes");
    }
    assert!(copied > 0);
    image.checkpoint().unwrap();
    let gone = pool.files().open_as_it_is(emptied, false).err().map(|error| error.kind());
    assert_eq!(gone, Some(ErrorKind::NotFound));
}

/// Looking through a map segment takes tens of milliseconds, and guests wait for it.
#[test]
fn a_map_segment_is_looked_through_once_before_it_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (pool, mut image) = new_image(directory.path(), 64 << 10);
    let leaves = 2 * MAP_PAGES_MAX as u64;
    wear_map(&mut image, 3, leaves);
    let emptied = image.state.pages.open_map().unwrap();
    let index = image.state.pages.open_map_index().unwrap();
    image.state.close_map_segment(&image.identity);
    image.state.pages.placed_map_bytes = 1 << 20;
    image.data_surveyed(0).unwrap();
    let is_done = |image: &Image| image.state.compaction.map.is_done(index, image.head.version);
    for looks in 0.. {
        assert!(!is_done(&image), "look {looks}");
        image.state.compaction.map.appended(1 << 20);
        image.pay_for_map().unwrap();
        if is_done(&image) {
            assert!(looks > 0, "more pages than are moved in one go");
            break;
        }
        assert!(image.state.compaction.map.is_at_work());
    }
    image.data_surveyed(0).unwrap();
    assert!(!image.state.compaction.map.is_at_work(), "it is not looked at again");
    image.state.changed = true;
    image.checkpoint().unwrap();
    let gone = pool.files().open_as_it_is(emptied, false).err().map(|error| error.kind());
    assert_eq!(gone, Some(ErrorKind::NotFound));
}

/// A segment that cannot be opened keeps no other one from being emptied.
#[test]
fn segments_that_cannot_be_opened_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (pool, mut image) = new_image(directory.path(), 64 << 10);
    wear_map(&mut image, 6, 256);
    let map = image.state.pages.open_map().unwrap();
    let map_index = image.state.pages.open_map_index().unwrap();
    image.state.close_map_segment(&image.identity);
    let data_index = close_segment(&mut image);
    let data = image.state.table.name(data_index, pool.files()).unwrap();
    for name in [map, data] {
        pool.files().remove(name).unwrap();
    }
    image.state.compaction.abandon();
    image.state.compaction.map.forget_victim();
    assert!(image.look_for_work().is_err());
    let stuck = &image.state.compaction.stuck;
    assert!(stuck.contains(&map_index) && stuck.contains(&data_index), "{stuck:?}");
    image.look_for_work().unwrap();
}

/// An open file would keep the room of a segment that is removed.
#[test]
fn an_idle_image_keeps_no_map_segment_open() {
    let directory = tempfile::tempdir().unwrap();
    let (_, mut image) = new_image(directory.path(), 64 << 10);
    wear_map(&mut image, 3, 256);
    image.state.close_map_segment(&image.identity);
    image.data_surveyed(0).unwrap();
    assert!(image.state.compaction.map.is_at_work());
    image.begin_idle_work();
    assert!(!image.state.compaction.map.is_at_work());
}

#[test]
fn a_log_that_goes_on_behind_copies_is_replayed() {
    let directory = tempfile::tempdir().unwrap();
    let (mut image, target) = with_copies(directory.path());
    let (id, pool) = (image.id(), image.pool().clone());
    pass(&mut image, target);
    image.write_at(0, &[5; BLOCK]).unwrap();
    image.flush().unwrap();
    drop(image);
    let mut image = pool.open(id).unwrap();
    let mut blocks = vec![0; 1024 * BLOCK];
    image.read_at(0, &mut blocks).unwrap();
    assert!(blocks[..BLOCK].iter().all(|b| *b == 5) && blocks[BLOCK..].iter().all(|b| *b == 4));
}

/// Limits with segments of 1 MiB, so that an image of 128 MiB has many.
fn small_segments(checkpoint_log_bytes: u64) -> Limits {
    let (segment_slots, dead_bytes_min) = (256, 1 << 20);
    Limits { segment_slots, dead_bytes_min, checkpoint_log_bytes, ..Limits::default() }
}

#[test]
fn dead_segments_that_wait_for_a_checkpoint_count() {
    let directory = tempfile::tempdir().unwrap();
    let mut image = image_with(directory.path(), small_segments(1 << 40));
    let slots = u64::from(image.limits().segment_slots - 1);
    let data = vec![1; 1 << 20];
    let fill = |image: &mut Image, mib: u64| {
        for n in 0..mib {
            image.write_at(n << 20, &data).unwrap();
        }
    };
    fill(&mut image, 64);
    let dead_slots = |image: &mut Image| {
        let survey = image.survey(SegmentKind::Data).unwrap();
        survey.used - survey.live
    };
    let before = dead_slots(&mut image);
    fill(&mut image, 5);
    let waiting = dead_slots(&mut image);
    assert!(waiting >= before + 4 * slots, "{before}, then {waiting}");
    image.begin_checkpoint().unwrap();
    assert!(dead_slots(&mut image) >= before + 4 * slots, "the worker has them");
    image.settle().unwrap();
    assert!(dead_slots(&mut image) < before + slots, "they are removed");

    // In a small image, what waits is as much as what is live.
    image.discard(0, 64 << 20).unwrap();
    image.checkpoint().unwrap();
    for _ in 0..20 {
        fill(&mut image, 2);
    }
    let survey = image.survey(SegmentKind::Data).unwrap();
    assert!(
        survey.used <= survey.live + survey.live / 8 + slots,
        "{} {}",
        survey.used,
        survey.live
    );
}

/// Every checkpoint writes a page for nearly every leaf, because compaction copies from everywhere. A writer that works
/// in order leaves a few of these pages live in each map segment, until it comes to them.
#[test]
fn a_writer_in_order_over_a_worn_image_does_not_pile_up_map_segments() {
    let directory = tempfile::tempdir().unwrap();
    let mut image = image_with(directory.path(), small_segments(1 << 40));
    let blocks = 64 * 512_u64;
    let map_bytes = |image: &mut Image| {
        let files = image.identity.pool.files();
        let mut names = Vec::new();
        let maps = |_, _, name: SegmentName| {
            names.extend((name.kind == SegmentKind::Map).then_some(name));
            Ok(())
        };
        image.state.table.for_each(files, maps).unwrap();
        names.iter().map(|name| files.get(*name).unwrap().length().unwrap()).sum::<u64>()
    };
    let mut most = 0;
    for n in 0..3 * blocks {
        // First at places that are all over the image, then in order.
        let block = if n < 2 * blocks { n * 20_479 % blocks } else { n % blocks };
        image.write_at(block * BLOCK_BYTES, &[2; BLOCK]).unwrap();
        if n % 256 == 0 {
            image.checkpoint().unwrap();
            most = most.max(map_bytes(&mut image));
        }
    }
    let data = blocks * BLOCK_BYTES;
    assert!(most < data / 24, "{most} bytes of map segments for {data} bytes of data");
}

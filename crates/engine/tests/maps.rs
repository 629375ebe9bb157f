//! Pages and entries of maps that look right and are not, and pages that are out of reach for a while.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;

use marcot::{ErrorKind, Store};
use marcot_format::page::peek_page;
use marcot_format::{BLOCK_BYTES, crc32c};
use support::{MIB, assert_sound, changed, pattern, segments, store_with_image};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Where the first page of a map segment lies: the first leaf that was stored.
const FIRST_PAGE: u64 = BLOCK_BYTES;

#[test]
fn a_diff_shows_a_block_whose_content_has_changed_though_its_checksum_has_not() {
    let directory = tempfile::tempdir().unwrap();
    let (_store, pool, id) = store_with_image(directory.path(), MIB);
    let before = pattern(1, BLOCK);
    let mut after = before.clone();
    // A multiple of the polynomial of CRC-32C, lowest bit first.
    let multiple: u64 = 1 | 0x82f6_3b78 << 1;
    for (byte, change) in after.iter_mut().zip(multiple.to_le_bytes()) {
        *byte ^= change;
    }
    assert!(before != after && crc32c(&before) == crc32c(&after));
    changed(&pool, id, |image| {
        image.write_at(0, &before).unwrap();
        image.snapshot("before").unwrap();
    });
    // The block lies in the same slot as before, of the next segment.
    changed(&pool, id, |image| {
        image.write_at(0, &after).unwrap();
        let extents = image.diff(Some("before"), None, 0, MIB).unwrap();
        assert_eq!(extents.len(), 1, "{extents:?}");
        assert_eq!((extents[0].offset, extents[0].length), (0, BLOCK_BYTES));
    });
}

#[test]
fn an_older_version_of_a_map_page_in_the_place_of_the_newer_one_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    // The second block stays where the first version of the first one lies.
    changed(&pool, id, |image| {
        image.write_at(0, &[pattern(1, BLOCK), pattern(3, BLOCK)].concat()).unwrap();
        image.snapshot("first").unwrap();
    });
    changed(&pool, id, |image| image.write_at(0, &pattern(2, BLOCK))).unwrap();
    let maps = segments(&pool, 'm');
    let (first, last) = (&maps[0], maps.last().unwrap());
    assert_ne!(first, last);
    // A write of the disk that went astray or was lost: the page is whole, and of the same place in the map.
    let old = fs::read(first).unwrap();
    let old = &old[FIRST_PAGE as usize..];
    let length = peek_page(old).unwrap();
    let file = fs::File::options().write(true).open(last).unwrap();
    file.write_all_at(&old[..length], FIRST_PAGE).unwrap();
    let pool = Store::open(store.directory()).unwrap().pool("rbd").unwrap();
    let mut block = vec![0; BLOCK];
    let error = pool.open(id).unwrap().read_at(0, &mut block).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    pool.open_snapshot(id, "first").unwrap().read_at(0, &mut block).unwrap();
    assert!(block == pattern(1, BLOCK));
}

#[test]
fn a_map_page_that_is_out_of_reach_when_a_log_is_replayed_is_not_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let (store, pool, id) = store_with_image(directory.path(), MIB);
    let data = pattern(1, 4 * BLOCK);
    changed(&pool, id, |image| image.write_at(0, &data)).unwrap();
    // A log, as a killed owner leaves it.
    let mut image = pool.open(id).unwrap();
    image.write_at(BLOCK_BYTES, &pattern(2, BLOCK)).unwrap();
    image.flush().unwrap();
    drop(image);
    let (map, away) = (segments(&pool, 'm').remove(0), directory.path().join("away"));
    fs::rename(&map, &away).unwrap();
    let store = Store::open(store.directory()).unwrap();
    let opened = store.pool("rbd").unwrap().open(id);
    assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::Io));
    fs::rename(&away, &map).unwrap();
    let store = Store::open(store.directory()).unwrap();
    let pool = store.pool("rbd").unwrap();
    changed(&pool, id, |image| {
        let mut found = vec![0; data.len()];
        image.read_at(0, &mut found).unwrap();
        assert!(found[..BLOCK] == data[..BLOCK] && found[2 * BLOCK..] == data[2 * BLOCK..]);
        assert!(found[BLOCK..2 * BLOCK] == pattern(2, BLOCK));
    });
    assert_sound(&store, &pool);
}

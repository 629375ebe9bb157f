use std::sync::Arc;

use marcot_format::table::encode_pointers;

use super::*;
use crate::{CreateOptions, Store};

struct Nowhere;

impl Whereabouts for Nowhere {
    fn places(&self) -> Option<Vec<Place>> {
        None
    }
}

#[test]
fn a_table_that_consists_of_gaps_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Store::open(directory.path()).unwrap().pool("rbd").unwrap();
    let author = pool.create("", "image", &CreateOptions::default()).unwrap();
    pool.create_own_set(author).unwrap();
    let (kind, sequence) = (SegmentKind::Table, 1);
    let name = SegmentName { pool: pool.id(), copies: 0, author, kind, sequence };
    let file = pool.files().create(name, 1).unwrap();
    // The top page has only its last entry: what it leaves out stands for 125 pages of the level
    // below, 15,750 of the next, and so on.
    let below = PagePointer { author: author.0, sequence, pool: 0, slot: 2, crc: 0 };
    let mut pointers = vec![None; TABLE_FANOUT];
    pointers[TABLE_FANOUT - 1] = Some(below);
    let mut bytes = Vec::new();
    let crc = encode_pointers(4, author.0, 0, &pointers, &mut bytes);
    file.write_at(TABLE_PAGE_BYTES as u64, &[&bytes]).unwrap();
    let root = RootRecord {
        table: Some(TablePointer { author: author.0, sequence, pool: 0, slot: 1, crc }),
        table_levels: 5,
        segment_next: 1,
        pools: vec![pool.id().0],
        ..RootRecord::default()
    };
    let opened = SegmentTable::open(&root, pool.id(), pool.files(), Guide(Arc::new(Nowhere)));
    let refused = opened.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(refused.to_string().contains("in its middle"), "{refused}");
}

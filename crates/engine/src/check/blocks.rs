//! The data that a root names. Every block is read once and compared with its checksum.

use std::collections::BTreeSet;
use std::sync::Arc;

use marcot_format::record::RootRecord;
use marcot_format::{
    BLOCK_BYTES, IMAGE_BYTES_MAX, MAP_LEVELS, MapEntry, SegmentIndex, Slot, crc32c,
};

use super::seen::PageKey;
use super::{Checker, page_of};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::map::{Link, TOP_LEVEL, Visitor, visit};
use crate::root::{RootOf, Source, TABLE_BYTES_MAX};
use crate::segment::{Files, SegmentName};
use crate::table::{Place, SegmentTable};

/// Blocks read at a time.
const RUN_BLOCKS_MAX: usize = 256;

/// Why a block is damaged, or why it could not be read. With an obstacle its data may be intact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    sentence: String,
    obstacle: Option<ErrorKind>,
}

/// A damaged block: its number, and why.
pub(super) type DamagedBlock = (u64, Reason);

/// Blocks that lie one after the other in a segment and are named by one leaf.
struct Run {
    name: SegmentName,
    slot: Slot,
    block: u64,
    crcs: Vec<u32>,
    /// The pages from the top to the leaf, by level.
    path: [Option<PageKey>; MAP_LEVELS as usize],
}

struct Reader<'a, 'c> {
    checker: &'a mut Checker<'c>,
    label: &'a str,
    table: SegmentTable,
    /// Pages of the table that cannot be read. Each is tried once.
    unread: BTreeSet<usize>,
    /// The number of the root's list of places.
    places: usize,
    files: Arc<Files>,
    run: Option<Run>,
    /// The pages from the top to the block being visited, by level.
    path: [Option<PageKey>; MAP_LEVELS as usize],
    /// Damaged ranges: first block, the block after the last, and the reason.
    bad: Vec<(u64, u64, Reason)>,
}

/// Reads the blocks of a root, except those below pages that were verified with another root.
pub(super) fn check(
    checker: &mut Checker<'_>,
    label: &str,
    (of, root): (&RootOf, &RootRecord),
    top: &Link,
    table: &mut SegmentTable,
) {
    let files = Arc::clone(checker.pool.files());
    let list = table.places().to_vec();
    let places = Place::number_of(&list, &mut checker.lists);
    // Neither a hole nor a lost page is among the pages that were verified.
    if let Some(entry) = top.entry()
        && let Ok(name) = table.name({ entry.address }.index(), &files)
    {
        let key = (places, name, { entry.address }.unit());
        if checker.verified.contains(&key) && !checker.above_damage.contains(&key) {
            // Another root has the same content.
            return;
        }
    }
    // The source borrows one table, so the names come from a second one.
    let Ok(mut names) = of.table(root) else { return };
    names.look_in(list);
    let mut reader = Reader {
        checker,
        label,
        places,
        table: names,
        unread: BTreeSet::new(),
        files: Arc::clone(&files),
        run: None,
        path: [None; MAP_LEVELS as usize],
        bad: Vec::new(),
    };
    let all = (0, IMAGE_BYTES_MAX / BLOCK_BYTES);
    let mut source = Source::new(table, files);
    // Unreadable pages were reported when pages were counted.
    let _ = visit(top, TOP_LEVEL, 0, all, &mut source, &mut reader);
    reader.finish();
}

impl Visitor for Reader<'_, '_> {
    fn page(&mut self, entry: MapEntry, level: u32, _base: u64) -> Result<bool> {
        let address = entry.address;
        self.path[level as usize] = None;
        let Some(name) = self.name(address.index()) else { return Ok(true) };
        self.table.evict(TABLE_BYTES_MAX, &|_| true);
        let key = (self.places, name, address.unit());
        self.path[level as usize] = Some(key);
        if self.checker.verified.insert(key) {
            return Ok(true);
        }
        // The page was verified with another root. Damage found there is damage of this root too.
        if level > 0 {
            return Ok(self.checker.above_damage.contains(&key));
        }
        let known = self.checker.damaged.get(&key).cloned().unwrap_or_default();
        self.verify_run();
        for (block, reason) in known {
            self.damaged(block, 1, reason);
        }
        Ok(false)
    }

    /// Such pages were reported when pages were counted.
    fn unreadable(&mut self, _: Error, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    /// Lost ranges were reported when pages were counted.
    fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool> {
        let address = entry.address;
        let Some(name) = self.name(address.index()) else { return Ok(true) };
        let continues = self.run.as_ref().is_some_and(|r| {
            r.name == name
                && r.slot.after(r.crcs.len() as u32) == address.slot()
                && r.block + r.crcs.len() as u64 == block
                && r.path == self.path
                && r.crcs.len() < RUN_BLOCKS_MAX
        });
        if !continues {
            self.verify_run();
            let (slot, path) = (address.slot(), self.path);
            self.run = Some(Run { name, slot, block, crcs: Vec::new(), path });
        }
        if let Some(run) = &mut self.run {
            run.crcs.push(entry.crc);
        }
        Ok(true)
    }
}

impl Reader<'_, '_> {
    /// The segment at an index; `None` where the table does not tell it. That was reported when counts were
    /// compared, and what other segments hold is verified all the same.
    fn name(&mut self, index: SegmentIndex) -> Option<SegmentName> {
        let page = page_of(index);
        if self.unread.contains(&page) {
            return None;
        }
        let name = self.table.name(index, &self.files).ok();
        if name.is_none() && self.table.for_each_of(page, &self.files, |_, _, _| Ok(())).is_err() {
            self.unread.insert(page);
        }
        name
    }

    fn verify_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let block_bytes = BLOCK_BYTES as usize;
        let mut bytes = vec![0; run.crcs.len() * block_bytes];
        let offset = run.slot.offset_bytes();
        let scrub = self.checker.options.scrub;
        let read = self.files.get(run.name).and_then(|file| {
            if scrub {
                file.drop_cached(offset, bytes.len() as u64);
            }
            file.read_at(offset, &mut bytes).at(|| "cannot read them".to_owned())
        });
        let (have, error) = match read {
            Ok(n) => (n, None),
            Err(error) => (0, Some(error)),
        };
        for (i, crc) in run.crcs.iter().enumerate() {
            self.checker.report.blocks += 1;
            let end = (i + 1) * block_bytes;
            if have < end || crc32c(&bytes[i * block_bytes..end]) != *crc {
                let why = "they do not match their checksums".to_owned();
                let why = error.as_ref().map_or(why, |error| error.sentence().to_string());
                let sentence = format!("in segment {}: {why}", run.name);
                let obstacle = error.as_ref().map(Error::kind).filter(|kind| kind.is_obstacle());
                let reason = Reason { sentence, obstacle };
                self.remember(&run.path, run.block + i as u64, &reason);
                self.damaged(run.block + i as u64, 1, reason);
            }
        }
        let done = self.checker.report.blocks * BLOCK_BYTES;
        (self.checker.progress)(done, self.checker.total_bytes.max(done));
    }

    /// Notes a damaged block for other roots that name it through the same pages.
    fn remember(&mut self, path: &[Option<PageKey>], block: u64, reason: &Reason) {
        if let Some(leaf) = path[0] {
            let known = self.checker.damaged.entry(leaf).or_default();
            known.push((block, reason.clone()));
        }
        self.checker.above_damage.extend(path[1..].iter().flatten());
    }

    fn damaged(&mut self, block: u64, count: u64, reason: Reason) {
        match self.bad.last_mut() {
            Some((_, end, last)) if *end == block && *last == reason => *end += count,
            _ => self.bad.push((block, block + count, reason)),
        }
    }

    fn finish(&mut self) {
        self.verify_run();
        for (from, to, Reason { sentence, obstacle }) in std::mem::take(&mut self.bad) {
            let range = format!("bytes {} to {}", from * BLOCK_BYTES, to * BLOCK_BYTES);
            if let Some(kind) = obstacle {
                self.checker.find_unseen(self.label, &range, kind, &sentence);
                continue;
            }
            let message = format!("{range} are damaged and read as errors ({sentence})");
            self.checker.find(self.label, true, message);
        }
    }
}

//! The data that a root names: every block read once and compared with its checksum.

use std::sync::Arc;

use marcot_format::record::RootRecord;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MapEntry, crc32c};

use super::Checker;
use crate::error::Result;
use crate::image::Source;
use crate::map::{Link, TOP_LEVEL, Visitor, visit};
use crate::segment::{Files, SegmentName};
use crate::table::SegmentTable;

/// Blocks read at a time.
const RUN_BLOCKS_MAX: usize = 256;

/// Blocks that lie together.
struct Run {
    name: SegmentName,
    slot: u32,
    block: u64,
    crcs: Vec<u32>,
}

struct Reader<'a, 'c> {
    checker: &'a mut Checker<'c>,
    label: &'a str,
    table: SegmentTable,
    files: Arc<Files>,
    run: Option<Run>,
    /// First and last block of a damaged range, with the reason.
    bad: Vec<(u64, u64, String)>,
}

/// Reads the blocks of a root that no page seen before has named.
pub(super) fn check(
    checker: &mut Checker<'_>,
    label: &str,
    root: &RootRecord,
    top: &Link,
    table: &mut SegmentTable,
) {
    let files = Arc::clone(checker.pool.files());
    // Pages and names come through tables of their own, so that both can be used at once.
    let Ok(names) = SegmentTable::open(root, &files) else { return };
    let mut reader = Reader {
        checker,
        label,
        table: names,
        files: Arc::clone(&files),
        run: None,
        bad: Vec::new(),
    };
    let all = (0, IMAGE_BYTES_MAX / BLOCK_BYTES);
    let mut source = Source::new(table, files);
    // Pages that cannot be read were reported when they were counted.
    let _ = visit(top, TOP_LEVEL, 0, all, &mut source, &mut reader);
    reader.finish();
}

impl Visitor for Reader<'_, '_> {
    fn page(&mut self, entry: MapEntry, _level: u32, _base: u64) -> Result<bool> {
        let address = entry.address;
        let name = self.table.name(address.segment(), &self.files)?;
        Ok(self.checker.verified.insert((name, address.slot())))
    }

    /// Reported when pages were counted.
    fn lost(&mut self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }

    fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool> {
        let address = entry.address;
        let name = self.table.name(address.segment(), &self.files)?;
        let continues = self.run.as_ref().is_some_and(|r| {
            r.name == name
                && r.slot + r.crcs.len() as u32 == address.slot()
                && r.block + r.crcs.len() as u64 == block
                && r.crcs.len() < RUN_BLOCKS_MAX
        });
        if !continues {
            self.verify_run();
            self.run = Some(Run { name, slot: address.slot(), block, crcs: Vec::new() });
        }
        if let Some(run) = &mut self.run {
            run.crcs.push(entry.crc);
        }
        Ok(true)
    }
}

impl Reader<'_, '_> {
    fn verify_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let block_bytes = BLOCK_BYTES as usize;
        let mut bytes = vec![0; run.crcs.len() * block_bytes];
        let offset = u64::from(run.slot) * BLOCK_BYTES;
        let read = self
            .files
            .get(run.name)
            .map_err(|e| e.to_string())
            .and_then(|f| f.read_at(offset, &mut bytes).map_err(|e| e.to_string()));
        let have = match read {
            Ok(n) => n,
            Err(error) => {
                return self.damaged(run.block, run.crcs.len() as u64, run.name, &error);
            }
        };
        for (i, crc) in run.crcs.iter().enumerate() {
            self.checker.report.blocks += 1;
            let end = (i + 1) * block_bytes;
            if have < end || crc32c(&bytes[i * block_bytes..end]) != *crc {
                let why = "they do not match their checksums";
                self.damaged(run.block + i as u64, 1, run.name, why);
            }
        }
    }

    fn damaged(&mut self, block: u64, count: u64, name: SegmentName, why: &str) {
        let reason = format!("in segment {name}: {why}");
        match self.bad.last_mut() {
            Some((_, end, last)) if *end == block && *last == reason => *end += count,
            _ => self.bad.push((block, block + count, reason)),
        }
    }

    fn finish(&mut self) {
        self.verify_run();
        for (from, to, reason) in std::mem::take(&mut self.bad) {
            let message = format!(
                "bytes {} to {} are damaged and read as errors ({reason})",
                from * BLOCK_BYTES,
                to * BLOCK_BYTES
            );
            self.checker.find(self.label, true, message);
        }
    }
}

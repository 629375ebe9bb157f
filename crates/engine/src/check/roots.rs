//! One root: its table, its pages, its counts.

use std::collections::HashMap;
use std::sync::Arc;

use marcot_format::record::RootRecord;
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX};

use super::{Checker, blocks};
use crate::error::Result;
use crate::image::{Source, open_root};
use crate::map::{Link, Node, PageSource, TOP_LEVEL, entry_blocks};
use crate::table::SegmentTable;

/// Counts of what a root names.
#[derive(Default)]
struct Counts {
    /// By table index: slots or units.
    live: HashMap<u32, u64>,
    mapped: u64,
    pages: u64,
}

/// Verifies a root and notes what is wrong under `label`.
pub(super) fn check(checker: &mut Checker<'_>, label: &str, root: &RootRecord) {
    let opened = open_root(checker.pool, root);
    let (map, mut table) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let message =
                format!("its segment table cannot be read, so none of its data can: {error}");
            return checker.find(label, true, message);
        }
    };
    let mut counts = Counts::default();
    let mut lost: Vec<(u64, u64, String)> = Vec::new();
    {
        let mut source = Source::new(&mut table, Arc::clone(checker.pool.files()));
        walk(map.top(), TOP_LEVEL, 0, &mut source, &mut counts, &mut lost);
    }
    checker.report.pages += counts.pages;
    for (block, blocks, error) in &lost {
        let message = format!(
            "bytes {} to {} cannot be read: {error}",
            block * BLOCK_BYTES,
            (block + blocks) * BLOCK_BYTES
        );
        checker.find(label, true, message);
    }
    compare(checker, label, &mut table, &counts, lost.is_empty());
    if lost.is_empty() && counts.mapped != root.mapped_blocks {
        let message =
            format!("the root counts {} blocks, the map has {}", root.mapped_blocks, counts.mapped);
        checker.find(label, false, message);
    }
    if !checker.options.skip_data {
        blocks::check(checker, label, root, map.top(), &mut table);
    }
}

fn walk(
    link: &Link,
    level: u32,
    base: u64,
    source: &mut Source<'_>,
    counts: &mut Counts,
    lost: &mut Vec<(u64, u64, String)>,
) {
    let Link::Stored(entry) = link else { return };
    let node = match source.load(*entry, level, base) {
        Ok(node) => node,
        Err(error) => {
            let blocks = entry_blocks(level + 1).min(IMAGE_BYTES_MAX / BLOCK_BYTES);
            return lost.push((base, blocks, error.to_string()));
        }
    };
    counts.pages += 1;
    *counts.live.entry({ entry.address }.segment()).or_default() += u64::from(node.units());
    match node {
        Node::Leaf(entries) => {
            for entry in entries.iter().filter(|e| !e.is_hole()) {
                *counts.live.entry({ entry.address }.segment()).or_default() += 1;
                counts.mapped += 1;
            }
        }
        Node::Inner(links) => {
            for (i, link) in links.iter().enumerate() {
                walk(link, level - 1, base + i as u64 * entry_blocks(level), source, counts, lost);
            }
        }
    }
}

/// Compares the counts of the table with what was found, and looks whether the files are there.
fn compare(
    checker: &mut Checker<'_>,
    label: &str,
    table: &mut SegmentTable,
    counts: &Counts,
    whole: bool,
) {
    let files = Arc::clone(checker.pool.files());
    let mut wrong: Vec<(bool, String)> = Vec::new();
    let listed = table.for_each(&files, |index, entry, name| {
        let found = counts.live.get(&index).copied().unwrap_or(0);
        let what = if name.kind == SegmentKind::Data { "blocks" } else { "units of pages" };
        if whole && found != u64::from(entry.live) {
            let message = format!(
                "segment {name} is counted with {} live {what}, but {found} are named",
                entry.live
            );
            wrong.push((false, message));
        }
        if found > 0
            && let Err(error) = files.get(name)
        {
            wrong.push((true, format!("{found} {what} are lost with segment {name}: {error}")));
        }
        Ok(())
    });
    if let Err(error) = listed {
        wrong.push((true, format!("the segment table is damaged: {error}")));
    }
    for (serious, message) in wrong {
        checker.find(label, serious, message);
    }
}

/// The true counts of a map, for repair: slots by table index, and blocks mapped.
pub(crate) fn count(top: &Link, source: &mut Source<'_>) -> Result<(HashMap<u32, u64>, u64)> {
    let mut counts = Counts::default();
    let mut lost = Vec::new();
    walk(top, TOP_LEVEL, 0, source, &mut counts, &mut lost);
    if let Some((.., error)) = lost.into_iter().next() {
        return crate::error::fail(crate::error::ErrorKind::Corrupt, error);
    }
    Ok((counts.live, counts.mapped))
}

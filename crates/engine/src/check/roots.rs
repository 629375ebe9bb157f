//! One root: its table, its pages, its counts.

use std::collections::HashMap;
use std::sync::Arc;

use marcot_format::record::RootRecord;
use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX};

use super::{Checker, blocks};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{RootOf, Source};
use crate::map::{Link, Node, PageSource, TOP_LEVEL, entry_blocks};
use crate::table::SegmentTable;

/// Counts of what a root names.
#[derive(Default)]
struct Counts {
    /// By table index: slots or units.
    live: HashMap<u32, u64>,
    mapped: u64,
    pages: u64,
    /// Pages that cannot be read: level, first block, and the reason.
    unreadable: Vec<(u32, u64, Error)>,
    /// First block and blocks of what was given up with such a page earlier.
    lost: Vec<(u64, u64)>,
}

impl Counts {
    fn lost(&mut self, block: u64, blocks: u64) {
        match self.lost.last_mut() {
            Some((first, count)) if *first + *count == block => *count += blocks,
            _ => self.lost.push((block, blocks)),
        }
    }
}

/// Blocks below a page of `level`, within the largest image.
fn blocks_below(level: u32) -> u64 {
    entry_blocks(level + 1).min(IMAGE_BYTES_MAX / BLOCK_BYTES)
}

/// Verifies a root and notes what is wrong under `label`. Where [`Image::recount`](crate::Image)
/// would change something, counts or pages to give up: the number of the first finding about that.
pub(super) fn check(
    checker: &mut Checker<'_>,
    label: &str,
    of: &RootOf,
    root: &RootRecord,
) -> Option<usize> {
    let opened = of.open(root);
    let (map, mut table) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let message =
                format!("its segment table cannot be read, so none of its data can: {error}");
            checker.find_failed(label, "its segment table, and so its data,", &error, message);
            return None;
        }
    };
    // What an ancestor's flatten has moved is looked at where it is.
    table.follow();
    let mut counts = Counts::default();
    {
        let mut source = Source::new(&mut table, Arc::clone(checker.pool.files()));
        walk(map.top(), TOP_LEVEL, 0, &mut source, &mut counts);
    }
    checker.report.pages += counts.pages;
    let range = |block: u64, blocks: u64| {
        format!("bytes {} to {}", block * BLOCK_BYTES, (block + blocks) * BLOCK_BYTES)
    };
    headers(checker, label, &mut table, &counts);
    let noted = checker.report.findings.len();
    for (level, block, error) in &counts.unreadable {
        let range = range(*block, blocks_below(*level));
        checker.find_failed(label, &range, error, format!("{range} cannot be read: {error}"));
    }
    for (block, blocks) in &counts.lost {
        let message = format!(
            "{} were lost with a damaged map page and read as errors until they are written",
            range(*block, *blocks)
        );
        checker.find(label, true, message);
    }
    let whole = counts.unreadable.is_empty();
    compare(checker, label, &mut table, &counts, whole);
    if whole && counts.mapped != root.mapped_blocks {
        let message =
            format!("the root counts {} blocks, the map has {}", root.mapped_blocks, counts.mapped);
        checker.find(label, false, message);
    }
    let counted_wrong =
        checker.report.findings[noted..].iter().any(|f| !f.serious && f.unseen.is_none());
    if !checker.options.skip_data {
        blocks::check(checker, label, (of, root), map.top(), &mut table);
    }
    let to_give_up = counts.unreadable.iter().any(|(.., e)| e.kind() == ErrorKind::Corrupt);
    (counted_wrong || to_give_up).then_some(noted)
}

/// Looks at the headers of the segments that are in use.
fn headers(checker: &mut Checker<'_>, label: &str, table: &mut SegmentTable, counts: &Counts) {
    let files = Arc::clone(checker.pool.files());
    let mut damaged = Vec::new();
    // A table that is damaged is told of when counts are compared.
    let _ = table.for_each(&files, |index, _, name| {
        let named = counts.live.contains_key(&index);
        if named && files.header_is_damaged(name).is_ok_and(|damaged| damaged) {
            damaged.push(name);
        }
        Ok(())
    });
    for name in damaged {
        let message =
            format!("the header of segment {name} is damaged, and nothing is lost with it");
        checker.find(label, false, message);
        if checker.options.repair && files.restore_header(name).is_ok() {
            checker.repaired();
        }
    }
}

fn walk(link: &Link, level: u32, base: u64, source: &mut Source<'_>, counts: &mut Counts) {
    let Link::Stored(entry) = link else { return };
    if entry.is_lost() {
        return counts.lost(base, blocks_below(level));
    }
    let node = match source.load(*entry, level, base) {
        Ok(node) => node,
        Err(error) => {
            return counts.unreadable.push((level, base, error));
        }
    };
    counts.pages += 1;
    *counts.live.entry({ entry.address }.segment()).or_default() += u64::from(node.units());
    match node {
        Node::Leaf(entries) => {
            for (i, entry) in entries.iter().enumerate().filter(|(_, e)| !e.is_hole()) {
                if entry.is_lost() {
                    counts.lost(base + i as u64, 1);
                    continue;
                }
                *counts.live.entry({ entry.address }.segment()).or_default() += 1;
                counts.mapped += 1;
            }
        }
        Node::Inner(links) => {
            for (i, link) in links.iter().enumerate() {
                walk(link, level - 1, base + i as u64 * entry_blocks(level), source, counts);
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
    let mut wrong: Vec<String> = Vec::new();
    let mut missing: Vec<(String, Error, String)> = Vec::new();
    let listed = table.for_each(&files, |index, entry, name| {
        let found = counts.live.get(&index).copied().unwrap_or(0);
        let what = if name.kind == SegmentKind::Data { "blocks" } else { "units of pages" };
        if whole && found != u64::from(entry.live) {
            let message = format!(
                "segment {name} is counted with {} live {what}, but {found} are named",
                entry.live
            );
            wrong.push(message);
        }
        if found > 0
            && let Err(error) = files.get(name)
        {
            let message = format!("{found} {what} are lost with segment {name}: {error}");
            missing.push((format!("segment {name}"), error, message));
        }
        Ok(())
    });
    if let Err(error) = listed {
        let message = format!("the segment table is damaged: {error}");
        missing.push(("the segment table".to_owned(), error, message));
    }
    for message in wrong {
        checker.find(label, false, message);
    }
    for (what, error, message) in missing {
        checker.find_failed(label, &what, &error, message);
    }
}

/// Level and first block of the pages of a map that are damaged.
pub(crate) fn damaged_pages(top: &Link, source: &mut Source<'_>) -> Vec<(u32, u64)> {
    let mut counts = Counts::default();
    walk(top, TOP_LEVEL, 0, source, &mut counts);
    let damaged = counts.unreadable.iter().filter(|(.., e)| e.kind() == ErrorKind::Corrupt);
    damaged.map(|(level, base, _)| (*level, *base)).collect()
}

/// The true counts of a map, for repair: slots by table index, and blocks mapped.
pub(crate) fn count(top: &Link, source: &mut Source<'_>) -> Result<(HashMap<u32, u64>, u64)> {
    let mut counts = Counts::default();
    walk(top, TOP_LEVEL, 0, source, &mut counts);
    if let Some((.., error)) = counts.unreadable.into_iter().next() {
        return Err(error);
    }
    Ok((counts.live, counts.mapped))
}

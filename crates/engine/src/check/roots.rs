//! One root: its table, its pages, its counts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use marcot_format::record::RootRecord;
use marcot_format::segment::SegmentKind;
use marcot_format::table::TABLE_FANOUT;
use marcot_format::{BLOCK_BYTES, SegmentIndex};

use super::{Checker, blocks, page_of};
use crate::error::{Error, ErrorKind, Result, fail};
use crate::map::Link;
use crate::root::{Change, Counts, RootOf, Source, TABLE_BYTES_MAX, blocks_below};
use crate::table::{Place, SegmentTable};

/// The root that was checked last. The next root of the same image differs from it only a little.
pub(super) struct Before {
    top: Link,
    table: SegmentTable,
    counts: Counts,
    /// Pages of the lowest level of the table that have findings.
    faulty: BTreeSet<usize>,
}

/// Verifies a root whose data lies in `places`, and notes what is wrong under `label`. Where
/// [`Image::recount`](crate::Image) can repair something, because counts are wrong or damaged pages can
/// be given up, returns the number of the first finding that this may concern.
pub(super) fn check(
    checker: &mut Checker<'_>,
    label: &str,
    (of, root): (&RootOf, &RootRecord),
    places: Vec<Place>,
    may_be_outside: bool,
    before: &mut Option<Before>,
) -> Option<usize> {
    let opened = of.open(root);
    let (map, mut table) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let message = format!(
                "its segment table cannot be read, so none of its data can: {}",
                error.sentence()
            );
            checker.find_failed(label, "its segment table, and so its data,", &error, message);
            return None;
        }
    };
    // Data that an ancestor's flatten has copied is read where it lies now.
    table.look_in(places);
    let (counts, pages_of_table) = count(checker, map.top(), &mut table, before.take());
    let range = |block: u64, blocks: u64| {
        format!("bytes {} to {}", block * BLOCK_BYTES, (block + blocks) * BLOCK_BYTES)
    };
    let noted = checker.report.findings.len();
    for (block, (level, error)) in &counts.unreadable {
        let range = range(*block, blocks_below(*level));
        checker.find_failed(
            label,
            &range,
            error,
            format!("{range} cannot be read: {}", error.sentence()),
        );
    }
    for (block, blocks) in counts.lost_ranges() {
        let message = format!(
            "{} were lost with a damaged map page and read as errors until they are written",
            range(block, blocks)
        );
        checker.find(label, true, message);
    }
    let whole = counts.unreadable.is_empty();
    for (block, blocks) in counts.external_ranges().into_iter().filter(|_| !may_be_outside) {
        let message = format!(
            "{} are left to the source of a migration, and its head knows of none: they read as errors until they are written",
            range(block, blocks)
        );
        checker.find(label, true, message);
    }
    let faulty = compare(checker, label, &mut table, (&counts, whole), &pages_of_table);
    if whole && counts.mapped != root.mapped_blocks {
        let message =
            format!("the root counts {} blocks, the map has {}", root.mapped_blocks, counts.mapped);
        checker.find(label, false, message);
    }
    let counted_wrong =
        checker.report.findings[noted..].iter().any(|f| !f.serious && f.unseen.is_none());
    headers(checker, label, &mut table, &counts, &pages_of_table);
    if !checker.options.skip_data {
        blocks::check(checker, label, (of, root), map.top(), &mut table);
    }
    let to_give_up = counts.unreadable.values().any(|(_, e)| e.kind() == ErrorKind::Corrupt);
    table.evict(TABLE_BYTES_MAX, &|_| true);
    *before = Some(Before { top: map.top().clone(), table, counts, faulty });
    (counted_wrong || to_give_up).then_some(noted)
}

/// Counts what a root names. Returns also the pages of the lowest level of its table that have to be
/// checked. The other pages are the same as those of the root before, with the same counts, and were
/// checked with that root.
fn count(
    checker: &mut Checker<'_>,
    top: &Link,
    table: &mut SegmentTable,
    before: Option<Before>,
) -> (Counts, BTreeSet<usize>) {
    let files = Arc::clone(checker.pool.files());
    let before = before.filter(|before| before.table.places() == table.places());
    if let Some(mut before) = before {
        let change = {
            let mut earlier = Source::new(&mut before.table, Arc::clone(&files));
            let mut later = Source::new(table, Arc::clone(&files));
            let earlier_map = (&before.top, &before.counts);
            Change::between(earlier_map, top, (&mut earlier, &mut later))
        };
        if let Ok(change) = change
            && let Ok(pages) = changed_pages(checker, &mut before, table, &change)
        {
            checker.report.pages += change.pages;
            before.counts.apply(change);
            return (before.counts, pages);
        }
    }
    let mut source = Source::new(table, files);
    let (counts, pages) = Counts::of(top, &mut source);
    checker.report.pages += pages;
    let beyond = counts.live.keys().next_back().map_or(0, |last| page_of(*last) + 1);
    (counts, (0..table.leaf_count().max(beyond)).collect())
}

fn indices_of(page: usize) -> Range<SegmentIndex> {
    let first = u32::try_from(page * TABLE_FANOUT).unwrap_or(u32::MAX);
    SegmentIndex(first)..SegmentIndex(first.saturating_add(TABLE_FANOUT as u32))
}

/// The pages of the table that differ from those of the root before, or whose counts differ.
///
/// # Errors
/// Where an index that both roots use stands for different segments, or cannot be read. Then shared map
/// pages do not name the same blocks.
fn changed_pages(
    checker: &Checker<'_>,
    before: &mut Before,
    table: &mut SegmentTable,
    change: &Change,
) -> Result<BTreeSet<usize>> {
    let files = checker.pool.files();
    let mut pages: BTreeSet<usize> = change.indices().map(page_of).collect();
    pages.extend(&before.faulty);
    let all = 0..table.leaf_count().max(before.table.leaf_count());
    if !before.counts.unreadable.is_empty() {
        // The counts of the root before were not compared.
        pages.extend(all.clone());
    }
    for page in all {
        if table.has_leaf_of(&before.table, page) {
            continue;
        }
        pages.insert(page);
        for (index, _) in before.counts.live.range(indices_of(page)) {
            let shared = before.counts.shared(change, *index) > 0;
            if shared && table.name(*index, files)? != before.table.name(*index, files)? {
                return fail(ErrorKind::Corrupt, "a table index stands for two segments");
            }
        }
    }
    Ok(pages)
}

/// Checks the headers of the segments in use. Each header is checked once for all roots of an image.
fn headers(
    checker: &mut Checker<'_>,
    label: &str,
    table: &mut SegmentTable,
    counts: &Counts,
    pages: &BTreeSet<usize>,
) {
    let files = Arc::clone(checker.pool.files());
    let mut named = Vec::new();
    for page in pages {
        // A damaged table is reported by `compare`.
        let _ = table.for_each_of(*page, &files, |index, _, name| {
            if counts.live.contains_key(&index) && !checker.present.contains(&name) {
                named.push(name);
            }
            Ok(())
        });
    }
    for name in named {
        let Ok(damaged) = files.header_is_damaged(name) else { continue };
        checker.present.insert(name);
        if !damaged {
            continue;
        }
        let message =
            format!("the header of segment {name} is damaged, and nothing is lost with it");
        checker.find(label, false, message);
        if checker.options.repair && files.restore_header(name).is_ok() {
            checker.repaired();
        }
    }
}

/// Compares the counts in `pages` of the table with those found in the map, and checks that the segment
/// files exist. Returns the pages that have findings.
fn compare(
    checker: &mut Checker<'_>,
    label: &str,
    table: &mut SegmentTable,
    (counts, whole): (&Counts, bool),
    pages: &BTreeSet<usize>,
) -> BTreeSet<usize> {
    let files = Arc::clone(checker.pool.files());
    let mut faulty = BTreeSet::new();
    for page in pages {
        let named = counts.live.range(indices_of(*page));
        let mut left: BTreeMap<SegmentIndex, u64> =
            named.map(|(index, found)| (*index, *found)).collect();
        let mut wrong: Vec<String> = Vec::new();
        let mut missing: Vec<(String, Error, String)> = Vec::new();
        let listed = table.for_each_of(*page, &files, |index, entry, name| {
            let found = left.remove(&index).unwrap_or(0);
            let what = if name.kind == SegmentKind::Data { "blocks" } else { "units of pages" };
            if whole && found != u64::from(entry.live) {
                let message = format!(
                    "segment {name} is counted with {} live {what}, but {found} are named",
                    entry.live
                );
                wrong.push(message);
            }
            if found > 0
                && !checker.present.contains(&name)
                && let Err(error) = files.get(name)
            {
                let message =
                    format!("{found} {what} are lost with segment {name}: {}", error.sentence());
                missing.push((format!("segment {name}"), error, message));
            }
            Ok(())
        });
        let mut lost = Vec::new();
        match listed {
            Err(error) => {
                let message = format!("the segment table is damaged: {}", error.sentence());
                missing.push(("the segment table".to_owned(), error, message));
            }
            Ok(()) => lost.extend(left.into_iter().map(|(index, found)| {
                format!("{found} blocks are lost: the table lacks segment index {}", index.0)
            })),
        }
        if !wrong.is_empty() || !missing.is_empty() || !lost.is_empty() {
            faulty.insert(*page);
        }
        for message in wrong {
            checker.find(label, false, message);
        }
        for (what, error, message) in missing {
            checker.find_failed(label, &what, &error, message);
        }
        for message in lost {
            checker.find(label, true, message);
        }
    }
    faulty
}

//! Visits of a map. They leave nothing in memory: a page that is not loaded is read, looked at and
//! dropped.

use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, MapEntry};

use super::{Link, Node, PageSource, entry_blocks};
use crate::error::{Error, ErrorKind, Result, fail};

fn node_of(
    link: &Link,
    level: u32,
    base: u64,
    source: &mut dyn PageSource,
) -> Result<Option<Arc<Node>>> {
    match link {
        Link::Hole => Ok(None),
        Link::Stored(entry) => Ok(Some(Arc::new(source.load(*entry, level, base)?))),
        Link::Clean(_, node) | Link::Dirty(node) => Ok(Some(Arc::clone(node))),
    }
}

/// Receives what a visit finds.
pub(crate) trait Visitor {
    /// A page that is on disk. False skips everything below it.
    fn page(&mut self, _entry: MapEntry, _level: u32, _base: u64) -> Result<bool> {
        Ok(true)
    }

    /// Blocks whose content was lost with a damaged page. They are no holes, so they are an error
    /// unless a visitor handles them. False ends the visit.
    fn lost(&mut self, first: u64, blocks: u64) -> Result<bool> {
        let (from, to) = (first * BLOCK_BYTES, (first + blocks) * BLOCK_BYTES);
        let message = format!("bytes {from} to {to} were lost with a damaged map page");
        fail(ErrorKind::Corrupt, message)
    }

    /// Blocks whose content is still in the source of a migration, outside the store. They name nothing here. False
    /// ends the visit.
    fn external(&mut self, _first: u64, _blocks: u64) -> Result<bool> {
        Ok(true)
    }

    /// Blocks below a page that cannot be read. False ends the visit.
    fn unreadable(&mut self, error: Error, _first: u64, _blocks: u64) -> Result<bool> {
        Err(error)
    }

    /// A mapped block; false ends the visit.
    fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool>;
}

/// Shows every mapped block of `range` to `visitor`, in order. Returns false where the visitor ended
/// the visit.
pub(crate) fn visit(
    link: &Link,
    level: u32,
    base: u64,
    range: (u64, u64),
    source: &mut dyn PageSource,
    visitor: &mut dyn Visitor,
) -> Result<bool> {
    let (from, to) = (range.0.max(base), range.1.min(base + entry_blocks(level + 1)));
    if from >= to || link.is_hole() {
        return Ok(true);
    }
    if let Some(entry) = link.entry().filter(|entry| entry.is_nowhere()) {
        return visit_nowhere(entry, from, to - from, visitor);
    }
    if let Some(entry) = link.entry()
        && !visitor.page(entry, level, base)?
    {
        return Ok(true);
    }
    let node = match node_of(link, level, base, source) {
        Ok(Some(node)) => node,
        Ok(None) => return Ok(true),
        Err(error) => return visitor.unreadable(error, from, to - from),
    };
    match &*node {
        Node::Leaf(entries) => {
            let mut block = from;
            while block < to {
                let entry = entries[(block - base) as usize];
                if entry.is_external() {
                    // Neighbours are shown together: whoever asks their source asks once.
                    let rest = &entries[(block - base) as usize..(to - base) as usize];
                    let run = rest.iter().take_while(|entry| entry.is_external()).count() as u64;
                    if !visitor.external(block, run)? {
                        return Ok(false);
                    }
                    block += run;
                    continue;
                }
                block += 1;
                if entry.is_lost() {
                    if !visitor.lost(block - 1, 1)? {
                        return Ok(false);
                    }
                } else if !entry.is_hole() && !visitor.block(block - 1, entry)? {
                    return Ok(false);
                }
            }
        }
        Node::Inner(links) => {
            let step = entry_blocks(level);
            for i in (from - base) / step..=(to - 1 - base) / step {
                let (child, start) = (&links[i as usize], base + i * step);
                if !visit(child, level - 1, start, range, source, visitor)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Shows blocks whose entry names nothing.
fn visit_nowhere(
    entry: MapEntry,
    first: u64,
    blocks: u64,
    visitor: &mut dyn Visitor,
) -> Result<bool> {
    match entry.is_external() {
        true => visitor.external(first, blocks),
        false => visitor.lost(first, blocks),
    }
}

/// Neighbours that differ between two sides: the first block, how many, and their entries on the earlier and on the
/// later side, which stand for all of them.
pub(crate) type Difference = (u64, u64, Option<MapEntry>, Option<MapEntry>);

/// Calls `show`, in order, for all blocks of `range` whose place or checksum differs between the two sides. Subtrees
/// that both sides share are not read. What is still in the source of a migration is shown as the map has it, by ranges.
pub(crate) fn diff(
    earlier: &mut dyn SideOps,
    later: &mut dyn SideOps,
    links: (&Link, &Link),
    level: u32,
    base: u64,
    range: (u64, u64),
    show: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    let (from, to) = (range.0.max(base), range.1.min(base + entry_blocks(level + 1)));
    if from >= to || (links.0.is_hole() && links.1.is_hole()) {
        return Ok(());
    }
    if let (Some(a), Some(b)) = (links.0.entry(), links.1.entry())
        && !a.is_hole()
        && !b.is_hole()
        && a.crc == b.crc
        && earlier.place(a)? == later.place(b)?
    {
        return Ok(());
    }
    match (outside(links.0), outside(links.1)) {
        (None, y @ Some(_)) if links.0.is_hole() => return show((from, to - from, None, y)),
        (x @ Some(_), None) if links.1.is_hole() => return show((from, to - from, x, None)),
        _ => {}
    }
    let a = node_of(links.0, level, base, earlier.source())?;
    let b = node_of(links.1, level, base, later.source())?;
    if level == 0 {
        for block in from..to {
            let i = (block - base) as usize;
            let (x, y) = (leaf_entry(a.as_deref(), i), leaf_entry(b.as_deref(), i));
            let same = match (x, y) {
                (None, None) => true,
                (Some(x), Some(y)) => x.crc == y.crc && earlier.place(x)? == later.place(y)?,
                _ => false,
            };
            if !same {
                show((block, 1, x, y))?;
            }
        }
        return Ok(());
    }
    let step = entry_blocks(level);
    for i in (from - base) / step..=(to - 1 - base) / step {
        let children = (child(a.as_deref(), i as usize), child(b.as_deref(), i as usize));
        diff(earlier, later, children, level - 1, base + i * step, range, show)?;
    }
    Ok(())
}

/// The entry of a link below which everything is external.
fn outside(link: &Link) -> Option<MapEntry> {
    link.entry().filter(|entry| entry.is_external())
}

/// Shows the pages and blocks of `range` that the later side names and the earlier side does not name
/// at the same position, in order. A page of the earlier side that cannot be read counts as naming
/// nothing. Returns false where the visitor ended the visit.
pub(crate) fn visit_unshared(
    earlier: &mut dyn SideOps,
    later: &mut dyn SideOps,
    links: (&Link, &Link),
    level: u32,
    base: u64,
    range: (u64, u64),
    visitor: &mut dyn Visitor,
) -> Result<bool> {
    let (from, to) = (range.0.max(base), range.1.min(base + entry_blocks(level + 1)));
    if from >= to || links.1.is_hole() {
        return Ok(true);
    }
    if let Some(b) = links.1.entry() {
        if b.is_nowhere() {
            return visit_nowhere(b, from, to - from, visitor);
        }
        let same = links.0.entry().is_some_and(|a| is_shared(earlier, later, a, b));
        if same || !visitor.page(b, level, base)? {
            return Ok(true);
        }
    }
    let a = node_of(links.0, level, base, earlier.source()).unwrap_or_default();
    let b = match node_of(links.1, level, base, later.source()) {
        Ok(node) => node,
        Err(error) => return visitor.unreadable(error, from, to - from),
    };
    if level == 0 {
        for block in from..to {
            let i = (block - base) as usize;
            let (x, y) = (leaf_entry(a.as_deref(), i), leaf_entry(b.as_deref(), i));
            let Some(y) = y else { continue };
            let go_on = match y.is_nowhere() {
                true => visit_nowhere(y, block, 1, visitor)?,
                false if x.is_some_and(|x| is_shared(earlier, later, x, y)) => true,
                false => visitor.block(block, y)?,
            };
            if !go_on {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    let step = entry_blocks(level);
    for i in (from - base) / step..=(to - 1 - base) / step {
        let children = (child(a.as_deref(), i as usize), child(b.as_deref(), i as usize));
        let start = base + i * step;
        if !visit_unshared(earlier, later, children, level - 1, start, range, visitor)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// True where two entries are known to name the same bytes.
fn is_shared(earlier: &mut dyn SideOps, later: &mut dyn SideOps, a: MapEntry, b: MapEntry) -> bool {
    let named = !a.is_hole() && !a.is_nowhere() && a.crc == b.crc;
    named && matches!((earlier.place(a), later.place(b)), (Ok(a), Ok(b)) if a == b)
}

/// One side of a comparison.
pub(crate) trait SideOps {
    /// Reads its pages.
    fn source(&mut self) -> &mut dyn PageSource;
    /// Where an entry lies: author, segment and slot. Equal places hold the same bytes.
    fn place(&mut self, entry: MapEntry) -> Result<(u64, u64, u32)>;
}

/// An entry of a leaf, if it is no hole.
pub(crate) fn leaf_entry(node: Option<&Node>, i: usize) -> Option<MapEntry> {
    match node {
        Some(Node::Leaf(entries)) if !entries[i].is_hole() => Some(entries[i]),
        _ => None,
    }
}

/// The child below an entry of an inner node.
pub(crate) fn child(node: Option<&Node>, i: usize) -> &Link {
    match node {
        Some(Node::Inner(links)) => &links[i],
        _ => &Link::Hole,
    }
}

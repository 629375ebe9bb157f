//! Pages kept in memory. They count the slots and units that maps name.

use std::collections::{BTreeMap, BTreeSet};

use marcot_format::page::{Page, page_units};
use marcot_format::{BlockAddress, MAP_FANOUT, MapEntry, MapUnit, SegmentIndex};

use crate::error::{Error, ErrorKind, Result, fail};
use crate::map::{Map, Node, PageSink, PageSource, SideOps, TOP_LEVEL, Visitor, visit};

/// Table indices of the segment with the blocks and of the segment with the pages.
pub const BLOCKS_SEGMENT: SegmentIndex = SegmentIndex(1);
pub const PAGES_SEGMENT: SegmentIndex = SegmentIndex(2);
const AUTHOR: u64 = 77;

#[derive(Default, Clone)]
pub struct Pages {
    pages: BTreeMap<u64, Page>,
    /// Slots or units that are named, by address.
    held: BTreeMap<u64, i64>,
    next_unit: u32,
    pub loads: u64,
    pub writes: u64,
    pub touched: Vec<u64>,
    /// Addresses of pages that cannot be read.
    pub damaged: BTreeSet<u64>,
    /// Damaged pages are given up.
    pub gives_up: bool,
    /// Every release fails.
    pub refuses: bool,
}

impl Pages {
    pub fn hold(&mut self, entry: MapEntry, slots: u32) {
        *self.held.entry({ entry.address }.0).or_default() += i64::from(slots);
    }

    pub fn held(&self) -> BTreeMap<u64, i64> {
        self.held.clone().into_iter().filter(|(_, slots)| *slots != 0).collect()
    }

    /// Units of a page, which must be the one of that level and base.
    pub fn units_of(&self, entry: MapEntry, level: u32, base: u64) -> u32 {
        let page = &self.pages[&{ entry.address }.0];
        assert_eq!((u32::from(page.level), page.base), (level, base));
        page_units(page.entries.iter().filter(|entry| !entry.is_hole()).count())
    }
}

impl PageSource for Pages {
    fn load(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<Node> {
        let address = { entry.address }.0;
        if self.damaged.contains(&address) || entry.is_lost() {
            return fail(ErrorKind::Corrupt, "damaged for the test");
        }
        if entry.is_external() {
            return Ok(Node::external(level));
        }
        self.loads += 1;
        let page = &self.pages[&address];
        assert_eq!((u32::from(page.level), page.base), (level, base));
        Ok(Node::from_page(page.clone()))
    }

    fn touch(&mut self, address: BlockAddress) -> Result<()> {
        if !address.is_external() {
            self.touched.push(address.0);
        }
        Ok(())
    }

    fn give_up(&mut self, _error: &Error, _level: u32, _base: u64) -> bool {
        self.gives_up
    }

    fn release(&mut self, address: BlockAddress, slots: u32) -> Result<()> {
        if self.refuses {
            return fail(ErrorKind::Io, "refused for the test");
        }
        if !address.is_external() {
            *self.held.entry(address.0).or_default() -= i64::from(slots);
        }
        Ok(())
    }
}

impl PageSink for Pages {
    fn write(
        &mut self,
        level: u32,
        base: u64,
        entries: &[MapEntry; MAP_FANOUT],
    ) -> Result<MapEntry> {
        let units = page_units(entries.iter().filter(|entry| !entry.is_hole()).count());
        self.next_unit += units;
        self.writes += 1;
        let entry = MapEntry {
            address: BlockAddress::of_page(PAGES_SEGMENT, MapUnit(self.next_unit)),
            crc: self.next_unit.wrapping_mul(0x9E37_79B9),
        };
        let entries = Box::new(*entries);
        let page = Page { level: level as u8, author: AUTHOR, base, entries };
        self.pages.insert({ entry.address }.0, page);
        self.hold(entry, units);
        Ok(entry)
    }
}

impl SideOps for Pages {
    fn source(&mut self) -> &mut dyn PageSource {
        self
    }

    fn place(&mut self, entry: MapEntry) -> Result<(u64, u64, u32)> {
        let address = entry.address;
        Ok((AUTHOR, u64::from(address.index().0), address.unit().0))
    }
}

/// What a visit has shown.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Seen {
    pub pages: Vec<(MapEntry, u32, u64)>,
    pub blocks: BTreeMap<u64, MapEntry>,
    pub lost: Vec<(u64, u64)>,
    pub unreadable: Vec<(u64, u64)>,
    /// Ends the visit after this many blocks, lost ranges and unreadable ranges.
    pub at_most: Option<usize>,
    /// Skips what is below pages of this level.
    pub leave_out: Option<u32>,
}

impl Seen {
    fn go_on(&self) -> bool {
        let count = self.blocks.len() + self.lost.len() + self.unreadable.len();
        self.at_most.is_none_or(|most| count < most)
    }
}

impl Visitor for Seen {
    fn page(&mut self, entry: MapEntry, level: u32, base: u64) -> Result<bool> {
        self.pages.push((entry, level, base));
        Ok(self.leave_out != Some(level))
    }

    fn lost(&mut self, first: u64, blocks: u64) -> Result<bool> {
        self.lost.push((first, blocks));
        Ok(self.go_on())
    }

    fn unreadable(&mut self, _error: Error, first: u64, blocks: u64) -> Result<bool> {
        self.unreadable.push((first, blocks));
        Ok(self.go_on())
    }

    fn block(&mut self, block: u64, entry: MapEntry) -> Result<bool> {
        let before = self.blocks.last_key_value().map(|(last, _)| *last);
        assert!(before.is_none_or(|before| before < block), "{block} after {before:?}");
        self.blocks.insert(block, entry);
        Ok(self.go_on())
    }
}

/// Everything that a map names in a range.
pub fn everything(map: &Map, range: (u64, u64), pages: &mut Pages) -> Seen {
    let mut seen = Seen::default();
    assert!(visit(map.top(), TOP_LEVEL, 0, range, pages, &mut seen).unwrap());
    seen
}

//! A checkpoint of a long log where there is little room.
//!
//! A checkpoint frees nothing before it has written all pages that the log has changed. A log of writes all
//! over a large image changes more pages than fit on a full disk, and more than any reserve can hold. Such a
//! log is therefore brought into the durable root a few leaves at a time. These leaves get the content that
//! the whole log gives them. A head is published that names them and keeps the log. Segments that no root
//! names any more are removed, which makes room for the next leaves.
//!
//! Invariants:
//! - Each of these heads names a whole state. A log says what blocks contain, and not how they change.
//!   Replayed over a root in which some blocks are up to date already, it gives the same result.
//! - Such a head has the epoch and the log position of the head before it. Segments of the log stay as long
//!   as a head keeps the log, also segments of which the root names nothing.
//! - Where this fails, memory holds what the durable head and its log say, as after opening.

use std::collections::HashMap;

use marcot_format::segment::SegmentKind;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, MAP_FANOUT, MapEntry};

use super::overlay::Overlay;
use super::replay::DamagedLog;
use super::state::State;
use super::{Image, empty_root};
use crate::error::{ErrorKind, Result};
use crate::map::position;

/// Room that one leaf takes between two heads, in bytes: the leaf itself, and its share of the pages above
/// it, of the table and of the head.
const LEAF_ROOM_BYTES: u64 = 16 << 10;
/// How much of the reserve the leaves between two heads may take, as right shifts: all of it, a quarter, a
/// sixteenth. Less than the whole reserve may have been kept.
const RESERVE_SHIFTS: [u32; 3] = [0, 2, 4];
/// Memory of the overlay that says what the log has written, in bytes. It covers some of the leaves at a
/// time.
const OVERLAY_BYTES: u64 = 4 << 20;
const LEAF_BLOCKS: u64 = MAP_FANOUT as u64;
const BLOCKS_MAX: u64 = IMAGE_BYTES_MAX / BLOCK_BYTES;

impl Image {
    /// True where a log follows the durable head and nothing is appended to it any more. Memory holds its
    /// content.
    pub(super) fn has_ended_log(&self) -> bool {
        !self.journal.is_open()
            && self.head.log.is_some_and(|log| log.group < self.journal.group_next())
    }

    /// Brings an ended log into the durable root, part by part. The checkpoint that then leaves the log
    /// behind has to write only a head and some pages of the table.
    ///
    /// # Errors
    /// `NoSpace` where even a few leaves find no room.
    pub(super) fn store_log_in_parts(&mut self) -> Result<()> {
        self.check_owner()?;
        self.settle()?;
        self.head.check_not_fenced()?;
        tracing::info!(image = %self.identity.label, "the log is brought into the map in parts, because there is little room");
        let (size_bytes, reserve_bytes) = (self.state.size_bytes, self.limits().reserve_bytes);
        let mut stored = Ok(());
        for shift in RESERVE_SHIFTS {
            let leaves = ((reserve_bytes >> shift) / LEAF_ROOM_BYTES).max(1);
            self.head.keeps_log = true;
            stored = self.back_to_durable_root().and_then(|()| self.store_leaves(leaves));
            self.head.keeps_log = false;
            if !stored.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace) {
                break;
            }
        }
        if stored.is_err()
            && let Err(error) = self.replay_again()
        {
            tracing::error!(image = %self.identity.label, error = %error.sentence(), "the log cannot be read again");
            self.poisoned = true;
        }
        self.state.size_bytes = size_bytes;
        self.state.changed = true;
        stored.map_err(|error| match error.kind() {
            ErrorKind::NoSpace => {
                let mib = self.state.map.resident_bytes().div_ceil(1 << 20);
                error.context(format!(
                    "{} needs about {mib} MiB of room for the map of what was written last; free that much, or \
                     remove a snapshot or an image",
                    self.identity.label
                ))
            }
            _ => error,
        })
    }

    /// Undoes what opening, and checkpoints that found no room, have changed in memory and on the medium.
    fn back_to_durable_root(&mut self) -> Result<()> {
        let root = self.head.root.clone().unwrap_or_else(empty_root);
        if let Some(prepared) = self.state.pages.take_prepared_map() {
            // It is removed below.
            prepared.wait();
        }
        self.state = State::open(&self.root_of(None), &root)?;
        // Segments of pages that no head names. Data segments stay: they may belong to the log, whatever
        // their numbers are.
        let marks = self.head.marks.unwrap_or_default();
        self.remove_unnamed(|name| {
            name.kind != SegmentKind::Data && name.sequence >= marks.of(name.kind)
        })
        .map(drop)
    }

    fn replay_again(&mut self) -> Result<()> {
        self.back_to_durable_root()?;
        self.journal.found_groups(self.head.log.unwrap_or_default().group);
        self.replay(DamagedLog::Refuse, !self.is_shipped())
    }

    /// Brings all leaves up to date, at most `leaves_max` of them between two heads.
    fn store_leaves(&mut self, leaves_max: u64) -> Result<()> {
        let mut overlay = Overlay::new(OVERLAY_BYTES);
        let mut used = HashMap::new();
        let (mut at, mut leaf_before, mut leaves) = (0, None, 0);
        while at < BLOCKS_MAX {
            overlay.restart(at);
            used = self.read_log_again(&mut overlay)?;
            let end = overlay.window_end();
            while let Some((from, to, written)) = overlay.first_run(at, end) {
                let leaf = from / LEAF_BLOCKS;
                if leaf_before.replace(leaf) != Some(leaf) {
                    if leaves == leaves_max {
                        self.publish_leaves()?;
                        leaves = 0;
                    }
                    leaves += 1;
                }
                // A run of holes is handled at once: it may be as long as the image.
                at = if written { to.min((leaf + 1) * LEAF_BLOCKS) } else { to };
                self.bring_up_to_date(&overlay, from, at, written)?;
            }
            at = end;
        }
        self.publish_leaves()?;
        for (index, slots) in used {
            self.state.table.count(index, 0, slots, self.identity.pool.files())?;
        }
        Ok(())
    }

    /// Gives blocks the content that they have after the log. Blocks that are written must lie under one
    /// leaf.
    fn bring_up_to_date(
        &mut self,
        overlay: &Overlay,
        from: u64,
        to: u64,
        written: bool,
    ) -> Result<()> {
        if !written {
            let (map, mut source) = self.state.lenient_parts();
            return map.clear(from, to, &mut source);
        }
        let mut entries = vec![MapEntry::HOLE; (to - from) as usize];
        overlay.patch(from, &mut entries);
        let (map, mut source) = self.state.lenient_parts();
        let at = position(from, 0);
        // An earlier attempt may have stored this leaf. Then its page is not written again.
        if let Ok(Some(leaf)) = map.leaf(from, &mut source)
            && leaf[at..at + entries.len()] == entries[..]
        {
            return Ok(());
        }
        // A run is a part of one record, and so of one segment.
        let Some(first) = entries.first() else { return Ok(()) };
        let index = { first.address }.index();
        self.state.table.count(index, entries.len() as i64, 0, self.identity.pool.files())?;
        let (map, mut source) = self.state.lenient_parts();
        map.set_run(from, &entries, &mut source)
    }

    /// Publishes a head that names the leaves which are up to date, and keeps the log.
    fn publish_leaves(&mut self) -> Result<()> {
        match self.checkpoint_with(|_| {}) {
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                self.reclaim_by_durable_head()?;
                self.checkpoint_with(|_| {})?;
            }
            published => published?,
        }
        self.evict(self.limits().map_memory_bytes_soft());
        Ok(())
    }
}

//! What differs between the states of an image, and how much space each of them uses.

use std::sync::Arc;

use marcot_format::record::ParentRecord;
use marcot_format::{BLOCK_BYTES, IMAGE_BYTES_MAX, SnapId};

use super::results::{DiffExtent, UsageRow};
use super::{Image, OwnedRoot, RootOf, Source, empty_root};
use crate::error::{ErrorKind, Result, fail};
use crate::map::{self, Difference, TOP_LEVEL};

/// Largest number of extents of one answer, so that its memory does not depend on the image. 512 MiB
/// of an image never have more.
const DIFF_EXTENTS_MAX: usize = 1 << 17;

impl Image {
    /// A durable root that equals the root in memory.
    pub(super) fn current_root(&mut self) -> Result<OwnedRoot> {
        if self.state.changed && self.is_owner() {
            self.checkpoint()?;
        }
        let root = self.head.root.clone().unwrap_or_else(empty_root);
        Ok(OwnedRoot { of: self.root_of(None), root })
    }

    /// A root without content.
    fn no_root(&self) -> OwnedRoot {
        OwnedRoot { of: self.root_of(None), root: empty_root() }
    }

    fn state(&mut self, snap: Option<&str>) -> Result<OwnedRoot> {
        let Some(name) = snap else { return self.current_root() };
        let snapshot = self.snap_record(name)?;
        let root = snapshot.root.clone().unwrap_or_else(empty_root);
        Ok(OwnedRoot { of: self.root_of(Some(snapshot.id)), root })
    }

    pub(super) fn compare_states(
        &mut self,
        from_snap: Option<&str>,
        to_snap: Option<&str>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<DiffExtent>> {
        let earlier = match from_snap {
            Some(name) => self.state(Some(name))?,
            None => self.no_root(),
        };
        let later = self.state(to_snap)?;
        let end =
            offset.saturating_add(length).min(later.root.size_bytes.max(earlier.root.size_bytes));
        let range = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let mut extents: Vec<DiffExtent> = Vec::new();
        self.compare(&earlier, &later, range, &mut |(first, blocks, _, after)| {
            let start = (first * BLOCK_BYTES).max(offset);
            let stop = ((first + blocks) * BLOCK_BYTES).min(end);
            let data = after.is_some();
            let full = extents.len() == DIFF_EXTENTS_MAX;
            match extents.last_mut() {
                Some(last) if last.data == data && last.offset + last.length == start => {
                    last.length += stop - start;
                }
                _ if full => {
                    return fail(
                        ErrorKind::Invalid,
                        "too many differences; ask for a shorter range",
                    );
                }
                _ => extents.push(DiffExtent { offset: start, length: stop - start, data }),
            }
            Ok(())
        })?;
        Ok(extents)
    }

    /// Shows what differs between two states. They may be those of two images.
    pub(super) fn compare(
        &self,
        earlier: &OwnedRoot,
        later: &OwnedRoot,
        range: (u64, u64),
        show: &mut dyn FnMut(Difference) -> Result<()>,
    ) -> Result<()> {
        let (map_a, mut table_a) = earlier.of.open(&earlier.root)?;
        let (map_b, mut table_b) = later.of.open(&later.root)?;
        let mut a = Source::new(&mut table_a, Arc::clone(self.identity.pool.files()));
        let mut b = Source::new(&mut table_b, Arc::clone(self.identity.pool.files()));
        let links = (map_a.top(), map_b.top());
        map::diff(&mut a, &mut b, links, TOP_LEVEL, 0, range, show)
    }

    /// Provisioned and used bytes of every snapshot and of the head. A state uses the blocks that
    /// the state before it does not have at the same place; the first is compared with the parent.
    pub(super) fn usage_of_states(&mut self) -> Result<Vec<UsageRow>> {
        let head = self.current_root()?;
        let parent = self.head.snapshots.first().map_or(&self.head.parent, |s| &s.parent);
        let mut before = self.parent_root(parent.as_ref());
        let mut states: Vec<(Option<String>, u64, OwnedRoot)> = Vec::new();
        for snapshot in self.head.snapshots.iter().filter(|s| s.is_of_users()) {
            let root = snapshot.root.clone().unwrap_or_else(empty_root);
            let root = OwnedRoot { of: self.root_of(Some(snapshot.id)), root };
            states.push((Some(snapshot.name.clone()), snapshot.id, root));
        }
        states.push((None, 0, head));
        let mut rows = Vec::new();
        for (snapshot, snapshot_id, root) in states {
            let mut used_blocks = 0;
            let all = (0, IMAGE_BYTES_MAX / BLOCK_BYTES);
            self.compare(&before, &root, all, &mut |(_, blocks, _, after)| {
                used_blocks += if after.is_some() { blocks } else { 0 };
                Ok(())
            })?;
            rows.push(UsageRow {
                snapshot,
                snapshot_id: SnapId(snapshot_id),
                provisioned_bytes: root.root.size_bytes,
                used_bytes: (used_blocks * BLOCK_BYTES).min(root.root.size_bytes),
            });
            before = root;
        }
        Ok(rows)
    }

    /// The content that the image began with; none where the parent cannot be read.
    fn parent_root(&self, parent: Option<&ParentRecord>) -> OwnedRoot {
        let root = parent.and_then(|parent| {
            let root = self.identity.pool.snapshot_root(parent).ok()?;
            Some(OwnedRoot { of: RootOf::parent(&self.identity.pool, parent)?, root })
        });
        root.unwrap_or_else(|| self.no_root())
    }
}

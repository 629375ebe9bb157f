//! Files and directories: what processes see, what the medium has, and the changes in between.
//!
//! - A **file** keeps every write since the last completed sync. When the power goes, any set of their 512-byte
//!   sectors may be stored, and any of the lengths that the file had.
//! - A **directory** keeps its operations since the last completed sync. When the power goes, either the first
//!   few of them have happened, as on journaling file systems; or the first few of those on each name,
//!   independently of other names, which the contract of [`marcot_store::Disk`] allows too. A rename is one
//!   operation on two names. Directories are independent of each other and of the files in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::content::Content;
use crate::random::Rng;

/// The unit in which writes tear, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// Number of a file or directory.
pub(super) type NodeId = u64;

/// A change of a file that is not durable yet.
#[derive(Clone)]
pub(super) enum Pending {
    Write { offset: u64, data: Arc<[u8]> },
    Length(u64),
    Punch { offset: u64, length: u64 },
}

/// A file.
#[derive(Clone, Default)]
pub(super) struct FileNode {
    pub mode: u32,
    /// What processes see.
    pub live: Content,
    /// What the medium has.
    pub durable: Content,
    /// Changes since the last completed sync, oldest first.
    pub pending: Vec<Pending>,
    /// The cache holds bytes that the medium will never get.
    pub lost: bool,
    /// Number of failed syncs. Each handle gets one error for those since it was opened.
    pub failed_syncs: u64,
}

/// A change of a directory that is not durable yet.
#[derive(Clone)]
pub(super) enum Entry {
    Link(String, NodeId),
    Unlink(String),
    Rename(String, String, NodeId),
}

/// A directory.
#[derive(Clone, Default)]
pub(super) struct DirectoryNode {
    pub mode: u32,
    pub live: BTreeMap<String, NodeId>,
    pub durable: BTreeMap<String, NodeId>,
    pub pending: Vec<Entry>,
}

#[derive(Clone)]
pub(super) enum Node {
    File(FileNode),
    Directory(DirectoryNode),
}

fn apply(content: &mut Content, pending: &Pending) {
    match pending {
        Pending::Write { offset, data } => content.write(*offset, data),
        Pending::Length(length) => content.set_length(*length),
        Pending::Punch { offset, length } => content.zero(*offset, *length),
    }
}

/// Applies the sectors of a write for which `keep` is true.
fn apply_torn(content: &mut Content, pending: &Pending, keep: &mut dyn FnMut() -> bool) {
    let Pending::Write { offset, data } = pending else {
        if keep() {
            apply(content, pending);
        }
        return;
    };
    let end = offset + data.len() as u64;
    let mut at = *offset;
    while at < end {
        let stop = end.min((at / SECTOR_BYTES + 1) * SECTOR_BYTES);
        if keep() {
            content.write(at, &data[(at - offset) as usize..(stop - offset) as usize]);
        }
        at = stop;
    }
}

impl FileNode {
    pub(super) fn change(&mut self, pending: Pending) {
        apply(&mut self.live, &pending);
        self.pending.push(pending);
    }

    /// Completes a sync.
    pub(super) fn sync(&mut self) {
        if self.lost {
            for pending in std::mem::take(&mut self.pending) {
                apply(&mut self.durable, &pending);
            }
        } else {
            self.pending.clear();
            self.durable = self.live.clone();
        }
    }

    /// Fails a sync: some sectors were stored. The rest counts as clean, and is lost once the cache drops
    /// it.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        self.durable = self.after_power_loss(rng);
        self.pending.clear();
        self.lost = true;
        self.failed_syncs += 1;
        if rng.one_in(4) {
            self.drop_cache();
        }
    }

    /// Drops clean pages.
    pub(super) fn drop_cache(&mut self) {
        if self.lost {
            self.live = self.durable.clone();
            for pending in &self.pending {
                apply(&mut self.live, pending);
            }
            self.lost = false;
        }
    }

    fn after_power_loss(&self, rng: &mut Rng) -> Content {
        let mut content = self.durable.clone();
        if self.pending.is_empty() {
            return content;
        }
        match rng.below(4) {
            0 => {}
            1 => self.pending.iter().for_each(|p| apply(&mut content, p)),
            2 => {
                let whole = rng.below(self.pending.len() as u64) as usize;
                self.pending[..whole].iter().for_each(|p| apply(&mut content, p));
                let mut sectors = rng.below(64);
                apply_torn(&mut content, &self.pending[whole], &mut || {
                    sectors = sectors.saturating_sub(1);
                    sectors > 0
                });
            }
            _ => {
                let odds = 2 + rng.below(14);
                let mostly = rng.one_in(2);
                for pending in &self.pending {
                    apply_torn(&mut content, pending, &mut || rng.one_in(odds) != mostly);
                }
            }
        }
        // The length is stored separately: it may be old, or new where the data was not stored.
        match rng.below(4) {
            0 => content.set_length(self.durable.length()),
            1 => content.set_length(self.live.length().max(content.length())),
            _ => {}
        }
        content
    }

    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        self.durable = self.after_power_loss(rng);
        self.live = self.durable.clone();
        self.pending.clear();
        self.lost = false;
    }
}

fn apply_entry(names: &mut BTreeMap<String, NodeId>, entry: &Entry) {
    match entry {
        Entry::Link(name, node) => drop(names.insert(name.clone(), *node)),
        Entry::Unlink(name) => drop(names.remove(name)),
        Entry::Rename(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
    }
}

impl DirectoryNode {
    pub(super) fn change(&mut self, entry: Entry) {
        apply_entry(&mut self.live, &entry);
        self.pending.push(entry);
    }

    pub(super) fn sync(&mut self) {
        self.pending.clear();
        self.durable = self.live.clone();
    }

    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        let pending = std::mem::take(&mut self.pending);
        let journal = rng.one_in(2);
        let all = pending.len() as u64;
        let cut = match rng.below(3) {
            0 => 0,
            1 => all,
            _ => rng.below(all + 1),
        };
        if journal {
            let kept = &pending[..cut as usize];
            kept.iter().for_each(|e| apply_entry(&mut self.durable, e));
        } else {
            self.keep_by_name(&pending, rng);
        }
        self.live = self.durable.clone();
    }

    /// Keeps the first few operations of each name. Names that a rename connects are cut at the same moment.
    fn keep_by_name(&mut self, pending: &[Entry], rng: &mut Rng) {
        let mut family: BTreeMap<&str, usize> = BTreeMap::new();
        for (number, entry) in pending.iter().enumerate() {
            match entry {
                Entry::Link(name, _) | Entry::Unlink(name) => {
                    family.entry(name).or_insert(number);
                }
                Entry::Rename(from, to, _) => {
                    let into = *family.entry(from).or_insert(number);
                    let other = *family.entry(to).or_insert(into);
                    family.values_mut().filter(|f| **f == other).for_each(|f| *f = into);
                }
            }
        }
        let mut limits: BTreeMap<usize, u64> = BTreeMap::new();
        for entry in pending {
            let (Entry::Link(name, _) | Entry::Unlink(name) | Entry::Rename(name, ..)) = entry;
            let family = family[name.as_str()];
            let left = limits.entry(family).or_insert_with(|| match rng.below(3) {
                0 => 0,
                1 => u64::MAX,
                _ => rng.below(4),
            });
            if *left > 0 {
                *left -= 1;
                apply_entry(&mut self.durable, entry);
            }
        }
    }
}

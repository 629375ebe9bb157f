//! Giving space back after a root is gone: that of a removed snapshot, or of a head that was rolled back.
//!
//! Only segments that no clone can name are looked at here; see `gc` for the others.

use std::collections::HashSet;
use std::sync::Arc;

use marcot_format::record::SegmentMarks;

use super::checkpoint_job::postponed_for_readers;
use super::{Image, OwnedRoot, RootOf, Source};
use crate::catalog::Identity;
use crate::error::{Error, ErrorKind, Result};
use crate::gc;
use crate::segment::SegmentName;

impl Image {
    /// Removes segments that none of this image's roots names, and punches the dead slots out of
    /// those that are named in part. Returns the bytes given back.
    pub(crate) fn reclaim_unnamed(&mut self) -> Result<u64> {
        if self.state.changed {
            // Where there is no room for the checkpoint, the space that it would free is found later.
            self.checkpoint_for_room(|_| {}).or_else(|error| match error.kind() {
                ErrorKind::NoSpace => {
                    tracing::warn!(image = %self.identity.label, error = %error.sentence(), "some space comes back later");
                    Ok(())
                }
                _ => Err(error),
            })?;
        }
        let freed = self.reclaim_by_durable_head();
        self.identity.pool.keep_reserve();
        freed
    }

    /// The same, without regard to what is in memory.
    pub(super) fn reclaim_by_durable_head(&mut self) -> Result<u64> {
        if self.postponed_for_readers() {
            return Ok(0);
        }
        let shared = self.head.shared_below.unwrap_or_default();
        // The limits are those of the durable head: a checkpoint that found no room may have left pages in
        // memory that name segments which no durable root names yet.
        let open = self.head.open_from.or(self.head.marks).unwrap_or_default();
        let log = self.head.log.unwrap_or_default().sequence;
        let limit = SegmentMarks { data: open.data.min(log), ..open };
        let mut candidates = Vec::new();
        for name in
            self.identity.pool.files().list(self.identity.pool.id(), self.identity.own_set())?
        {
            if name.sequence >= shared.of(name.kind) && name.sequence < limit.of(name.kind) {
                candidates.push(name);
            }
        }
        gc::reclaim(&self.identity.pool, &self.own_roots(), &candidates, &mut |_, _| {})
    }

    /// The log has begun: removes what the previous owner may have left behind, once; in a bucket by a worker.
    pub(super) fn remove_strays_once(&mut self) {
        if !std::mem::take(&mut self.unclean) {
            return;
        }
        if self.is_shipped() {
            self.remove_strays_behind();
        } else if let Err(error) = self.remove_strays() {
            tell_left_behind(&self.identity, &error);
        }
    }

    /// Removes private segments that nothing names: the previous owner has published a head without them and
    /// ended before it removed them. The head must be durable, and equal to what is in memory.
    fn remove_strays(&mut self) -> Result<()> {
        if self.postponed_for_readers() {
            return Ok(());
        }
        let files = self.identity.pool.files();
        let mut named: HashSet<SegmentName> =
            self.state.table.page_segments()?.into_iter().collect();
        self.state.table.for_each(files, |_, _, name| {
            named.insert(name);
            Ok(())
        })?;
        for name in files.list(self.identity.pool.id(), self.identity.own_set())? {
            if name.sequence < self.series.marks().of(name.kind)
                && self.head.is_private(&name)
                && !named.contains(&name)
            {
                tracing::info!(image = %self.identity.label, segment = %name, "removed a segment that was left behind");
                files.remove(name)?;
            }
        }
        Ok(())
    }

    /// As [`Self::remove_strays`], on a worker: in a bucket, that takes requests.
    ///
    /// It looks at segments with numbers below those where the log of the durable head begins and where its open
    /// segments begin. What this owner creates from now on has higher numbers. What it has created before, for the
    /// checkpoint that began the log, stays because the root names it.
    fn remove_strays_behind(&mut self) {
        let open = self.head.open_from.or(self.head.marks).unwrap_or_default();
        let log = self.head.log.unwrap_or_default().sequence;
        let mut roots = self.own_roots();
        roots.retain(|root| root.of.snap.is_none());
        let strays = Strays {
            image: Arc::clone(&self.identity),
            roots,
            from: self.head.private_marks(),
            below: SegmentMarks { data: open.data.min(log), ..open },
        };
        let workers = Arc::clone(&self.identity.pool.files().world().workers);
        let cleaning = workers.start(Box::new(move || strays.remove_or_tell()));
        if let Some(before) = self.cleaning.replace(cleaning) {
            before.wait();
        }
    }

    /// Gives up damaged map pages and returns how many there were. Blocks that they named are lost, and can
    /// be written again. They could not be read before either.
    fn give_up_damaged(&mut self) -> Result<u64> {
        let root = self.head.root.clone().unwrap_or_default();
        let (map, mut names) = self.root_of(None).open(&root)?;
        let mut source = Source::new(&mut names, Arc::clone(self.identity.pool.files()));
        let damaged = crate::root::damaged_pages(map.top(), &mut source);
        self.state.changed |= !damaged.is_empty();
        let (map, mut source) = self.state.lenient_parts();
        for (level, base) in &damaged {
            map.give_up(*level, *base, &mut source)?;
        }
        Ok(damaged.len() as u64)
    }

    /// Corrects the counts of the segment table by what the map names, and gives up damaged pages; returns
    /// how many of those there were.
    pub(crate) fn recount(&mut self) -> Result<u64> {
        self.begin_writing()?;
        self.checkpoint()?;
        let given_up = self.give_up_damaged()?;
        self.checkpoint()?;
        let root = self.head.root.clone().unwrap_or_default();
        let (map, mut names) = self.root_of(None).open(&root)?;
        let mut source = Source::new(&mut names, Arc::clone(self.identity.pool.files()));
        let (live, mapped) = crate::root::count_all(map.top(), &mut source)?;
        let files = self.identity.pool.files();
        let mut wrong = Vec::new();
        self.state.table.for_each(files, |index, entry, _| {
            let found = live.get(&index).copied().unwrap_or(0);
            if found != u64::from(entry.live) {
                wrong.push((index, found as i64 - i64::from(entry.live)));
            }
            Ok(())
        })?;
        for (index, difference) in wrong {
            self.state.table.count(index, difference, 0, files)?;
        }
        self.state.map.set_mapped_blocks(mapped);
        self.state.changed = true;
        Ok(given_up)
    }

    /// Durable roots of the image: its head's and its snapshots'.
    pub(crate) fn own_roots(&self) -> Vec<OwnedRoot> {
        RootOf::all(&self.identity.pool, &self.head)
    }
}

fn tell_left_behind(image: &Identity, error: &Error) {
    tracing::warn!(image = %image.label, error = %error.sentence(), "segments may be left behind; 'gc' removes them");
}

/// Where to look for segments of an image that an owner before has left behind.
struct Strays {
    image: Arc<Identity>,
    /// The durable root of the head, which names no others from these numbers on. Snapshots name lower ones only.
    roots: Vec<OwnedRoot>,
    from: SegmentMarks,
    below: SegmentMarks,
}

impl Strays {
    fn remove_or_tell(self) {
        let image = Arc::clone(&self.image);
        if let Err(error) = self.remove() {
            tell_left_behind(&image, &error);
        }
    }

    fn remove(self) -> Result<()> {
        let Self { image, roots, from, below } = self;
        if postponed_for_readers(&image) {
            return Ok(());
        }
        let mut candidates = image.pool.files().list(image.pool.id(), image.own_set())?;
        candidates.retain(|name| {
            name.sequence >= from.of(name.kind) && name.sequence < below.of(name.kind)
        });
        if !candidates.is_empty() {
            gc::reclaim(&image.pool, &roots, &candidates, &mut |_, _| {})?;
        }
        Ok(())
    }
}

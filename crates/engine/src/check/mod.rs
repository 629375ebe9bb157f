//! Verifying a pool: every head, page, count and block.
//!
//! Heads, tables and maps are read as they are on disk. So a pool can be checked while images are in use.
//! What an owner has not made durable yet is not checked.
//!
//! Time: a page of a map or table is checked once for all roots of an image that share it, and so are the
//! blocks below a leaf. The time for an image with many snapshots grows with the pages in which they
//! differ, not with their number.
//!
//! Memory: counts for each segment that one image names; parts of two of its segment tables; for the
//! whole pool, one bit for each unit of the map segments, which is 1/4096 of what maps take on the medium;
//! and the findings.

mod blocks;
mod groups;
pub(crate) mod roots;
mod seen;

use std::collections::{HashMap, HashSet};

use marcot_format::record::{HeadRecord, MigrationRecord};
use marcot_format::table::TABLE_FANOUT;
use marcot_format::{ImageId, SegmentIndex, SnapId};

use crate::catalog::naming::NamedImages;
use crate::catalog::strangers::Kind;
use crate::catalog::{GroupSnapshotId, Pool, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{DamagedLog, Image};
use crate::operations::begun::{Begun, BegunImage};
use crate::root::{AncestorPlaces, RootOf};
use crate::segment::SegmentName;
use crate::table::Place;
use blocks::DamagedBlock;
use seen::{PageKey, PageSet};

/// How often an image is checked at most, where its owner changes it meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// Options of a check.
#[derive(Debug, Clone, Default)]
pub struct CheckOptions {
    /// Repair what can be repaired: wrong counts, stale records, removals that were interrupted.
    /// Damaged map pages are given up, so that the blocks below them can be written again. A damaged
    /// log ends before the damage.
    pub repair: bool,
    /// Do not read the blocks of data.
    pub skip_data: bool,
    /// Read data from the medium, not from the page cache.
    pub scrub: bool,
}

/// Something that is wrong, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The image that it concerns; empty where it concerns the pool.
    pub image: String,
    /// What is wrong, and what that means.
    pub message: String,
    /// True where it was repaired.
    pub repaired: bool,
    /// True where data is lost or in danger; false for litter and wrong counts.
    pub serious: bool,
    /// Why something could not be checked; see [`ErrorKind::is_obstacle`]. It may be intact.
    pub unseen: Option<ErrorKind>,
}

impl Finding {
    /// Something about the pool as a whole that was not set right.
    pub fn of_pool(message: impl Into<String>, serious: bool) -> Self {
        let (image, message) = (String::new(), message.into());
        Self { image, message, repaired: false, serious, unseen: None }
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// Images checked.
    pub images: u64,
    /// Snapshots checked.
    pub snapshots: u64,
    /// Map pages read. A page that several roots of an image share counts once.
    pub pages: u64,
    /// Blocks of data read and compared with their checksums.
    pub blocks: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A check under way.
struct Checker<'a> {
    pool: &'a Pool,
    options: &'a CheckOptions,
    report: CheckReport,
    /// The different lists of places that roots have. A [`PageKey`] refers to one by its number.
    lists: Vec<Vec<Place>>,
    /// Segments of the image whose files exist and whose headers were checked.
    present: HashSet<SegmentName>,
    /// Pages whose blocks were verified already.
    verified: PageSet,
    /// The verified leaves that name damaged blocks, with those blocks.
    damaged: HashMap<PageKey, Vec<DamagedBlock>>,
    /// The inner pages above those leaves.
    above_damage: HashSet<PageKey>,
    /// Images that have names.
    named: NamedImages,
    /// Snapshots of groups that exist, as far as images have parts of them.
    parts_known: HashSet<GroupSnapshotId>,
    /// Bytes of data in the pool, about.
    total_bytes: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Store {
    /// Verifies a pool. `progress` is called with the bytes of data that were read and the bytes in
    /// all. It may sleep, to limit the rate.
    ///
    /// # Errors
    /// Only where the pool cannot be checked at all. What is wrong with it is in the report.
    pub fn check(
        &self,
        pool: &Pool,
        options: &CheckOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CheckReport> {
        self.open_pools()?;
        // Another store or another user repairs its own pool.
        let repair = options.repair && !pool.kept_elsewhere() && !pool.read_only();
        let asked = options;
        let options = &CheckOptions { repair, ..asked.clone() };
        let mut checker = Checker {
            pool,
            options,
            report: CheckReport::default(),
            lists: Vec::new(),
            present: HashSet::new(),
            verified: PageSet::default(),
            damaged: HashMap::new(),
            above_damage: HashSet::new(),
            named: NamedImages::default(),
            parts_known: HashSet::new(),
            // A directory that cannot be listed is reported below, where it is needed.
            total_bytes: pool.data_bytes().unwrap_or_default(),
            progress,
        };
        for image in pool.image_ids()? {
            checker.image(image);
        }
        checker.names()?;
        checker.groups();
        checker.strangers()?;
        checker.litter()?;
        if asked.repair && !repair && !checker.report.findings.is_empty() {
            let message = match pool.foreign() {
                Some(user) => format!("nothing was repaired: the pool belongs to user {user}"),
                None => "nothing was repaired: the pool belongs to another store".to_owned(),
            };
            checker.find("", false, format!("{message}; check and repair it there"));
        }
        Ok(checker.report)
    }
}

impl Checker<'_> {
    fn find(&mut self, image: &str, serious: bool, message: String) {
        let finding = Finding { image: image.to_owned(), ..Finding::of_pool(message, serious) };
        self.report.findings.push(finding);
    }

    /// Notes what an error means for `what`: an obstacle means that it could not be checked, every other
    /// error the damage described by `damage`.
    fn find_failed(&mut self, image: &str, what: &str, error: &Error, damage: String) {
        if error.kind().is_obstacle() {
            self.find_unseen(image, what, error.kind(), &error.sentence().to_string());
        } else {
            self.find(image, true, damage);
        }
    }

    fn find_unseen(&mut self, image: &str, what: &str, kind: ErrorKind, why: &str) {
        self.find(image, false, format!("{what} could not be looked at: {why}"));
        if let Some(last) = self.report.findings.last_mut() {
            last.unseen = Some(kind);
        }
    }

    fn repaired(&mut self) {
        if let Some(last) = self.report.findings.last_mut() {
            last.repaired = true;
        }
    }

    /// Checks an image by its present head. While its owner changes it, a segment that the head named
    /// may go before it is checked. So damage counts only where the head is still the same afterwards.
    fn image(&mut self, image: ImageId) {
        self.present.clear();
        for attempt in 1..=ATTEMPTS_MAX {
            let noted = self.report.findings.len();
            let CheckReport { images, snapshots, pages, .. } = self.report;
            let version = self.image_once(image);
            let found = &self.report.findings[noted..];
            let settled = found.iter().any(|f| f.repaired) || !found.iter().any(|f| f.serious);
            let moved = || self.pool.read_head(image).map(|h| Some(h.version)).unwrap_or_default();
            if settled || attempt == ATTEMPTS_MAX || version.is_none() || moved() == version {
                return;
            }
            self.report.findings.truncate(noted);
            let report = &mut self.report;
            (report.images, report.snapshots, report.pages) = (images, snapshots, pages);
            // Pages without damage are not read again: a page never changes.
            let above = std::mem::take(&mut self.above_damage);
            let damaged = std::mem::take(&mut self.damaged);
            above.iter().chain(damaged.keys()).for_each(|page| self.verified.remove(page));
        }
    }

    /// Checks an image once. Returns the version of the head that was checked, if there is one.
    fn image_once(&mut self, image: ImageId) -> Option<u64> {
        let head = match self.pool.read_head(image) {
            Ok(head) => head,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let message = format!(
                    "directory of image {image} holds no head: left by a creation or removal that was cut off; 'gc' removes it"
                );
                self.find("", false, message);
                return None;
            }
            Err(error) => {
                let message = format!(
                    "the head of image {image} cannot be used, so the image cannot be opened: {}",
                    error.sentence()
                );
                let label = self.pool.label_by_names(image);
                self.find_failed(&label, "the head, and so all of the image,", &error, message);
                return None;
            }
        };
        let version = Some(head.version);
        let label = self.pool.image_label(&head);
        if head.removing {
            let message = "its removal was cut off; 'gc' finishes it".to_owned();
            self.find(&label, false, message);
            return None;
        }
        match self.pool.begun(&head, &mut self.named) {
            Some(Begun::Here) => {
                let message = format!(
                    "image {image} ('{}') has no name yet: its creation was cut off; 'gc' removes it",
                    head.name
                );
                self.find(&head.name, false, message);
                return None;
            }
            Some(Begun::Elsewhere(begun)) => self.nameless(image, &head, Some(&begun)),
            None => self.check_named(&label, image, &head),
        }
        self.report.images += 1;
        self.parent(&label, &head);
        let of = RootOf { pool: self.pool.clone(), image, snap: None };
        let (mut above, mut before) = (AncestorPlaces::default(), None);
        let migration = head.migration.as_ref();
        let outside = migration.is_some_and(MigrationRecord::is_external);
        for snapshot in &head.snapshots {
            self.report.snapshots += 1;
            self.part(&label, image, snapshot);
            if let Some(root) = &snapshot.root {
                let of = RootOf { snap: Some(SnapId(snapshot.id)), ..of.clone() };
                let places = above.places(&of, root, snapshot.parent.as_ref(), migration);
                let label = format!("{label}@{}", snapshot.name);
                roots::check(self, &label, (&of, root), places, outside, &mut before);
            }
        }
        if let Some(root) = &head.root {
            let places = above.places(&of, root, head.parent.as_ref(), migration);
            let repairable = roots::check(self, &label, (&of, root), places, outside, &mut before);
            if let Some(from) = repairable.filter(|_| self.options.repair) {
                self.repair_root(&label, image, from);
            }
        }
        self.log_tail(&label, image);
        version
    }

    fn parent(&mut self, label: &str, head: &HeadRecord) {
        let Some(parent) = &head.parent else { return };
        if let Err(error) = self.pool.snapshot_root(parent) {
            let message = format!(
                "its parent {}/{}@{} is out of reach; blocks that it did not write itself may be lost: {error}",
                parent.pool_name,
                parent.image_name,
                parent.snap_name,
                error = error.sentence()
            );
            let what = format!("{}/{}@{}", parent.pool_name, parent.image_name, parent.snap_name);
            self.find_failed(label, &format!("its parent {what}"), &error, message);
        }
    }

    fn check_named(&mut self, label: &str, image: ImageId, head: &HeadRecord) {
        match self.pool.is_nameless(head, &mut self.named) {
            Ok(false) => {}
            Ok(true) => self.nameless(image, head, None),
            Err(error) => {
                let message = format!(
                    "whether image {image} has a name cannot be told: {}",
                    error.sentence()
                );
                self.find_failed(label, "names of images", &error, message);
            }
        }
    }

    /// Reports an image that has no name, and repairs it by giving it one.
    fn nameless(&mut self, image: ImageId, head: &HeadRecord, begun: Option<&BegunImage>) {
        let mut message =
            format!("image {image} ('{}') has no name, so no command can reach it", head.name);
        if let Some(BegunImage { host, .. }) = begun {
            message += &format!(
                ": host {host} has begun it, and may be at work; if it is gone, 'gc --take-back {image}' removes the image, and 'check --repair' names it"
            );
        }
        self.find(&head.name, begun.is_none(), message);
        if self.options.repair && self.pool.restore_name(image, head).is_ok() {
            self.repaired();
        }
    }

    /// Reports names whose images do not exist, and repairs that by removing them.
    fn names(&mut self) -> Result<()> {
        let mut namespaces = self.pool.namespaces()?;
        namespaces.insert(0, String::new());
        for namespace in namespaces {
            let images = match self.pool.images_in(&namespace) {
                Ok(images) => images,
                Err(error) => {
                    let message = format!("names of images cannot be read: {}", error.sentence());
                    self.find_failed("", "names of images", &error, message);
                    continue;
                }
            };
            for (name, image) in images {
                if self.pool.read_head(image).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
                    let message =
                        format!("the name '{name}' leads to image {image}, which does not exist");
                    self.find(&name, false, message);
                    if self.options.repair && self.pool.remove_name(&namespace, &name).is_ok() {
                        self.repaired();
                    }
                }
            }
        }
        Ok(())
    }

    /// Reports files of other users in the directory for markers that are no markers.
    fn strangers(&mut self) -> Result<()> {
        let found = self.pool.strangers(self.options.repair)?;
        for junk in &found.junk {
            let message = match &junk.what {
                Ok((user, Kind::File { bytes })) => {
                    format!("children/{} ({bytes} bytes) was left by user {user}", junk.name)
                }
                Ok((user, Kind::Directory)) => {
                    format!("children/{} (a directory) was left by user {user}", junk.name)
                }
                Err(error) => format!("children/{} cannot be looked at: {error}", junk.name),
            };
            let message = match (&junk.what, &junk.removed) {
                (Err(_), _) => message,
                (Ok(_), Ok(_)) => format!("{message} and is no marker of a clone; 'gc' removes it"),
                (Ok(_), Err(error)) => {
                    format!("{message} and is no marker of a clone; it cannot be removed: {error}")
                }
            };
            self.find("", false, message);
            if junk.removed == Ok(true) {
                self.repaired();
            }
        }
        if found.junk_more > 0 {
            let message =
                format!("{} more files in children/ are no markers of clones", found.junk_more);
            self.find("", false, message);
            if found.junk_more_left == 0 {
                self.repaired();
            }
        }
        if found.unfinished {
            let message = "there are more files in children/ than are looked at in one go; run 'gc', and this again";
            self.find("", false, message.to_owned());
        }
        for (user, markers) in &found.over_limit {
            let message = format!(
                "user {user} has left {markers} markers of clones in children/: more than a pool may; ask, and remove that user's files there"
            );
            self.find("", false, message);
        }
        Ok(())
    }

    /// Reports temporary files of interrupted commands.
    fn litter(&mut self) -> Result<()> {
        let removed = if self.options.repair { self.pool.sweep_litter()? } else { 0 };
        let left = self.pool.count_abandoned()?;
        for (files, removed) in [(removed, true), (left, false)] {
            if files > 0 {
                let message = format!(
                    "{files} temporary files of commands that were cut off; 'gc' removes them"
                );
                self.find("", false, message);
                if removed {
                    self.repaired();
                }
            }
        }
        Ok(())
    }

    /// Checks that the log behind the durable root can be replayed.
    fn log_tail(&mut self, label: &str, image: ImageId) {
        let Err(error) = Image::open_reader(self.pool, image, DamagedLog::Refuse) else { return };
        let message = format!("the image cannot be opened: {}", error.sentence());
        self.find_failed(label, "its log", &error, message);
        if self.options.repair && error.kind() == ErrorKind::Corrupt {
            // Opening for repair ends the log before the damage and starts a new one.
            let opened = self.pool.open_for_repair(image).and_then(|mut image| {
                image.recount()?;
                image.close()
            });
            if opened.is_ok() {
                self.repaired();
            }
        }
    }

    fn repair_root(&mut self, label: &str, image: ImageId, from: usize) {
        let recounted = self.pool.open(image).and_then(|mut image| {
            let pages = image.recount()?;
            image.close().map(|()| pages)
        });
        match recounted {
            Ok(pages) => {
                for finding in &mut self.report.findings[from..] {
                    finding.repaired |= !finding.serious && finding.unseen.is_none();
                }
                if pages > 0 {
                    let message = format!(
                        "{pages} damaged map pages were given up: what they covered reads as errors until it is written anew"
                    );
                    self.find(label, true, message);
                    self.repaired();
                }
            }
            Err(error) => {
                let message = format!("it could not be repaired: {}", error.sentence());
                self.find_failed(label, "for repair, it", &error, message);
            }
        }
    }
}

/// The page of a table that an index lies in.
fn page_of(index: SegmentIndex) -> usize {
    index.0 as usize / TABLE_FANOUT
}

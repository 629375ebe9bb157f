//! The log of an image in a bucket: its parts, its fences, and what lies on which host.
//!
//! ```text
//! P/log/N/LLLLLLLLLLLLLLLL      consecutive: a part of the log of image N, or a fence
//! HOST/terms/N                  which terms the files of this host belong to, and which of them were made here
//! HOST/aside/N.T                what an owner on this host had not shipped when another host replaced it
//! ```
//!
//! Invariants:
//! - A part or fence is stored only where there is none of that number, and by an owner whose part before was
//!   stored. So an owner that was replaced meets the fence of its successor, whatever it does next.
//! - Fences are never removed, not even with their image: an owner that was replaced may wake up after that.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use marcot_format::ImageId;
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::{LogPiece, OwnerRecord, SegmentMarks, ShippedLog};
use marcot_format::segment::SegmentKind;
use marcot_store::{DiskFile, replace};

use super::keys;
use super::records;
use super::segments::{Inner, ObjectSegments, io_error, term_path};
use super::service::{Condition, ServiceError};
use super::tails::ASIDE;
use super::tally::Tally;
use crate::fault::{self, Fault};
use crate::local::layout;
use crate::{Asked, Recovered, SegmentKey, SegmentSet, ShipError, Shipping, Tail, Trouble};

/// Permission bits of the files and directories of a host.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// No fence is longer than this, in bytes. Some parts are not longer either.
const FENCE_BYTES_MAX: u64 = 128;
/// Bytes of a file that says which terms files belong to.
const TERMS_BYTES: usize = 24;

/// Which terms the files of this host belong to.
struct Terms {
    /// The term of the owner whose files they are.
    held: u64,
    /// The next one that was begun here.
    next: u64,
    /// The owners since this host has held a term without a break give data segments no number below this one.
    made_from: u32,
}

fn own_set(image: ImageId) -> SegmentSet {
    SegmentSet { author: image, copies: 0 }
}

fn data_segment(image: ImageId, sequence: u32) -> SegmentKey {
    SegmentKey { set: own_set(image), kind: SegmentKind::Data, sequence }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

impl Inner {
    /// Which terms the files of this host belong to, where that is known.
    fn terms(&self, image: ImageId) -> io::Result<Option<Terms>> {
        let path = term_path(&self.host.path, image);
        let file = match self.host.disk.open(&path, false) {
            Err(error) if is_absent(&error) => return Ok(None),
            file => file?,
        };
        let mut bytes = [0; TERMS_BYTES];
        if file.read_at(0, &mut bytes)? < TERMS_BYTES {
            return Ok(None);
        }
        let number = |at: usize| {
            let mut part = [0; 8];
            part.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(part)
        };
        let made_from = u32::try_from(number(16)).unwrap_or(u32::MAX);
        Ok(Some(Terms { held: number(0), next: number(8), made_from }))
    }

    fn set_terms(&self, image: ImageId, terms: &Terms) -> io::Result<()> {
        let path = term_path(&self.host.path, image);
        self.make_directory(path.parent().unwrap_or(&self.host.path))?;
        let numbers = [terms.held, terms.next, u64::from(terms.made_from)];
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        let host = &self.host;
        replace(&*host.disk, &path, host.random.number(), FILE_MODE, &bytes)
    }

    /// The terms of the files of this host, where these are the files of this owner.
    fn terms_of(&self, image: ImageId, owner: &OwnerRecord) -> io::Result<Option<Terms>> {
        if owner.host != self.host.number {
            return Ok(None);
        }
        let belong = |terms: &Terms| {
            let is_its = terms.held == owner.term || terms.next == owner.term;
            is_its || fault::is(Fault::RestReplayed)
        };
        Ok(self.terms(image)?.filter(belong))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        match self.host.disk.create_directory(path, DIRECTORY_MODE) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => {
                made?;
                self.host.disk.sync_directory(path.parent().unwrap_or(Path::new(".")))
            }
        }
    }

    /// Puts what lies here for an image aside. With `flush=remote` it holds nothing that was flushed, so it is
    /// removed.
    fn put_aside(&self, image: ImageId, term: u64) -> io::Result<()> {
        let host = &self.host;
        let files = host.segments.list(own_set(image))?;
        if files.is_empty() {
            return Ok(());
        }
        if self.ships_flushes {
            tracing::info!(%image, files = files.len(), "removed the rest of an owner that another host has replaced");
            return files.into_iter().try_for_each(|key| host.segments.remove(key).map(drop));
        }
        let aside = host.path.join(ASIDE);
        self.make_directory(&aside)?;
        let to = aside.join(format!("{image}.{term:016x}"));
        let from = layout::set(&host.path, own_set(image));
        tracing::warn!(
            %image, to = %to.display(),
            "another host has taken this image over before its last writes were uploaded; they are kept there and are not part of the image: see 'tail ls'"
        );
        host.disk.rename(&from, &to)?;
        host.disk.sync_directory(&aside)?;
        host.disk.sync_directory(from.parent().unwrap_or(&host.path))
    }

    /// True for a part of a log that is no fence, as far as it can be read.
    fn is_part(&self, image: ImageId, object: &str) -> bool {
        let Some(number) = keys::parse_log_part(image, object) else { return false };
        let found = self.service.tidying.get(object).ok().flatten();
        let part = found.and_then(|found| self.decode(image, number, &found.bytes).ok());
        part.is_some_and(|part| !part.fence || fault::is(Fault::FencesRemoved))
    }

    fn decode(&self, image: ImageId, number: u64, bytes: &[u8]) -> io::Result<ShippedLog> {
        let object = keys::log_part(image, number);
        let bad = |why: String| {
            let message = format!("{}: {why}", self.service.show(&object));
            io::Error::new(io::ErrorKind::InvalidData, message)
        };
        let (part, _) = decode_message::<ShippedLog>(FrameKind::ShippedLog, bytes)
            .map_err(|error| bad(error.to_string()))?;
        if (part.image_id, part.number) != (image.0, number) {
            return Err(bad("it is a part of another log".into()));
        }
        Ok(part)
    }

    /// Writes a piece of the log to this host.
    fn stage(&self, image: ImageId, piece: &LogPiece) -> io::Result<Arc<dyn DiskFile>> {
        let key = data_segment(image, piece.sequence);
        let segments = &self.host.segments;
        let there = segments.open(key, true);
        if piece.bytes.is_empty() {
            // The whole segment was uploaded.
            return match there {
                Err(error) if is_absent(&error) => {
                    let object = keys::segment(key);
                    let found = self.service.storing.get(&object);
                    let found =
                        found.map_err(|error| io_error(&self.service.show(&object), error))?;
                    let found = found.ok_or(io::ErrorKind::NotFound)?;
                    segments.create(key, &found.bytes)
                }
                there => there,
            };
        }
        let file = match there {
            Err(error) if is_absent(&error) => segments.create(key, &[])?,
            there => there?,
        };
        file.write_at(piece.offset, &[&piece.bytes])?;
        Ok(file)
    }
}

/// The bytes of a fence.
fn fence(image: ImageId, number: u64, term: u64) -> Vec<u8> {
    let fence = ShippedLog { image_id: image.0, number, term, fence: true, pieces: Vec::new() };
    encode_message(FrameKind::ShippedLog, &fence)
}

/// The numbers of the objects to remove with these parts: no others, because fences stay.
fn with_fences(parts: &mut dyn Iterator<Item = u64>) -> Vec<u64> {
    let parts: Vec<u64> = parts.collect();
    match (parts.first(), parts.last()) {
        (Some(first), Some(last)) if fault::is(Fault::FenceCollected) => {
            (first.saturating_sub(1)..=*last).collect()
        }
        _ => parts,
    }
}

impl Shipping for ObjectSegments {
    fn host(&self) -> OwnerRecord {
        self.0.host_record()
    }

    fn ships_flushes(&self) -> bool {
        self.0.ships_flushes
    }

    fn begin_term(
        &self,
        image: ImageId,
        before: Option<&OwnerRecord>,
        term: u64,
        first_sequence: u32,
    ) -> io::Result<Option<u32>> {
        let inner = &self.0;
        let held = before.map(|owner| inner.terms_of(image, owner)).transpose()?.flatten();
        if held.is_none() {
            inner.put_aside(image, term)?;
        }
        let made_from = held.as_ref().map(|terms| terms.made_from);
        let terms = match (before, held) {
            (Some(owner), Some(terms)) => Terms { held: owner.term, next: term, ..terms },
            // Until the log is recovered, nothing here is valid. Terms begin at 1.
            _ => Terms { held: 0, next: 0, made_from: 0 },
        };
        inner.set_terms(image, &terms)?;
        inner.own(image, Some(first_sequence));
        Ok(made_from)
    }

    fn hold_term(&self, image: ImageId, term: u64, made_from: u32) -> io::Result<()> {
        self.0.set_terms(image, &Terms { held: term, next: term, made_from })
    }

    fn holds(&self, image: ImageId, owner: &OwnerRecord) -> io::Result<bool> {
        Ok(self.0.terms_of(image, owner)?.is_some())
    }

    fn tails(&self) -> io::Result<Vec<Tail>> {
        self.0.tails()
    }

    fn open_tail(&self, name: &str) -> io::Result<Vec<(u32, Arc<dyn DiskFile>)>> {
        self.0.open_tail(name)
    }

    fn remove_tail(&self, name: &str) -> io::Result<()> {
        self.0.remove_tail(name)
    }

    fn end_term(&self, image: ImageId) {
        self.0.disown(image);
    }

    fn recover(
        &self,
        image: ImageId,
        term: u64,
        first: u64,
        first_sequence: u32,
    ) -> Result<Recovered, ShipError> {
        let inner = &self.0;
        inner.host.segments.create_set(own_set(image))?;
        let mut recovered = Recovered { next: first, parts: Vec::new() };
        loop {
            let number = recovered.next;
            let object = keys::log_part(image, number);
            let shown = inner.service.show(&object);
            let failed = |error| ShipError::Io(io_error(&shown, error));
            let found = match inner.service.storing.get(&object).map_err(failed)? {
                Some(found) => Some(found.bytes),
                None => {
                    inner.create_object(&object, &fence(image, number, term)).map_err(failed)?
                }
            };
            recovered.next += 1;
            let Some(bytes) = found else { return Ok(recovered) };
            let part = inner.decode(image, number, &bytes)?;
            if part.term > term {
                return Err(ShipError::Fenced);
            }
            if part.fence && part.term == term {
                return Ok(recovered);
            }
            if part.fence {
                continue;
            }
            recovered.parts.push(number);
            // A root covers the segments before.
            for piece in part.pieces.iter().filter(|piece| piece.sequence >= first_sequence) {
                inner.stage(image, piece)?.sync()?;
            }
        }
    }

    fn ship(&self, part: &ShippedLog) -> Result<(), ShipError> {
        let image = ImageId(part.image_id);
        let object = keys::log_part(image, part.number);
        let shown = self.0.service.show(&object);
        let bytes = encode_message(FrameKind::ShippedLog, part);
        if fault::is(Fault::PartUnsettled)
            && let Ok(_) | Err(ServiceError::Unknown(_)) =
                self.0.service.storing.service().put(&object, &bytes, &Condition::Absent)
        {
            return Ok(());
        }
        let stored = self.0.create_object(&object, &bytes);
        match stored.map_err(|error| ShipError::Io(io_error(&shown, error)))? {
            None => Ok(()),
            Some(found) => {
                let found = self.0.decode(image, part.number, &found)?;
                if found.term > part.term && fault::is(Fault::FenceIgnored) {
                    return Ok(());
                }
                if found.term > part.term {
                    return Err(ShipError::Fenced);
                }
                let message = format!("{shown} holds another part of the log");
                Err(ShipError::Io(io::Error::new(io::ErrorKind::InvalidData, message)))
            }
        }
    }

    fn seal_data(&self, image: ImageId, sequence: u32) -> io::Result<()> {
        self.0.seal_one(data_segment(image, sequence))
    }

    fn seal(&self, set: SegmentSet, below: &SegmentMarks) -> io::Result<()> {
        if !self.0.owns(set.author) {
            // What lies here is the rest of an owner that another host has replaced.
            return Ok(());
        }
        self.0.seal_set(set, below)
    }

    fn seal_copies(&self, copies: u64) -> io::Result<()> {
        let sets = self.0.host.segments.sets()?;
        sets.into_iter().filter(|set| set.copies == copies).try_for_each(|set| {
            let all = SegmentMarks { data: u32::MAX, map: u32::MAX, table: u32::MAX };
            self.0.seal_set(set, &all)
        })
    }

    fn forget_log(&self, image: ImageId, log_from: u32, parts: &mut dyn Iterator<Item = u64>) {
        self.0.forget_uploaded(image, log_from);
        for number in with_fences(parts) {
            let object = keys::log_part(image, number);
            if let Err(error) = self.0.service.tidying.remove(&object) {
                tracing::warn!(object, %error, "a part of a log that is not needed any more stays");
            }
        }
    }

    fn io_timeout(&self) -> Option<Duration> {
        self.0.service.io_timeout
    }

    fn requests(&self) -> Option<io::Result<Asked>> {
        let asked = |tally: &Tally| Ok(Asked { all: tally.now()?, images: tally.of_images()? });
        self.1.as_deref().map(asked)
    }

    fn forget_requests(&self, image: ImageId) {
        if let Some(tally) = &self.1 {
            tally.forget(image);
        }
    }

    fn trouble(&self) -> Option<Trouble> {
        self.0.service.reading.retry().trouble()
    }

    fn await_service(&self) -> io::Result<()> {
        let service = &self.0.service;
        // Whatever the answer is: the service works.
        match service.reading.get_range(records::POOL, 0..1) {
            Err(error @ (ServiceError::Unknown(_) | ServiceError::Refused(_))) => {
                Err(io_error(&service.show(records::POOL), error))
            }
            _ => Ok(()),
        }
    }

    fn end_log(&self, image: ImageId, first: u64, term: u64) -> io::Result<()> {
        let mut number = first;
        // Parts are removed from the first one on, so the next one has a number behind all of them.
        self.0.list_objects(&keys::log(image), |object, _| {
            let last = keys::parse_log_part(image, object);
            number = number.max(last.map_or(0, |last| last + 1));
        })?;
        loop {
            let object = keys::log_part(image, number);
            let stored = self.0.create_object(&object, &fence(image, number, term));
            let found = stored.map_err(|error| io_error(&self.0.service.show(&object), error))?;
            let Some(found) = found else { return Ok(()) };
            // The last owner was faster, or this was done before.
            if self.0.decode(image, number, &found)?.fence {
                return Ok(());
            }
            number += 1;
        }
    }

    fn forget_logs(&self, image: ImageId) {
        let mut objects = Vec::new();
        let listed = self.0.list_objects(&keys::log(image), |object, bytes| {
            objects.push((object.to_owned(), bytes));
        });
        if let Err(error) = listed {
            tracing::warn!(%image, %error, "the log of an image that is gone stays");
        }
        for (object, bytes) in objects {
            if bytes <= FENCE_BYTES_MAX && !self.0.is_part(image, &object) {
                continue;
            }
            if let Err(error) = self.0.service.tidying.remove(&object) {
                tracing::warn!(object, %error, "a part of the log of an image that is gone stays");
            }
        }
        self.forget_requests(image);
    }
}

//! Becoming and ceasing to be the owner of an image in a pool of which several hosts may be owners.
//!
//! On one host, a lock says who owns an image, and it is free once its holder is dead. No lock reaches another
//! host. There the head says who owns the image, and the *term* says which owner is the last one. A new owner
//! replaces the head first, and then ends the log of the owner before with a fence
//! ([`marcot_backend::Shipping::recover`]). An owner that was replaced can store neither a head nor a part of
//! the log any more (I6), however late it notices.

use marcot_backend::{Recovered, ShipError};
use marcot_format::ImageId;
use marcot_format::record::{HeadRecord, OwnerRecord, SegmentMarks};
use marcot_format::segment::SegmentKind;

use super::Image;
use crate::catalog::Pool;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::journal::Shipped;

/// Numbers of each series that an owner may give to segments before its next head.
const RESERVED: u32 = 1 << 10;

/// What an owner does about another host that has the image open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// Leaves the image to it.
    Refuse,
    /// Takes the image over: an operator says that the other host is gone.
    Force,
}

/// An owner's place in the order of owners.
pub(super) struct Tenure {
    term: u64,
    recovered: Recovered,
    /// The log of the owner before lies on this host.
    is_here: bool,
    /// So it began on this host, if it begins at this data segment or a later one.
    made_from: u32,
}

impl Tenure {
    /// True where the log that the head names began on this host, so that its first segment must be here.
    pub(super) fn has_begun_here(&self, head: &HeadRecord) -> bool {
        self.is_here && head.log.unwrap_or_default().sequence >= self.made_from
    }
}

/// True where what this host has of the log is the log of the owner in the head. Otherwise it may be that of an owner
/// that was replaced. A reader sees the last checkpoint then.
pub(super) fn is_log_here(pool: &Pool, image: ImageId, head: &HeadRecord) -> Result<bool> {
    let Some(shipping) = pool.segments().shipping() else { return Ok(true) };
    let Some(owner) = head.owner.as_ref().filter(|owner| !owner.closed) else { return Ok(false) };
    let held = shipping.holds(image, owner);
    held.at(|| format!("cannot see what this host has of {}", pool.image_label(head)))
}

/// The numbers that an owner may give, once a head with these marks is durable.
pub(super) fn reserved_from(marks: &SegmentMarks) -> SegmentMarks {
    let of = |mark: u32| mark.saturating_add(RESERVED);
    SegmentMarks { data: of(marks.data), map: of(marks.map), table: of(marks.table) }
}

fn highest(a: &SegmentMarks, b: &SegmentMarks) -> SegmentMarks {
    SegmentMarks { data: a.data.max(b.data), map: a.map.max(b.map), table: a.table.max(b.table) }
}

/// Becomes the owner of an image, whose lock on this host is held. `head` is the durable head. Returns the head
/// that names this owner. `None`: in this pool, the lock is all that an owner needs.
///
/// # Errors
/// `Busy` where another host has the image open, or opens it at the same time; `Fenced` where a takeover meets another
/// one; those of the back end.
pub(super) fn claim(
    pool: &Pool,
    image: ImageId,
    head: &HeadRecord,
    takeover: Takeover,
) -> Result<Option<(HeadRecord, Tenure)>> {
    let Some(shipping) = pool.segments().shipping() else { return Ok(None) };
    let label = || pool.image_label(head);
    if takeover == Takeover::Refuse {
        check_not_owned_elsewhere(pool, head)?;
    }
    let (host, before) = (shipping.host(), head.owner.as_ref());
    let open = before.filter(|owner| !owner.closed);
    let term = before.map_or(0, |owner| owner.term) + 1;
    let first_sequence = head.log.unwrap_or_default().sequence;
    let began = shipping.begin_term(image, before, term, first_sequence);
    let made_here = began.at(|| format!("cannot prepare this host to own {}", label()))?;
    let is_here = made_here.is_some();
    let marks = head.marks.unwrap_or_default();
    let given = highest(&marks, &head.reserved.unwrap_or_default());
    let mut next = head.clone();
    next.version += 1;
    next.reserved = Some(reserved_from(&given));
    next.owner = Some(OwnerRecord { term, since_s: pool.now_s(), closed: false, ..host });
    if fault::is(Fault::FenceBeforeHead) && open.is_some() {
        let first_sequence = head.log.unwrap_or_default().sequence;
        let _ = shipping.recover(image, term, head.log_first, first_sequence);
    }
    let swapped = pool.swap_head(image, marcot_backend::Stamp::of(head), &next);
    if let Err(error) = swapped.map_err(|error| pool.not_found_if_gone(image, error)) {
        if error.kind() != ErrorKind::Fenced || takeover != Takeover::Refuse {
            return Err(error);
        }
        // Another host was faster. Where it has the image still open, this says which one.
        check_not_owned_elsewhere(pool, &pool.read_head(image)?)?;
        let message =
            format!("{} was opened by another host at the same moment; try again", label());
        return fail(ErrorKind::Busy, message);
    }
    let first = head.log_first;
    let recovered = match open {
        None => Recovered { next: first, parts: Vec::new() },
        Some(owner) => {
            let label = label();
            tracing::info!(image = %label, host = %owner.host_name, is_here, "the image was not closed; its log is recovered");
            match shipping.recover(image, term, first, first_sequence) {
                Ok(recovered) => recovered,
                Err(ShipError::Fenced) if pool.is_gone(image) => {
                    return fail(
                        ErrorKind::NotFound,
                        format!("{label} was removed by another process"),
                    );
                }
                Err(ShipError::Fenced) => {
                    let message = format!("{label} was taken over by another host");
                    return fail(ErrorKind::Fenced, message);
                }
                Err(ShipError::Io(error)) => {
                    return Err(Error::from_io(
                        format!("cannot recover the log of {label}"),
                        error,
                    ));
                }
            }
        }
    };
    let made_from = made_here.unwrap_or(given.data);
    if !is_here {
        let held = shipping.hold_term(image, term, made_from);
        held.at(|| format!("cannot prepare this host to own {}", label()))?;
    }
    Ok(Some((next, Tenure { term, recovered, is_here, made_from })))
}

/// Fails where the head says that another host has the image open.
///
/// # Errors
/// `Busy`: unlike an owner on this host, that one cannot be asked.
pub(crate) fn check_not_owned_elsewhere(pool: &Pool, head: &HeadRecord) -> Result<()> {
    let Some(shipping) = pool.segments().shipping() else { return Ok(()) };
    let here = shipping.host().host;
    match head.owner.as_ref().filter(|owner| !owner.closed && owner.host != here) {
        Some(owner) => fail(ErrorKind::Busy, owned_elsewhere(&pool.image_label(head), owner)),
        None => Ok(()),
    }
}

/// The message where another host has an image open.
fn owned_elsewhere(label: &str, owner: &OwnerRecord) -> String {
    format!(
        "{label} is open on host {} (process {}); run this there, or, if that host is gone for good, take the image over with 'device map --force'",
        owner.host_name, owner.process_id
    )
}

impl Image {
    /// Takes up the tenure: from now on the log is shipped. The log of the owner before has been replayed.
    pub(super) fn begin_tenure(&mut self, tenure: Tenure, given: &SegmentMarks) {
        let Tenure { term, recovered, is_here, .. } = tenure;
        self.replayed_here = is_here && self.state.changed;
        if let Some(shipping) = self.identity.pool.segments().shipping() {
            let shipped =
                Shipped::new(shipping, self.identity.id, &self.identity.label, term, recovered);
            self.journal.ship_with(shipped);
        }
        // An owner before may still give the numbers below to segments.
        for kind in [SegmentKind::Data, SegmentKind::Map, SegmentKind::Table] {
            if let Some(last) = given.of(kind).checked_sub(1)
                && !fault::is(Fault::NumbersNotReserved)
            {
                self.series.used(self.series.name(kind, last));
            }
        }
        self.note_reserved();
    }

    /// Before a flush: where it has to reach other hosts, so has what a process that was killed had written on this
    /// one. No part of the log that is shipped from now on contains it, but the first checkpoint does.
    ///
    /// # Errors
    /// As [`Self::checkpoint`]; `Unreachable` where that takes longer than guests wait. The next flush tries again.
    pub(super) fn store_replayed(&mut self) -> Result<()> {
        if !self.replayed_here || !self.journal.ships_flushes() {
            return Ok(());
        }
        if self.parked.starts_with_checkpoint() {
            // It is on its way, with the head that begins the log.
            self.settle_in_time()?;
        }
        // Where the log has begun again, that was with a checkpoint.
        let due = !self.journal.is_open() && self.state.changed;
        if due && !fault::is(Fault::ReplayedNotStored) {
            self.after_making_room(Self::checkpoint)?;
        }
        self.replayed_here = false;
        Ok(())
    }

    /// The durable head has changed: its owner may give the numbers that it reserves.
    pub(super) fn note_reserved(&mut self) {
        if self.is_shipped()
            && let Some(reserved) = self.head.reserved
        {
            self.series.reserve(reserved);
        }
    }

    /// Says in the head that this owner has closed the image, unless the log has something that the head does not
    /// name.
    pub(super) fn end_tenure(&mut self) -> Result<()> {
        let open = self.head.owner.as_ref().is_some_and(|owner| !owner.closed);
        if !self.is_shipped() || !open || self.state.changed {
            return Ok(());
        }
        self.journal.end_shipping()?;
        self.publish_root(set_closed)
    }

    /// As [`Image::checkpoint`], and the head says that its owner has closed the image. The log has ended.
    ///
    /// The next owner looks for no part of a log that was closed, and begins with the number in this head. So no part may
    /// be under way: with `flush=local`, no flush has waited for it.
    pub(super) fn last_checkpoint(&mut self) -> Result<()> {
        self.journal.end_shipping()?;
        self.checkpoint_with(set_closed)
    }

    /// True where owners on other hosts have to find what a head names.
    pub(super) fn is_shipped(&self) -> bool {
        self.journal.is_shipped()
    }

    /// Closes all segments that are being written, so that they can be uploaded before a head names them
    /// ([`Pool::swap_head`]). The log goes on in a segment behind all of them.
    pub(super) fn close_for_shipping(&mut self) -> Result<()> {
        if !self.is_shipped() {
            return Ok(());
        }
        self.state.compaction.abandon();
        self.state.compaction.due = true;
        self.close_target();
        self.with_free_names(&[SegmentKind::Data], |image| {
            let Self { journal, series, state, in_flight, .. } = image;
            journal.roll(series, &mut state.table, in_flight)
        })
    }
}

/// Changes a head to say that its owner has closed the image.
pub(super) fn set_closed(head: &mut HeadRecord) {
    if let Some(owner) = &mut head.owner {
        owner.closed = true;
    }
}

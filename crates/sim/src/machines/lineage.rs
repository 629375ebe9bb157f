//! The oracle of an image that several machines own, one after the other.
//!
//! Every owner has a *reign*: the states of the image's content in the order in which it has acknowledged them,
//! beginning with what it found. The next owner finds one of these states. What was before it is the past of the
//! image, and what comes after it is lost, so nothing of that may have been promised.
//!
//! So every answer is judged, also those that an owner gives after it was replaced: a flush that it acknowledges
//! then must be in the state that its successor has found.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::content::Content;
use crate::model::Bytes;
use crate::rules::{Rule, Violation, violation};

/// A machine with its disk. A machine whose disk is replaced is another host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Host {
    /// The machine.
    pub machine: usize,
    /// The number of its disk.
    pub disk: u64,
}

/// The time of one owner.
#[derive(Debug, Default)]
struct Reign {
    host: Host,
    states: Vec<Content>,
    /// States after changes that have failed, with the number of the state before. They may be found, and are
    /// promised to nobody.
    failed: Vec<(usize, Content)>,
    /// The last state that was promised to survive everything.
    promised: usize,
    /// The last state that was promised to survive while the host lives and no other one takes the image over.
    promised_here: usize,
    /// As `promised_here`, as long as the host does not lose its power either.
    kept_here: usize,
    /// Another host has begun to take the image over.
    is_disturbed: bool,
    /// The state that the next owner has found.
    found_by_next: Option<usize>,
}

impl Reign {
    /// True for a content that the image had and that counts.
    fn has_in_past(&self, content: &Bytes) -> bool {
        self.has_up_to(self.found_by_next, content)
    }

    /// As [`Self::has_in_past`], where the next owner has found this state.
    fn has_up_to(&self, found_by_next: Option<usize>, content: &Bytes) -> bool {
        let end = found_by_next.map_or(self.states.len(), |found| found + 1);
        let failed = |failed: &(usize, Content)| failed.0 < end && failed.1.is(content);
        self.states[..end].iter().any(|state| state.is(content)) || self.failed.iter().any(failed)
    }

    /// The last state with this content, or the state before a failed change with this content.
    fn find(&self, content: &Bytes) -> Option<usize> {
        let found = self.states.iter().rposition(|state| state.is(content));
        let failed = || self.failed.iter().find(|failed| failed.1.is(content)).map(|f| f.0);
        found.or_else(failed)
    }

    /// What an owner on this host must find.
    fn promised_to(&self, host: Host) -> usize {
        match self.host == host && !self.is_disturbed {
            true => self.promised.max(self.promised_here).max(self.kept_here),
            false => self.promised,
        }
    }
}

/// A snapshot that an owner has begun to take.
#[derive(Debug, Clone)]
struct Snapshot {
    name: String,
    bytes: Bytes,
    /// It was acknowledged, and so it exists until its removal begins.
    exists: bool,
    /// It was removed, and that was acknowledged.
    gone: bool,
}

#[derive(Debug, Default)]
struct State {
    reigns: Vec<Reign>,
    /// The last owner that was not replaced when it began.
    current: usize,
    snapshots: Vec<Snapshot>,
    /// The removal of the image was acknowledged.
    is_removed: bool,
    /// Hosts that have begun to become the owner. One that has failed may still be named by the head later.
    claims: Vec<Host>,
}

impl State {
    fn claim_ended(&mut self, host: Host) {
        if let Some(at) = self.claims.iter().position(|claimed| *claimed == host) {
            self.claims.swap_remove(at);
        }
    }

    /// The reign of the owner that comes after the current one.
    fn follow(&mut self, host: Host, content: Bytes) -> Result<Reign, Violation> {
        let before = &mut self.reigns[self.current];
        let (found, promised) = (before.find(&content), before.promised_to(host));
        let Some(found) = found.filter(|found| *found >= promised) else {
            let message = format!(
                "machine {} finds state {found:?} of machine {}, whose last is {}, and which has \
                 promised {promised}",
                host.machine,
                before.host.machine,
                before.states.len() - 1
            );
            return violation(Rule::I1, message);
        };
        before.found_by_next = Some(found);
        let is_disturbed = self.claims.iter().any(|claimed| *claimed != host);
        // What an owner replays on the host of the owner before may lie there only. So its own successor may find what
        // that one had promised last.
        let first = if before.host == host { before.promised } else { found };
        let mut states = before.states[first..=found].to_vec();
        if let Some(last) = states.last().filter(|last| !last.is(&content)) {
            states.push(last.like(&content));
        }
        let promised_here = states.len() - 1;
        Ok(Reign { host, states, promised_here, is_disturbed, ..Reign::default() })
    }

    /// The reign of an owner that was replaced already.
    fn come_late(&self, host: Host, content: Bytes) -> Result<Reign, Violation> {
        let mut states = vec![self.reigns[self.current].states[0].like(&content)];
        if !self.reigns.iter().any(|reign| reign.has_in_past(&content)) {
            if self.reigns.iter().all(|reign| reign.find(&content).is_none()) {
                let message = format!("machine {} finds what was never written", host.machine);
                return violation(Rule::I1, message);
            }
            // It has replayed what nobody had promised, and what its successor does not have.
            states.insert(0, self.reigns[self.current].states[0].clone());
        }
        Ok(Reign { host, states, found_by_next: Some(0), ..Reign::default() })
    }
}

/// The history of an image. It is shared by all who work on the image.
#[derive(Debug, Clone, Default)]
pub struct Lineage(Arc<Mutex<State>>);

/// What was known of an image when a reader began to look.
#[derive(Debug)]
pub struct Beginning {
    /// The states that the next owners had found.
    found: Vec<Option<usize>>,
    snapshots: Vec<Snapshot>,
}

/// The last state of an owner, and what was true then.
#[derive(Debug, Clone, Copy)]
pub struct Last {
    at: usize,
    /// The image was removed before.
    is_removed: bool,
}

/// The number of a reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReignId(usize);

impl Lineage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the history of a new image, with its first owner.
    #[must_use]
    pub fn begin(host: Host, content: Bytes) -> (Self, ReignId) {
        let reign = Reign { host, states: vec![Content::new(&content)], ..Reign::default() };
        let lineage = Self::default();
        lineage.state().reigns.push(reign);
        (lineage, ReignId(0))
    }

    /// A host begins to become the owner.
    pub fn claim(&self, host: Host) {
        let mut state = self.state();
        let current = state.current;
        let before = &mut state.reigns[current];
        before.is_disturbed |= before.host != host;
        state.claims.push(host);
    }

    /// A host does not become the owner after all: it was refused.
    pub fn claim_refused(&self, host: Host) {
        self.state().claim_ended(host);
    }

    /// A new owner has found this content. `is_named`: the head names it. Otherwise it was replaced before it has
    /// finished to look, and can promise nothing.
    ///
    /// # Errors
    /// I1 where something is missing that was promised, or where it was never the content.
    pub fn succeed(
        &self,
        host: Host,
        is_named: bool,
        content: Bytes,
    ) -> Result<ReignId, Violation> {
        let mut state = self.state();
        state.claim_ended(host);
        let reign = match is_named {
            true => state.follow(host, content)?,
            false => state.come_late(host, content)?,
        };
        let id = state.reigns.len();
        state.reigns.push(reign);
        if is_named {
            state.current = id;
        }
        Ok(ReignId(id))
    }

    /// The content as this owner sees it.
    #[must_use]
    pub fn content(&self, reign: ReignId) -> Bytes {
        let state = self.state();
        let last = state.reigns[reign.0].states.last().expect("a reign has a first state");
        Arc::new(last.bytes())
    }

    /// An owner begins to change the content.
    pub fn change(&self, reign: ReignId, offset: usize, data: &[u8]) {
        let mut state = self.state();
        let states = &mut state.reigns[reign.0].states;
        let last = states.last().expect("a reign has a first state");
        let mut bytes = last.bytes();
        bytes[offset..offset + data.len()].copy_from_slice(data);
        let next = last.like(&bytes);
        states.push(next);
    }

    /// The owner's last change has failed.
    pub fn change_failed(&self, reign: ReignId) {
        let mut state = self.state();
        let reign = &mut state.reigns[reign.0];
        if let Some(failed) = reign.states.pop() {
            reign.failed.push((reign.states.len() - 1, failed));
        }
    }

    /// The owner's last state. What is promised is the state when the command began.
    #[must_use]
    pub fn last(&self, reign: ReignId) -> Last {
        let state = self.state();
        Last { at: state.reigns[reign.0].states.len() - 1, is_removed: state.is_removed }
    }

    /// The image was removed.
    pub fn removed(&self) {
        self.state().is_removed = true;
    }

    /// An owner promises that this state of its reign survives everything.
    ///
    /// # Errors
    /// I6 where the next owner has found an earlier one, or where the image was removed before the command began.
    pub fn promise(&self, reign: ReignId, last: Last, by: &str) -> Result<(), Violation> {
        let Last { at, is_removed } = last;
        let mut state = self.state();
        let reign = &mut state.reigns[reign.0];
        if is_removed && at > reign.promised.max(reign.promised_here) {
            let machine = reign.host.machine;
            let message =
                format!("machine {machine} has acknowledged {by} of an image that is gone");
            return violation(Rule::I6, message);
        }
        if let Some(found) = reign.found_by_next.filter(|found| *found < at) {
            let message = format!(
                "machine {} has acknowledged {by} with state {at}, and its successor has found state {found}",
                reign.host.machine
            );
            return violation(Rule::I6, message);
        }
        reign.promised = reign.promised.max(at);
        Ok(())
    }

    /// As [`Self::promise`], while the host lives and no other one takes the image over.
    pub fn promise_here(&self, reign: ReignId, Last { at, .. }: Last) {
        let mut state = self.state();
        let reign = &mut state.reigns[reign.0];
        reign.promised_here = reign.promised_here.max(at);
    }

    /// The owner's process was killed. What it has acknowledged stays in the memory of its host.
    pub fn killed(&self, reign: ReignId) {
        let mut state = self.state();
        let reign = &mut state.reigns[reign.0];
        reign.kept_here = reign.states.len() - 1;
    }

    /// A host loses its power.
    pub fn power_lost(&self, host: Host) {
        for reign in self.state().reigns.iter_mut().filter(|reign| reign.host == host) {
            reign.kept_here = 0;
        }
    }

    /// An owner begins to take a snapshot.
    pub fn begin_snapshot(&self, reign: ReignId, name: &str) {
        let bytes = self.content(reign);
        let (name, exists, gone) = (name.to_owned(), false, false);
        self.state().snapshots.push(Snapshot { name, bytes, exists, gone });
    }

    /// A snapshot was acknowledged.
    pub fn snapshot_taken(&self, name: &str) {
        for snapshot in self.state().snapshots.iter_mut().filter(|snapshot| snapshot.name == name) {
            snapshot.exists = true;
        }
    }

    /// The removal of a snapshot begins.
    pub fn begin_removal(&self, name: &str) {
        for snapshot in self.state().snapshots.iter_mut().filter(|snapshot| snapshot.name == name) {
            snapshot.exists = false;
        }
    }

    /// The removal of a snapshot was acknowledged.
    pub fn snapshot_removed(&self, name: &str) {
        for snapshot in self.state().snapshots.iter_mut().filter(|snapshot| snapshot.name == name) {
            snapshot.gone = true;
        }
    }

    /// False where no snapshot exists, not even one that is being taken or removed.
    #[must_use]
    pub fn may_have_snapshots(&self) -> bool {
        self.state().snapshots.iter().any(|snapshot| !snapshot.gone)
    }

    /// A reader begins to look.
    #[must_use]
    pub fn begin_to_look(&self) -> Beginning {
        let state = self.state();
        let found = state.reigns.iter().map(|reign| reign.found_by_next).collect();
        Beginning { found, snapshots: state.snapshots.clone() }
    }

    /// Compares the content that a reader sees. It may be any state that was part of the image's past when the reader
    /// began, or is by now.
    ///
    /// # Errors
    /// I6 where it is none of them.
    pub fn compare_reader(
        &self,
        machine: usize,
        began: &Beginning,
        content: &Bytes,
    ) -> Result<(), Violation> {
        let state = self.state();
        let had = |(reign, found): (&Reign, &Option<usize>)| reign.has_up_to(*found, content);
        let is_past = state.reigns.iter().zip(&began.found).any(had);
        if is_past || state.reigns.iter().any(|reign| reign.has_in_past(content)) {
            return Ok(());
        }
        violation(
            Rule::I6,
            format!("a reader on machine {machine} sees what is no part of the image"),
        )
    }

    /// Compares the snapshots that a reader has found, by name and content.
    ///
    /// # Errors
    /// I1 where one is missing, has another content, or was never taken.
    pub fn compare_snapshots(
        &self,
        began: &Beginning,
        found: &[(String, Bytes)],
    ) -> Result<(), Violation> {
        let state = self.state();
        for (name, bytes) in found {
            if began.snapshots.iter().any(|snapshot| snapshot.name == *name && snapshot.gone) {
                violation(Rule::I1, format!("snapshot {name} is back after its removal"))?;
            }
            match state.snapshots.iter().find(|snapshot| snapshot.name == *name) {
                Some(known) if known.bytes == *bytes => {}
                Some(_) => violation(Rule::I1, format!("snapshot {name} has another content"))?,
                None => violation(Rule::I1, format!("snapshot {name} was never taken"))?,
            }
        }
        // One that was taken meanwhile may be missing, and one whose removal has begun meanwhile.
        for (before, now) in began.snapshots.iter().zip(&state.snapshots) {
            let has_existed = before.exists && now.exists;
            if has_existed && !found.iter().any(|(name, _)| *name == now.name) {
                violation(Rule::I1, format!("snapshot {} is missing", now.name))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(byte: u8) -> Bytes {
        Arc::new(vec![byte; 4])
    }

    fn host(machine: usize) -> Host {
        Host { machine, disk: machine as u64 }
    }

    fn at(at: usize) -> Last {
        Last { at, is_removed: false }
    }

    fn three_states() -> (Lineage, ReignId) {
        let (lineage, first) = Lineage::begin(host(0), content(0));
        lineage.change(first, 0, &[1; 4]);
        lineage.change(first, 0, &[2; 4]);
        (lineage, first)
    }

    #[test]
    fn a_successor_finds_a_state_that_contains_what_was_promised() {
        let (lineage, first) = three_states();
        lineage.promise(first, at(1), "a flush").unwrap();
        assert!(lineage.succeed(host(1), true, content(0)).is_err());
        assert!(lineage.succeed(host(1), true, content(9)).is_err());
        lineage.succeed(host(1), true, content(1)).unwrap();
        let (lineage, first) = three_states();
        lineage.promise(first, at(1), "a flush").unwrap();
        lineage.succeed(host(1), true, content(2)).unwrap();
    }

    #[test]
    fn what_an_owner_promises_after_it_was_replaced_must_be_what_its_successor_found() {
        let (lineage, first) = three_states();
        let before = lineage.begin_to_look();
        let second = lineage.succeed(host(1), true, content(1)).unwrap();
        lineage.compare_reader(2, &before, &content(2)).unwrap();
        lineage.promise(first, at(1), "a flush").unwrap();
        assert!(lineage.promise(first, at(2), "a flush").is_err());
        lineage.change(second, 0, &[3; 4]);
        lineage.promise(second, at(1), "a flush").unwrap();
        let now = lineage.begin_to_look();
        assert!(lineage.compare_reader(2, &now, &content(2)).is_err());
        for past in [0, 1, 3] {
            lineage.compare_reader(2, &now, &content(past)).unwrap();
        }
    }

    #[test]
    fn what_was_promised_on_a_host_is_there_unless_another_host_has_begun_to_take_the_image_over() {
        let promised = || {
            let (lineage, first) = three_states();
            lineage.promise_here(first, at(1));
            lineage
        };
        assert!(promised().succeed(host(0), true, content(0)).is_err());
        promised().succeed(host(0), true, content(1)).unwrap();
        promised().succeed(host(1), true, content(0)).unwrap();
        promised().succeed(Host { disk: 9, ..host(0) }, true, content(0)).unwrap();
        let (lineage, first) = three_states();
        lineage.killed(first);
        assert!(lineage.succeed(host(0), true, content(1)).is_err());
        lineage.power_lost(host(0));
        lineage.succeed(host(0), true, content(1)).unwrap();
        let lineage = promised();
        lineage.claim(host(1));
        lineage.claim_refused(host(1));
        assert!(lineage.succeed(host(0), true, content(0)).is_ok());
        let lineage = promised();
        lineage.claim(host(0));
        assert!(lineage.succeed(host(0), true, content(0)).is_err());
        lineage.claim(host(1));
        lineage.succeed(host(0), true, content(0)).unwrap();
    }

    #[test]
    fn a_change_that_failed_may_be_found_and_is_promised_to_nobody() {
        let (lineage, first) = three_states();
        lineage.change(first, 0, &[3; 4]);
        lineage.change_failed(first);
        lineage.promise(first, lineage.last(first), "a flush").unwrap();
        let second = lineage.succeed(host(1), true, content(3)).unwrap();
        assert_eq!(lineage.content(second), content(3));
        let (lineage, first) = three_states();
        lineage.change(first, 0, &[3; 4]);
        lineage.change_failed(first);
        lineage.succeed(host(1), true, content(2)).unwrap();
    }

    #[test]
    fn an_owner_that_was_replaced_before_it_has_looked_can_promise_nothing() {
        let (lineage, first) = three_states();
        lineage.promise(first, at(2), "a flush").unwrap();
        let second = lineage.succeed(host(1), true, content(2)).unwrap();
        lineage.change(second, 0, &[3; 4]);
        lineage.promise(second, at(1), "a flush").unwrap();
        let late = lineage.succeed(host(2), false, content(2)).unwrap();
        lineage.promise(late, at(0), "a flush").unwrap();
        lineage.change(late, 0, &[4; 4]);
        assert!(lineage.promise(late, at(1), "a flush").is_err());
        lineage.succeed(host(3), true, content(3)).unwrap();
    }

    #[test]
    fn nothing_new_is_promised_of_an_image_that_was_removed() {
        let (lineage, first) = three_states();
        lineage.promise(first, lineage.last(first), "a flush").unwrap();
        lineage.change(first, 0, &[3; 4]);
        let before = lineage.last(first);
        lineage.removed();
        // It was stored before the removal, and the answer came later.
        lineage.promise(first, before, "a flush").unwrap();
        lineage.change(first, 0, &[4; 4]);
        assert!(lineage.promise(first, lineage.last(first), "a flush").is_err());
    }

    fn compare(lineage: &Lineage, found: &[(String, Bytes)]) -> Result<(), Violation> {
        lineage.compare_snapshots(&lineage.begin_to_look(), found)
    }

    #[test]
    fn snapshots_are_there_from_their_acknowledgement_until_their_removal_begins() {
        let (lineage, first) = three_states();
        let found = [("s".to_owned(), content(2))];
        lineage.begin_snapshot(first, "s");
        compare(&lineage, &[]).unwrap();
        compare(&lineage, &found).unwrap();
        let before = lineage.begin_to_look();
        lineage.snapshot_taken("s");
        lineage.compare_snapshots(&before, &[]).unwrap();
        assert!(compare(&lineage, &[]).is_err());
        assert!(compare(&lineage, &[("s".to_owned(), content(1))]).is_err());
        assert!(compare(&lineage, &[("t".to_owned(), content(2))]).is_err());
        lineage.begin_removal("s");
        compare(&lineage, &[]).unwrap();
        compare(&lineage, &found).unwrap();
        lineage.snapshot_removed("s");
        assert!(compare(&lineage, &found).is_err());
    }
}

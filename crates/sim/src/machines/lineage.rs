//! The oracle of an image that several machines own, one after the other.
//!
//! Every owner has a *reign*: the states of the image's content in the order in which it has acknowledged them,
//! beginning with what it found. The next owner finds one of these states. What was before it is the past of the
//! image, and what comes after it is lost, so nothing of that may have been promised.
//!
//! So every answer is judged, also those that an owner gives after it was replaced: a flush that it acknowledges
//! then must be in the state that its successor has found.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::Bytes;
use crate::rules::{Rule, Violation, violation};

/// The time of one owner.
#[derive(Debug, Default)]
struct Reign {
    machine: usize,
    states: Vec<Bytes>,
    /// States after changes that have failed, with the number of the state before. They may be found, and are
    /// promised to nobody.
    failed: Vec<(usize, Bytes)>,
    /// The last state that was promised to survive everything.
    promised: usize,
    /// The state that the next owner has found.
    found_by_next: Option<usize>,
}

impl Reign {
    /// True for a content that the image had and that counts.
    fn has_in_past(&self, content: &Bytes) -> bool {
        let end = self.found_by_next.map_or(self.states.len(), |found| found + 1);
        let failed = |failed: &(usize, Bytes)| failed.0 < end && failed.1 == *content;
        self.states[..end].contains(content) || self.failed.iter().any(failed)
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
}

/// The history of an image. It is shared by all who work on the image.
#[derive(Debug, Clone, Default)]
pub struct Lineage(Arc<Mutex<State>>);

/// The number of a reign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReignId(usize);

impl Lineage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the history of a new image, with its first owner.
    #[must_use]
    pub fn begin(machine: usize, content: Bytes) -> (Self, ReignId) {
        let reign = Reign { machine, states: vec![content], ..Reign::default() };
        let lineage = Self::default();
        lineage.state().reigns.push(reign);
        (lineage, ReignId(0))
    }

    /// The number of owners so far. One who becomes the owner asks before it begins.
    #[must_use]
    pub fn reigns(&self) -> usize {
        self.state().reigns.len()
    }

    /// A new owner has found this content. There were `reigns` owners when it began. If it was replaced before it
    /// has finished to look, it finds a content of the past. Then it can promise nothing.
    ///
    /// # Errors
    /// I1 where something is missing that was promised, or where it was never the content.
    pub fn succeed(
        &self,
        machine: usize,
        reigns: usize,
        content: Bytes,
    ) -> Result<ReignId, Violation> {
        let mut state = self.state();
        let is_late = state.reigns.len() > reigns;
        let is_past = is_late && state.reigns.iter().any(|reign| reign.has_in_past(&content));
        // Who is late began as the successor of an earlier owner.
        let beyond = state.reigns[..reigns].last().is_some_and(|r| r.states.contains(&content));
        let mut states = vec![Arc::clone(&content)];
        let current = state.current;
        let before = &mut state.reigns[current];
        let found = before.states.iter().rposition(|state| *state == content);
        let after_failed = || before.failed.iter().find(|failed| failed.1 == content).map(|f| f.0);
        let found = found.or_else(after_failed);
        let mut found_by_next = None;
        match found {
            Some(at) if at >= before.promised => before.found_by_next = Some(at),
            _ if is_past => found_by_next = Some(0),
            // It has replayed what nobody had promised, and what its successor does not have.
            _ if is_late && beyond => {
                states.insert(0, Arc::clone(&before.states[0]));
                found_by_next = Some(0);
            }
            _ => {
                let (last, promised) = (before.states.len() - 1, before.promised);
                let message = format!(
                    "machine {machine} finds state {found:?} of machine {}, whose last is {last}, and \
                     which has promised {promised}",
                    before.machine
                );
                return violation(Rule::I1, message);
            }
        }
        let reign = Reign { machine, states, found_by_next, ..Reign::default() };
        let id = state.reigns.len();
        state.reigns.push(reign);
        // Who is replaced already is not the one whose state the next owner finds.
        if found_by_next.is_none() {
            state.current = id;
        }
        Ok(ReignId(id))
    }

    /// The content as this owner sees it.
    #[must_use]
    pub fn content(&self, reign: ReignId) -> Bytes {
        let state = self.state();
        Arc::clone(state.reigns[reign.0].states.last().expect("a reign has a first state"))
    }

    /// An owner begins to change the content.
    pub fn change(&self, reign: ReignId, offset: usize, data: &[u8]) {
        let mut state = self.state();
        let states = &mut state.reigns[reign.0].states;
        let mut bytes = Vec::clone(states.last().expect("a reign has a first state"));
        bytes[offset..offset + data.len()].copy_from_slice(data);
        states.push(Arc::new(bytes));
    }

    /// The owner's last change has failed.
    pub fn change_failed(&self, reign: ReignId) {
        let mut state = self.state();
        let reign = &mut state.reigns[reign.0];
        if let Some(failed) = reign.states.pop() {
            reign.failed.push((reign.states.len() - 1, failed));
        }
    }

    /// The number of the owner's last state. What is promised is the state when the command began.
    #[must_use]
    pub fn last(&self, reign: ReignId) -> usize {
        self.state().reigns[reign.0].states.len() - 1
    }

    /// An owner promises that this state of its reign survives everything.
    ///
    /// # Errors
    /// I6 where the next owner has found an earlier one.
    pub fn promise(&self, reign: ReignId, at: usize, by: &str) -> Result<(), Violation> {
        let mut state = self.state();
        let reign = &mut state.reigns[reign.0];
        if let Some(found) = reign.found_by_next.filter(|found| *found < at) {
            let message = format!(
                "machine {} has acknowledged {by} with state {at}, and its successor has found state {found}",
                reign.machine
            );
            return violation(Rule::I6, message);
        }
        reign.promised = reign.promised.max(at);
        Ok(())
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

    /// Compares the content that a reader sees. It may be any state that was ever part of the image's past.
    ///
    /// # Errors
    /// I6 where it is none of them.
    pub fn compare_reader(&self, machine: usize, content: &Bytes) -> Result<(), Violation> {
        let state = self.state();
        if state.reigns.iter().any(|reign| reign.has_in_past(content)) {
            return Ok(());
        }
        violation(
            Rule::I6,
            format!("a reader on machine {machine} sees what is no part of the image"),
        )
    }

    /// Compares the snapshots that were found, by name and content.
    ///
    /// # Errors
    /// I1 where one is missing, has another content, or was never taken.
    pub fn compare_snapshots(&self, found: &[(String, Bytes)]) -> Result<(), Violation> {
        let state = self.state();
        for (name, bytes) in found {
            let known = state.snapshots.iter().find(|snapshot| snapshot.name == *name);
            match known {
                Some(known) if known.gone => {
                    violation(Rule::I1, format!("snapshot {name} is back after its removal"))?;
                }
                Some(known) if known.bytes == *bytes => {}
                Some(_) => violation(Rule::I1, format!("snapshot {name} has another content"))?,
                None => violation(Rule::I1, format!("snapshot {name} was never taken"))?,
            }
        }
        for snapshot in state.snapshots.iter().filter(|snapshot| snapshot.exists) {
            if !found.iter().any(|(name, _)| *name == snapshot.name) {
                violation(Rule::I1, format!("snapshot {} is missing", snapshot.name))?;
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

    fn three_states() -> (Lineage, ReignId) {
        let (lineage, first) = Lineage::begin(0, content(0));
        lineage.change(first, 0, &[1; 4]);
        lineage.change(first, 0, &[2; 4]);
        (lineage, first)
    }

    #[test]
    fn a_successor_finds_a_state_that_contains_what_was_promised() {
        let (lineage, first) = three_states();
        lineage.promise(first, 1, "a flush").unwrap();
        assert!(lineage.succeed(1, lineage.reigns(), content(0)).is_err());
        assert!(lineage.succeed(1, lineage.reigns(), content(9)).is_err());
        lineage.succeed(1, lineage.reigns(), content(1)).unwrap();
        let (lineage, first) = three_states();
        lineage.promise(first, 1, "a flush").unwrap();
        lineage.succeed(1, lineage.reigns(), content(2)).unwrap();
    }

    #[test]
    fn what_an_owner_promises_after_it_was_replaced_must_be_what_its_successor_found() {
        let (lineage, first) = three_states();
        let second = lineage.succeed(1, lineage.reigns(), content(1)).unwrap();
        lineage.promise(first, 1, "a flush").unwrap();
        assert!(lineage.promise(first, 2, "a flush").is_err());
        lineage.change(second, 0, &[3; 4]);
        lineage.promise(second, 1, "a flush").unwrap();
        assert!(lineage.compare_reader(2, &content(2)).is_err());
        for past in [0, 1, 3] {
            lineage.compare_reader(2, &content(past)).unwrap();
        }
    }

    #[test]
    fn a_change_that_failed_may_be_found_and_is_promised_to_nobody() {
        let (lineage, first) = three_states();
        lineage.change(first, 0, &[3; 4]);
        lineage.change_failed(first);
        lineage.promise(first, lineage.last(first), "a flush").unwrap();
        let second = lineage.succeed(1, lineage.reigns(), content(3)).unwrap();
        assert_eq!(lineage.content(second), content(3));
        let (lineage, first) = three_states();
        lineage.change(first, 0, &[3; 4]);
        lineage.change_failed(first);
        lineage.succeed(1, lineage.reigns(), content(2)).unwrap();
    }

    #[test]
    fn an_owner_that_was_replaced_before_it_has_looked_can_promise_nothing() {
        let (lineage, first) = three_states();
        lineage.promise(first, 2, "a flush").unwrap();
        let second = lineage.succeed(1, lineage.reigns(), content(2)).unwrap();
        lineage.change(second, 0, &[3; 4]);
        lineage.promise(second, 1, "a flush").unwrap();
        let late = lineage.succeed(2, 1, content(2)).unwrap();
        lineage.promise(late, 0, "a flush").unwrap();
        lineage.change(late, 0, &[4; 4]);
        assert!(lineage.promise(late, 1, "a flush").is_err());
        lineage.succeed(3, lineage.reigns(), content(3)).unwrap();
    }

    #[test]
    fn snapshots_are_there_from_their_acknowledgement_until_their_removal_begins() {
        let (lineage, first) = three_states();
        let found = [("s".to_owned(), content(2))];
        lineage.begin_snapshot(first, "s");
        lineage.compare_snapshots(&[]).unwrap();
        lineage.compare_snapshots(&found).unwrap();
        lineage.snapshot_taken("s");
        assert!(lineage.compare_snapshots(&[]).is_err());
        assert!(lineage.compare_snapshots(&[("s".to_owned(), content(1))]).is_err());
        assert!(lineage.compare_snapshots(&[("t".to_owned(), content(2))]).is_err());
        lineage.begin_removal("s");
        lineage.compare_snapshots(&[]).unwrap();
        lineage.compare_snapshots(&found).unwrap();
        lineage.snapshot_removed("s");
        assert!(lineage.compare_snapshots(&found).is_err());
    }
}

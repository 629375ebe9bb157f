//! Calls of records, and what they do one after the other.

use std::collections::{BTreeMap, BTreeSet};

use marcot_backend::Stamp;

use super::history::Specification;

/// A call. Tags tell the contents of records apart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the calls of the trait")]
pub enum Call {
    CreateHead { image: u64, tag: u64 },
    SwapHead { image: u64, from: Stamp, tag: u64 },
    RemoveHead { image: u64 },
    GetHead { image: u64 },
    CreateNamespace { namespace: String },
    RemoveNamespace { namespace: String },
    CreateName { namespace: String, name: String, tag: u64 },
    RemoveName { namespace: String, name: String },
    Rename { namespace: String, from: String, to: String },
    GetName { namespace: String, name: String },
}

/// What a call answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// A head was found.
    Head(Stamp, u64),
    /// A name was found.
    Name(u64),
    /// There is no such record. Nothing was changed.
    Absent,
    /// There is such a record already. Nothing was changed.
    Exists,
    /// The namespace holds names. Nothing was changed.
    NotEmpty,
    /// Another head is stored than the one that was to be replaced. Nothing was changed.
    Changed,
    /// It failed for another reason. Nothing was changed.
    Failed,
    /// It is not known whether anything was changed.
    Unknown,
}

/// A call with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The call.
    pub call: Call,
    /// The answer.
    pub outcome: Outcome,
}

/// What calls have to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The head of an image.
    Head(u64),
    /// Names and namespaces.
    Names,
}

impl Call {
    /// What the call works on. Calls that work on different parts have nothing to do with each other.
    #[must_use]
    pub fn part(&self) -> Part {
        match self {
            Self::CreateHead { image, .. }
            | Self::SwapHead { image, .. }
            | Self::RemoveHead { image }
            | Self::GetHead { image } => Part::Head(*image),
            _ => Part::Names,
        }
    }

    /// True for a rename from or to this name.
    #[must_use]
    pub fn renames(&self, in_namespace: &str, name: &str) -> bool {
        match self {
            Self::Rename { namespace, from, to } => {
                namespace == in_namespace && (from == name || to == name)
            }
            _ => false,
        }
    }
}

/// The head of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum Head {
    #[default]
    Absent,
    Stored {
        epoch: u64,
        version: u64,
        tag: u64,
    },
    /// It was removed, and cannot be created again.
    Gone,
}

/// What the calls of a part work on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    head: Head,
    namespaces: BTreeSet<String>,
    names: BTreeMap<(String, String), u64>,
}

/// The stamp of the head that replaces one with this stamp.
#[must_use]
pub fn stamp_after(stamp: Stamp) -> Stamp {
    Stamp { version: stamp.version + 1, ..stamp }
}

/// The stamp of a new head.
pub const FIRST_STAMP: Stamp = Stamp { epoch: 1, version: 1 };

/// The specification of records.
pub struct RecordCalls;

impl Specification for RecordCalls {
    type Call = Answered;
    type State = State;

    fn perform(state: &State, answered: &Answered) -> Option<State> {
        match answered.call.part() {
            Part::Head(_) => {
                let head = perform_on_head(&state.head, answered)?;
                Some(State { head, ..State::default() })
            }
            Part::Names => perform_on_names(state, answered),
        }
    }

    fn only_reads(answered: &Answered) -> bool {
        let reads = matches!(answered.call, Call::GetHead { .. } | Call::GetName { .. });
        reads || !matches!(answered.outcome, Outcome::Done | Outcome::Unknown)
    }
}

fn stored(stamp: Stamp, tag: u64) -> Head {
    Head::Stored { epoch: stamp.epoch, version: stamp.version, tag }
}

fn perform_on_head(head: &Head, Answered { call, outcome }: &Answered) -> Option<Head> {
    let has = |stamp: &Stamp| matches!(head, Head::Stored { epoch, version, .. } if (*epoch, *version) == (stamp.epoch, stamp.version));
    let is_stored = matches!(head, Head::Stored { .. });
    match (call, outcome) {
        (Call::CreateHead { tag, .. }, Outcome::Done | Outcome::Unknown) => {
            (*head == Head::Absent).then(|| stored(FIRST_STAMP, *tag))
        }
        (Call::CreateHead { .. }, Outcome::Exists) => (*head != Head::Absent).then(|| head.clone()),
        (Call::SwapHead { from, tag, .. }, Outcome::Done | Outcome::Unknown) => {
            has(from).then(|| stored(stamp_after(*from), *tag))
        }
        (Call::SwapHead { from, .. }, Outcome::Changed) => {
            // A head that is removed meanwhile is changed too.
            (*head != Head::Absent && !has(from)).then(|| head.clone())
        }
        (
            Call::SwapHead { .. } | Call::GetHead { .. } | Call::RemoveHead { .. },
            Outcome::Absent,
        ) => (!is_stored).then(|| head.clone()),
        // Of several who remove it at the same time, all may be told that they have done it.
        (Call::RemoveHead { .. }, Outcome::Done) => (*head != Head::Absent).then_some(Head::Gone),
        (Call::RemoveHead { .. }, Outcome::Unknown) => is_stored.then_some(Head::Gone),
        (Call::GetHead { .. }, Outcome::Head(stamp, tag)) => {
            (*head == stored(*stamp, *tag)).then(|| head.clone())
        }
        (_, Outcome::Failed) => Some(head.clone()),
        _ => None,
    }
}

fn perform_on_names(state: &State, Answered { call, outcome }: &Answered) -> Option<State> {
    let exists = |namespace: &String| namespace.is_empty() || state.namespaces.contains(namespace);
    let find = |namespace: &String, name: &String| {
        state.names.get(&(namespace.clone(), name.clone())).copied()
    };
    let is_used = |namespace: &String| state.names.keys().any(|(used, _)| used == namespace);
    let same = || state.clone();
    let change = |change: &dyn Fn(&mut State)| {
        let mut after = state.clone();
        change(&mut after);
        after
    };
    match (call, outcome) {
        (Call::CreateNamespace { namespace }, Outcome::Done | Outcome::Unknown) => {
            (!exists(namespace)).then(|| {
                change(&|after| {
                    after.namespaces.insert(namespace.clone());
                })
            })
        }
        (Call::CreateNamespace { namespace }, Outcome::Exists) => exists(namespace).then(same),
        (Call::RemoveNamespace { namespace }, Outcome::Done | Outcome::Unknown) => {
            (exists(namespace) && !is_used(namespace)).then(|| {
                change(&|after| {
                    after.namespaces.remove(namespace);
                })
            })
        }
        (Call::RemoveNamespace { namespace }, Outcome::NotEmpty) => is_used(namespace).then(same),
        (Call::RemoveNamespace { namespace }, Outcome::Absent) => (!exists(namespace)).then(same),
        (Call::CreateName { namespace, name, tag }, Outcome::Done | Outcome::Unknown) => {
            (exists(namespace) && find(namespace, name).is_none()).then(|| {
                change(&|after| {
                    after.names.insert((namespace.clone(), name.clone()), *tag);
                })
            })
        }
        (Call::CreateName { namespace, name, .. }, Outcome::Exists) => {
            find(namespace, name).is_some().then(same)
        }
        (Call::CreateName { namespace, .. }, Outcome::Absent) => (!exists(namespace)).then(same),
        (Call::RemoveName { namespace, name }, Outcome::Done | Outcome::Unknown) => {
            find(namespace, name).map(|_| {
                change(&|after| {
                    after.names.remove(&(namespace.clone(), name.clone()));
                })
            })
        }
        (
            Call::RemoveName { namespace, name } | Call::GetName { namespace, name },
            Outcome::Absent,
        ) => find(namespace, name).is_none().then(same),
        (Call::GetName { namespace, name }, Outcome::Name(tag)) => {
            (find(namespace, name) == Some(*tag)).then(same)
        }
        (Call::Rename { namespace, from, to }, Outcome::Done | Outcome::Unknown) => {
            let tag = find(namespace, from)?;
            find(namespace, to).is_none().then(|| {
                change(&|after| {
                    after.names.remove(&(namespace.clone(), from.clone()));
                    after.names.insert((namespace.clone(), to.clone()), tag);
                })
            })
        }
        // A rename looks for the two names one after the other.
        (Call::Rename { namespace, to, .. }, Outcome::Exists) => {
            find(namespace, to).is_some().then(same)
        }
        (Call::Rename { namespace, from, .. }, Outcome::Absent) => {
            find(namespace, from).is_none().then(same)
        }
        (_, Outcome::Failed) => Some(same()),
        _ => None,
    }
}

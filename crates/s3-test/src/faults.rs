//! What can be wrong with a service: for good, for a while, or for one request.

use std::time::Duration;

/// The kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Stores an object.
    Put,
    /// Reads an object or a part of it.
    Get,
    /// Reads what is known of an object.
    Head,
    /// Removes an object.
    Delete,
    /// Lists objects.
    List,
    /// Anything else.
    Other,
}

/// How a service always is. Without any of these it is as S3 promises to be.
#[derive(Debug, Clone, Default)]
pub struct Dialect {
    /// `If-Match` takes an ETag without quotes only.
    pub bare_etags: bool,
    /// Each change gives a new ETag. Otherwise it follows from the bytes, as S3 has it.
    pub new_etags: bool,
    /// `If-None-Match` is ignored.
    pub ignores_if_none_match: bool,
    /// `If-Match` is ignored.
    pub ignores_if_match: bool,
    /// `If-Match` of an object that does not exist creates it.
    pub swap_creates: bool,
    /// Conditions are checked without a lock: this time lies between the check and the change.
    pub unlocked: Option<Duration>,
    /// As [`Self::unlocked`], for requests with `If-Match` only.
    pub unlocked_swaps: Option<Duration>,
    /// No `If-Match` holds ever.
    pub no_swaps: bool,
    /// Reads show the object as it was before its last change.
    pub stale_reads: bool,
    /// Lists show the objects as they were before the last changes: how many of them.
    pub stale_lists: usize,
    /// `Range` is ignored.
    pub no_ranges: bool,
    /// A range behind the end of an object is answered with a part that has no bytes.
    pub empty_parts: bool,
    /// An object takes one change in this time. Others are answered with 429.
    pub change_interval: Option<Duration>,
    /// A condition that does not hold is answered so, and not with 412.
    pub lost_race: Option<(u16, &'static str)>,
    /// Seconds by which the service's clock is ahead. Requests of another time are refused.
    pub clock_ahead_s: i64,
    /// Objects in a list; 1000 where it is 0.
    pub page_objects: usize,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is done, and answered with this status and code.
    DoneThen(u16, &'static str),
    /// It is done, and the connection is cut before the answer.
    DoneThenCut,
    /// It is not done, and the connection is cut.
    Cut,
    /// The connection is cut now. It is done after this time.
    CutThenDone(Duration),
    /// It is done; half of the answer's body comes, and then the connection is cut.
    HalfBody,
    /// It is not done, and answered with this status and code.
    Refuse(u16, &'static str),
    /// It is done, and answered after this time.
    Slow(Duration),
    /// It is not done, and answered as something that is no object store would.
    Foreign(u16),
}

/// A fault for the next requests that fit.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Requests of this kind; `None` for all kinds.
    pub kind: Option<Kind>,
    /// Requests whose key contains this.
    pub key: String,
    /// How many of them.
    pub count: usize,
    /// What happens to them.
    pub fault: Fault,
}

/// Faults by chance, the same for the same seed and order of requests.
#[derive(Debug, Clone)]
pub struct Chance {
    state: u64,
    per_mille: u64,
    /// They are only answered after this time.
    slow: Option<Duration>,
}

impl Chance {
    /// So many of a thousand requests fail.
    #[must_use]
    pub fn new(seed: u64, per_mille: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, per_mille, slow: None }
    }

    /// So many of a thousand requests are answered after this time.
    #[must_use]
    pub fn slow(seed: u64, per_mille: u64, time: Duration) -> Self {
        Self { slow: Some(time), ..Self::new(seed, per_mille) }
    }

    fn number(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// The fault of the next request.
    pub fn fault(&mut self, kind: Kind) -> Option<Fault> {
        if self.number() % 1000 >= self.per_mille {
            return None;
        }
        if let Some(time) = self.slow {
            return Some(Fault::Slow(time));
        }
        let faults = [
            Fault::DoneThen(500, "InternalError"),
            Fault::DoneThenCut,
            Fault::Cut,
            Fault::CutThenDone(Duration::from_millis(30)),
            Fault::Refuse(503, "SlowDown"),
            Fault::Refuse(429, "TooManyRequests"),
            Fault::Slow(Duration::from_millis(20)),
            Fault::HalfBody,
            Fault::Refuse(409, "ConditionalRequestConflict"),
        ];
        // The last one is an answer to a change only.
        let usable = if kind == Kind::Put { faults.len() } else { faults.len() - 1 };
        let chosen = self.number() % usable as u64;
        Some(faults[usize::try_from(chosen).unwrap_or_default()])
    }
}

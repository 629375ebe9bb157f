//! Faults of the service. Each of them has been met with real services, or follows from what a network may do.

use crate::random::Rng;

use super::objects::Request;

/// A fault that a request may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is performed, and its answer is lost.
    LostAnswer,
    /// The request is performed, and answered with status 500.
    ErrorAfterCommit,
    /// The request is lost.
    LostRequest,
    /// The request is performed later than its sender gives up, perhaps after other requests for the same key.
    /// Conditions are compared when it is performed.
    Late,
    /// The request is performed and answered, and performed again later, because something on the way has sent
    /// it twice.
    Twice,
    /// Status 409, and nothing is done, although the condition holds.
    FalseConflict,
    /// Status 429, and nothing is done.
    TooManyRequests,
    /// The connection is cut in the middle of a body. An object that is stored does not become visible.
    TornBody,
    /// The answer takes up to a minute.
    Slow,
    /// Nothing is performed for some minutes.
    Outage,
    /// A list does not show the last changes. No service with this fault is accepted.
    StaleList,
}

/// All faults that a service may have and be accepted.
pub const ACCEPTED: [Fault; 10] = [
    Fault::LostAnswer,
    Fault::ErrorAfterCommit,
    Fault::LostRequest,
    Fault::Late,
    Fault::Twice,
    Fault::FalseConflict,
    Fault::TooManyRequests,
    Fault::TornBody,
    Fault::Slow,
    Fault::Outage,
];

impl Fault {
    /// True where the fault can hit this request.
    fn can_hit(self, request: &Request) -> bool {
        match self {
            Self::Late | Self::Twice | Self::ErrorAfterCommit => request.changes(),
            Self::FalseConflict => request.is_conditional(),
            Self::TornBody => !matches!(request, Request::Remove { .. }),
            Self::StaleList => matches!(request, Request::List { .. }),
            Self::LostAnswer
            | Self::LostRequest
            | Self::TooManyRequests
            | Self::Slow
            | Self::Outage => true,
        }
    }
}

/// The faults that come by chance, and those that are armed.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Kinds that come by chance.
    pub kinds: Vec<Fault>,
    /// One in this many requests meets one of them; 0 for none.
    pub one_in: u64,
    armed: Vec<(Fault, Option<usize>, u64)>,
    /// Faults that have hit.
    pub hits: u64,
}

impl Faults {
    /// The faults of a seed: none, all, or some that come more often.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with(seed, 400);
        let some = |rng: &mut Rng| {
            let chosen: Vec<Fault> = ACCEPTED.into_iter().filter(|_| rng.one_in(3)).collect();
            if chosen.is_empty() { vec![Fault::Late] } else { chosen }
        };
        match rng.below(8) {
            0 => Self::default(),
            1..4 => Self { kinds: ACCEPTED.to_vec(), one_in: 12, ..Self::default() },
            _ => Self { kinds: some(&mut rng), one_in: 4 + rng.below(12), ..Self::default() },
        }
    }

    /// Arms a fault for the `after`-th request that it can hit, of one machine or of any.
    pub fn arm(&mut self, fault: Fault, machine: Option<usize>, after: u64) {
        self.armed.push((fault, machine, after));
    }

    /// Nothing fails any more.
    pub fn disarm(&mut self) {
        self.armed.clear();
        self.one_in = 0;
    }

    /// The fault that a request meets.
    pub(super) fn draw(
        &mut self,
        machine: usize,
        request: &Request,
        rng: &mut Rng,
    ) -> Option<Fault> {
        let hit = self.armed.iter_mut().position(|(fault, of, after)| {
            let hits = of.is_none_or(|of| of == machine) && fault.can_hit(request);
            if hits && *after > 0 {
                *after -= 1;
                return false;
            }
            hits
        });
        let fault = match hit {
            Some(at) => Some(self.armed.remove(at).0),
            None if self.one_in > 0 && !self.kinds.is_empty() && rng.one_in(self.one_in) => {
                let drawn = self.kinds[rng.below(self.kinds.len() as u64) as usize];
                drawn.can_hit(request).then_some(drawn)
            }
            None => None,
        };
        self.hits += u64::from(fault.is_some());
        fault
    }
}

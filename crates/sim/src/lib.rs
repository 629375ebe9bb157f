//! A deterministic world for the marcot engine.
//!
//! The real engine runs against a simulated disk, clock and source of random numbers, all driven by
//! one seed; crashes, kills and faults of the medium come at any I/O; what is found afterwards is
//! compared with a byte oracle. The same seed gives the same trace.
//!
//! ```text
//! operations   what users do: a generator, and scenarios written by hand
//! model        what must be there after each of them, and when one is cut off
//! runner       runs a sequence in two processes on one machine; perform calls the engine,
//!              aftermath settles what is true after errors and crashes
//! disk         the machine: live and durable state, torn and lost writes, faults, locks
//! crash        a copy of the machine crashes at an I/O, recovers, and is compared
//! observe      what a fresh process finds, and whether the oracle allows it
//! damage       the same where the medium lies: right bytes or an error
//! shrink       from a failure to a small sequence that still fails
//! ```
//!
//! Object stores join here with their back end: a simulated service beside [`disk`], behind the
//! same trait as the real one, whose faults are lost answers, answers that come twice, stale lists
//! and compare-and-swap that was done and reported as failed. Model, runner and oracle stay.

mod aftermath;
pub mod clock;
mod crash;
mod damage;
pub mod disk;
pub mod model;
mod observe;
pub mod operations;
mod perform;
pub mod random;
pub mod rules;
mod runner;
pub mod scenarios;
pub mod shrink;
mod workers;

pub use disk::{Fault, Machine};
pub use operations::{Operation, Profile, generate};
pub use rules::{Rule, Settings, Violation};
pub use runner::{Failure, Outcome, run};

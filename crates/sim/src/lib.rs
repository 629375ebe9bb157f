//! A deterministic world for the marcot engine.
//!
//! The real engine runs against a simulated disk, clock and source of random numbers. One seed drives all of
//! them. Crashes, kills and faults of the medium come at any I/O. The state found afterwards is compared with a
//! byte oracle. The same seed gives the same trace.
//!
//! ```text
//! operations   the actions of users: a generator, and scenarios written by hand
//! model        the oracle: the states allowed after each operation, and when one is interrupted
//! runner       runs a sequence in two processes on one machine; perform calls the engine,
//!              aftermath finds the true state after errors and crashes
//! disk         the machine: live and durable state, torn and lost writes, faults, locks
//! service      a service that keeps objects, with faults of its own, for several machines
//! crash        crashes of a copy of the machine at an I/O, its recovery, and the comparison
//! observe      the state that a fresh process finds, compared with the oracle
//! damage       the same after silent damage: right bytes or an error
//! shrink       makes a failing sequence as small as possible
//! ```

mod aftermath;
pub mod clock;
mod crash;
mod damage;
pub mod disk;
pub mod machines;
pub mod model;
mod observe;
pub mod operations;
mod perform;
pub mod random;
pub mod records;
pub mod rules;
mod runner;
pub mod scenarios;
pub mod service;
pub mod shrink;
mod workers;

pub use disk::{Fault, Machine};
pub use operations::{Operation, Profile, generate};
pub use rules::{Rule, Settings, Violation};
pub use runner::{Failure, Outcome, run};

//! A pool in a bucket of an object store. Below the records, segments and leases lies the service room:
//!
//! ```text
//! probe    settled            what callers use: every outcome is known, every promise was tried
//!             |
//!          counted            how many requests
//!             |
//!           store             one call, one request (object_store)
//!        /         \
//!     reason  <-   wire       what an outcome means; what the answer said
//! ```
//!
//! [`ObjectService`](service::ObjectService) is the seam. Simulators and tests put their own service below
//! [`Settled`].

pub mod cache;
mod connection;
pub mod counted;
pub mod envelope;
mod environment;
pub mod home;
mod keys;
pub mod leases;
mod location;
mod log;
pub mod memory;
mod names;
mod namespaces;
mod open;
mod probe;
mod profile;
mod reason;
pub mod records;
mod retry;
pub mod segments;
pub mod service;
mod settled;
mod store;
#[cfg(test)]
mod testing;
mod wire;

pub use connection::{Connection, connect, connect_with};
pub use environment::Environment;
pub use location::{Kind, Location};
pub use probe::{Findings, Guarantee, ProbeError, probe};
pub use retry::{Outage, Policy, Retry, Stop};
pub use settled::{CreateError, Settled};
pub use store::{Dialect, REQUEST_TIMEOUT, Store};

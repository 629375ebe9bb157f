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
//! `store` and what lies below need the feature `services`. [`ObjectService`](service::ObjectService) is the seam. Simulators and tests put their own service below
//! [`Settled`].

pub mod cache;
#[cfg(feature = "services")]
mod connection;
pub mod counted;
mod dialect;
pub mod envelope;
#[cfg_attr(
    not(feature = "services"),
    allow(dead_code, reason = "only clients of real services use all of it")
)]
mod environment;
pub mod home;
mod image_tallies;
mod keys;
pub mod leases;
#[cfg_attr(
    not(feature = "services"),
    allow(dead_code, reason = "only clients of real services use all of it")
)]
mod location;
mod log;
pub mod memory;
mod names;
mod namespaces;
#[cfg(feature = "services")]
mod open;
mod probe;
#[cfg_attr(
    not(feature = "services"),
    allow(dead_code, reason = "only clients of real services use all of it")
)]
mod profile;
#[cfg(feature = "services")]
mod reason;
pub mod records;
mod requests;
mod retry;
pub mod segments;
pub mod service;
mod settled;
#[cfg(feature = "services")]
mod store;
mod tails;
pub mod tally;
#[cfg(test)]
mod testing;
#[cfg(feature = "services")]
mod wire;

#[cfg(feature = "services")]
pub use connection::{Connection, connect, connect_with};
pub use dialect::Dialect;
pub use environment::{Environment, VARIABLES};
pub use location::{Kind, Location};
pub use probe::{Findings, Guarantee, ProbeError, probe};
pub use retry::{Outage, Patience, Policy, Retry, Stop};
pub use settled::{CreateError, Settled};
#[cfg(feature = "services")]
pub use store::{REQUEST_TIMEOUT, Store};

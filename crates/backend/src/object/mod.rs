//! A pool in a bucket of an object store.

pub mod cache;
pub mod envelope;
mod keys;
pub mod leases;
mod log;
pub mod memory;
mod names;
mod namespaces;
pub mod records;
pub mod segments;
pub mod service;

//! A pool in a bucket of an object store.

pub mod cache;
mod keys;
mod log;
pub mod memory;
pub mod segments;
pub mod service;

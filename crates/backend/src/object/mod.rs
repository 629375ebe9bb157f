//! A pool in a bucket of an object store.

pub mod cache;
pub mod memory;
pub mod service;

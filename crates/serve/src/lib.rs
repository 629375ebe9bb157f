//! marcot's front ends: what stands between an open image and those who use it.
//!
//! Protocol only. Everything about blocks, snapshots and clones is behind [`marcot::BlockDevice`].

mod buffer;
pub mod control;
mod credentials;
pub mod descriptors;
pub mod host;
pub mod mapping;
pub mod nbd;
mod pages;
mod poll;
mod slab;
mod wake;

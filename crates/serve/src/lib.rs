//! marcot's front ends: the protocols and devices by which clients use an open image.
//!
//! This crate knows protocols only. Blocks, snapshots and clones are behind [`marcot::BlockDevice`].

mod buffer;
pub mod control;
mod credentials;
pub mod descriptors;
pub mod directory;
mod fuse_mounts;
pub mod host;
pub mod mapping;
pub mod nbd;
mod pages;
mod poll;
mod slab;
mod wake;

//! Devices.
mod fuse;
mod image_file;
mod io;
mod loop_ioctl;
mod loopdev;

pub use fuse::FuseMount;
pub use io::{Completion, DeviceIo, Request};
pub use loopdev::{BackingFile, LoopDevice, LoopOptions};

#[cfg(test)]
mod tests;

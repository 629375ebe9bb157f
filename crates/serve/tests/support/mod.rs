//! What the integration tests share.

pub mod memory_device;
pub mod nbd_client;

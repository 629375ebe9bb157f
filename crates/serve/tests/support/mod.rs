//! Code shared by the integration tests.

pub mod memory_device;
pub mod nbd_client;

//! Serves a disk in memory over NBD, to try clients against: `memory-nbd SOCKET SIZE_BYTES`.
//!
//! A client may give any export name. The program ends when its standard input ends.

#[path = "../tests/support/memory_device.rs"]
mod memory_device;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use marcot::Result;
use marcot_serve::host::{HostHandle, HostOptions, ImageHost};
use marcot_serve::nbd::{
    Address, ExportName, Exports, NbdServer, SOCKET_MODE_DEFAULT, ServerOptions,
};
use memory_device::MemoryDevice;

struct OneDisk {
    size_bytes: u64,
}

impl Exports for OneDisk {
    fn list(&self) -> Result<Vec<ExportName>> {
        Ok(vec![self.describe("memory")?])
    }

    fn describe(&self, _name: &str) -> Result<ExportName> {
        let description = "a disk in memory".to_owned();
        Ok(ExportName { name: "memory".to_owned(), description })
    }

    fn open(&self, name: &str) -> Result<HostHandle> {
        let device = Box::new(MemoryDevice::new(self.size_bytes).unrecorded());
        ImageHost::start(device, HostOptions { name: name.to_owned(), ..HostOptions::default() })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: memory-nbd SOCKET SIZE_BYTES";
    let path = PathBuf::from(arguments.next().ok_or(usage)?);
    let size_bytes = arguments.next().ok_or(usage)?.parse()?;
    let options = ServerOptions {
        addresses: vec![Address::Unix { path, mode: SOCKET_MODE_DEFAULT }],
        idle_time: Duration::from_secs(3600),
        ..ServerOptions::default()
    };
    let server = NbdServer::bind(&options, Arc::new(OneDisk { size_bytes }))?;
    let stop = server.stop_handle();
    std::thread::spawn(move || {
        // A read error ends the program too.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stop.stop();
    });
    server.run()?;
    Ok(())
}

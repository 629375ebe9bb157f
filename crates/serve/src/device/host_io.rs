//! An image that is served by its own thread, as a mapped device sees it.

use std::os::fd::OwnedFd;

use marcot::Error;
use rustix::io::Errno;

use super::io::{Completion, DeviceIo, Request};
use crate::host::{self, DeviceRequest, HostHandle};
use crate::nbd::NbdConnection;

fn errno(error: &Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

impl DeviceIo for HostHandle {
    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.read_only()
    }

    fn submit(&self, request: Request, done: Completion) {
        let request = match request {
            Request::Read { offset, length } => {
                DeviceRequest::Read { offset, length: length as usize }
            }
            Request::Write { offset, data } => DeviceRequest::Write { offset, data, fua: false },
            Request::Discard { offset, length } => {
                DeviceRequest::Discard { offset, length, fua: false }
            }
            Request::Flush => DeviceRequest::Flush,
        };
        let done = move |outcome: marcot::Result<Vec<u8>>| done(outcome.map_err(|e| errno(&e)));
        self.submit(request, host::Completion::new(done));
    }

    fn serve_nbd(&self, socket: OwnedFd) -> Result<(), Errno> {
        let connection = NbdConnection {
            structured_replies: false,
            allocation_context: false,
            received: Vec::new(),
            peer: "the kernel".to_owned(),
        };
        self.attach_nbd(socket, connection).map_err(|e| errno(&e))
    }
}

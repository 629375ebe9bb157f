//! The kernel's NBD client, controlled over generic netlink (`linux/nbd-netlink.h`).
//!
//! The kernel gets one end of a socket pair for each connection. The image's thread has the other end. There
//! is no negotiation.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use marcot::{Error, ErrorKind, Result};
use neli::consts::nl::{GenlId, NlmF};
use neli::consts::socket::NlFamily;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, Nlmsghdr};
use neli::router::synchronous::NlRouter;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;

use super::daemon::program_of_server;
use crate::host::HostHandle;
use crate::nbd::NbdConnection;
use crate::nbd::wire::transmission_flag as flag;

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// The requests that the kernel's client can send.
const SERVER_FLAGS: u16 = flag::HAS_FLAGS
    | flag::SEND_FLUSH
    | flag::SEND_FUA
    | flag::SEND_TRIM
    | flag::SEND_WRITE_ZEROES
    | flag::CAN_MULTI_CONN;
/// Sector size of the device: partition tables in images assume it.
pub(super) const BLOCK_SIZE_BYTES: u64 = 512;

/// The properties of a device for the kernel.
pub(super) struct Config<'a> {
    pub size_bytes: u64,
    pub read_only: bool,
    pub dead_connection_timeout_s: u64,
    pub label: &'a str,
}

type Attributes = GenlBuffer<u16, Buffer>;

/// True where the kernel has the NBD driver. Tries to load its module first.
#[must_use]
pub fn available() -> bool {
    if !Path::new("/sys/module/nbd").exists() {
        // This may fail. What counts is whether the driver answers below.
        let _ = program_of_server(Path::new("modprobe"))
            .args(["-q", "nbd"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    Path::new("/sys/module/nbd").exists() && connect_router().is_ok()
}

/// Makes a new connection to the image, and returns the kernel's end.
pub(super) fn connection(host: &HostHandle, label: &str) -> Result<OwnedFd> {
    let (ours, kernels) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| Error::from_io("cannot make a socket pair", e.into()))?;
    let connection = NbdConnection {
        structured_replies: false,
        allocation_context: false,
        received: Vec::new(),
        peer: format!("kernel, {label}"),
        permit: None,
    };
    host.attach_nbd(ours, connection)?;
    Ok(kernels)
}

/// Connects a free device and returns its number.
pub(super) fn connect(config: &Config<'_>, sockets: &[OwnedFd]) -> Result<u32> {
    let mut attributes = describe(config, sockets)?;
    attributes.push(number(ATTR_SIZE_BYTES, config.size_bytes)?);
    attributes.push(number(ATTR_BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES)?);
    let read_only = if config.read_only { flag::READ_ONLY } else { 0 };
    attributes.push(number(ATTR_SERVER_FLAGS, u64::from(SERVER_FLAGS | read_only))?);
    let index = send(CMD_CONNECT, attributes, "connect a device")?;
    index.ok_or_else(|| Error::new(ErrorKind::Io, "the kernel did not name the device it made"))
}

/// Gives new connections to a device whose connections are dead.
pub(super) fn reconnect(index: u32, config: &Config<'_>, sockets: &[OwnedFd]) -> Result<()> {
    let mut attributes = describe(config, sockets)?;
    attributes.insert(0, number(ATTR_INDEX, index)?);
    send(CMD_RECONFIGURE, attributes, "connect the device again").map(drop)
}

/// Tells a device its new size. `label` must be the one that it was connected with.
pub(super) fn resize(index: u32, label: &str, size_bytes: u64) -> Result<()> {
    let attributes = vec![
        number(ATTR_INDEX, index)?,
        number(ATTR_SIZE_BYTES, size_bytes)?,
        attribute(ATTR_BACKEND_IDENTIFIER, label)?,
    ];
    send(CMD_RECONFIGURE, attributes, "resize the device").map(drop)
}

/// Disconnects a device. It is no error if it is not connected.
pub(super) fn disconnect(index: u32) -> Result<()> {
    let attributes = vec![number(ATTR_INDEX, index)?];
    send(CMD_DISCONNECT, attributes, "disconnect the device").map(drop)
}

fn describe(config: &Config<'_>, sockets: &[OwnedFd]) -> Result<Vec<Nlattr<u16, Buffer>>> {
    let mut items = attribute(ATTR_SOCKETS, Vec::<u8>::new())?;
    for socket in sockets {
        let fd = number(SOCK_FD, socket.as_raw_fd().cast_unsigned())?;
        let item = attribute(SOCK_ITEM, Vec::<u8>::new())?.nest(&fd).map_err(encoding)?;
        items = items.nest(&item).map_err(encoding)?;
    }
    Ok(vec![
        items,
        number(ATTR_DEAD_CONN_TIMEOUT, config.dead_connection_timeout_s)?,
        attribute(ATTR_BACKEND_IDENTIFIER, config.label)?,
    ])
}

fn attribute<P>(kind: u16, payload: P) -> Result<Nlattr<u16, Buffer>>
where
    P: neli::Size + neli::ToBytes,
{
    let nla_type = AttrTypeBuilder::default().nla_type(kind).build().map_err(encoding)?;
    NlattrBuilder::default().nla_type(nla_type).nla_payload(payload).build().map_err(encoding)
}

fn number<N>(kind: u16, value: N) -> Result<Nlattr<u16, Buffer>>
where
    N: neli::Size + neli::ToBytes,
{
    attribute(kind, value)
}

fn encoding(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("cannot encode a netlink message: {error}"))
}

fn connect_router() -> Result<(NlRouter, u16)> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the kernel's NBD driver does not answer: {error}"),
        )
    };
    let (router, _) =
        NlRouter::connect(NlFamily::Generic, None, Groups::empty()).map_err(|e| failed(&e))?;
    let family = router.resolve_genl_family(FAMILY).map_err(|e| failed(&e))?;
    Ok((router, family))
}

/// Sends a command. Returns the device number, where the kernel answers with one.
fn send(command: u8, attributes: Vec<Nlattr<u16, Buffer>>, what: &str) -> Result<Option<u32>> {
    let (router, family) = connect_router()?;
    let message = GenlmsghdrBuilder::<u8, u16>::default()
        .cmd(command)
        .version(VERSION)
        .attrs(attributes.into_iter().collect::<Attributes>())
        .build()
        .map_err(encoding)?;
    let failed = |error: &dyn std::fmt::Display| {
        let text = error.to_string();
        let kind =
            if text.contains("permitted") { ErrorKind::PermissionDenied } else { ErrorKind::Io };
        Error::new(kind, format!("the kernel refused to {what}: {text}"))
    };
    let answers = router
        .send::<_, _, GenlId, Genlmsghdr<u8, u16>>(
            family,
            NlmF::REQUEST | NlmF::ACK,
            NlPayload::Payload(message),
        )
        .map_err(|e| failed(&e))?;
    let mut index = None;
    for answer in answers {
        let answer: Nlmsghdr<GenlId, Genlmsghdr<u8, u16>> = answer.map_err(|e| failed(&e))?;
        if let Some(payload) = answer.get_payload() {
            let handle = payload.attrs().get_attr_handle();
            if let Ok(found) = handle.get_attr_payload_as::<u32>(ATTR_INDEX) {
                index = Some(found);
            }
        }
    }
    Ok(index)
}

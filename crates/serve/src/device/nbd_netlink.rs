//! The kernel's NBD driver, told over generic netlink what to connect to
//! (`include/uapi/linux/nbd-netlink.h`, `drivers/block/nbd.c`).
//!
//! The sockets are given to the kernel past the negotiation: size and flags go with the message.
//! Their other ends must be served already, because the kernel reads the partition table at once.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use marcot::{Error, ErrorKind, Result};
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::genl::{AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder};
use neli::nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder};
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;
use rustix::io::Errno;

const FAMILY: &str = "nbd";
const FAMILY_VERSION: u8 = 1;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const CMD_STATUS: u8 = 5;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_DEVICE_LIST: u16 = 9;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// `GENL_ID_CTRL`, and what it is asked for the number of a family.
const CONTROLLER: u16 = 0x10;
const CONTROLLER_VERSION: u8 = 2;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Transmission flags of the NBD protocol: has flags, flush, FUA, trim, write zeroes, several
/// connections see each other's writes.
const SERVER_FLAGS: u64 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;
const SERVER_FLAG_READ_ONLY: u64 = 1 << 1;
/// None: the device is to stay when its server dies or its last user closes it.
const CLIENT_FLAGS: u64 = 0;
/// Logical sector: what partition tables of images are made for, and what RBD's devices show.
const BLOCK_BYTES: u64 = 512;
/// A request is waited for without end: a store may be slow, and an error would be taken for a bad
/// medium. A server that dies is seen by its closed sockets.
const REQUEST_TIMEOUT_S: u64 = 0;

type Attribute = Nlattr<u16, Buffer>;
type Message = Nlmsghdr<u16, Genlmsghdr<u8, u16>>;

/// Number of a device: 3 for `/dev/nbd3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NbdIndex(pub u32);

impl NbdIndex {
    /// The device's number.
    ///
    /// # Errors
    /// `Invalid` for what is no `/dev/nbdN`.
    pub fn of(device: &Path) -> Result<Self> {
        let digits = device.to_str().and_then(|d| d.strip_prefix("/dev/nbd"));
        digits.and_then(|d| d.parse().ok()).map(Self).ok_or_else(|| {
            let message = format!("{} is no device of the NBD driver", device.display());
            Error::new(ErrorKind::Invalid, message)
        })
    }

    /// Such as `/dev/nbd3`.
    #[must_use]
    pub fn device(self) -> PathBuf {
        PathBuf::from(format!("/dev/nbd{}", self.0))
    }

    /// What `connect` named it, while it is connected; `None` also before Linux 5.14.
    #[must_use]
    pub fn backend(self) -> Option<String> {
        let text = std::fs::read_to_string(format!("/sys/block/nbd{}/backend", self.0));
        text.ok().map(|t| t.trim_end_matches('\n').to_owned())
    }

    /// True while it is connected, whether or not its server lives.
    #[must_use]
    pub fn is_connected(self) -> bool {
        Path::new(&format!("/sys/block/nbd{}/pid", self.0)).exists()
    }
}

/// What the kernel is told about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdConfig {
    /// This device only; `None` for one that is free.
    pub index: Option<NbdIndex>,
    /// Size of the image.
    pub size_bytes: u64,
    /// Let nobody write.
    pub read_only: bool,
    /// How long requests wait for a new server after theirs has died.
    pub dead_connection_timeout_s: u64,
    /// What the device is known by; [`reconnect`] must give the same.
    pub backend: String,
}

/// True where the kernel has the driver, after asking for its module.
#[must_use]
pub fn available() -> bool {
    let driver = Path::new("/sys/module/nbd");
    if !driver.exists() {
        // Fails where there is no such module; what counts is looked at next.
        let mut load = Command::new("modprobe");
        load.args(["-q", FAMILY]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = load.status();
    }
    // A driver that is part of the kernel need not have a directory; its family tells.
    Channel::open().is_ok()
}

/// Connects a device to `sockets`, whose other ends are served already. The kernel keeps them.
///
/// # Errors
/// `Unsupported` without the driver; `PermissionDenied`; `Busy` where the wanted device is
/// connected; `Io`.
pub fn connect(config: &NbdConfig, sockets: &[OwnedFd]) -> Result<NbdIndex> {
    let answer = Channel::open()?.ask(CMD_CONNECT, connecting(config, sockets), "connect")?;
    let index = answer.and_then(|a| a.attrs().get_attr_handle().get_attr_payload_as(ATTR_INDEX).ok());
    index.or(config.index.map(|i| i.0)).map(NbdIndex).ok_or_else(|| {
        Error::new(ErrorKind::Io, "the kernel did not name the NBD device that it connected")
    })
}

/// Gives a device whose server died new connections, in the place of the dead ones.
///
/// # Errors
/// As [`connect`]; `Invalid` where the device is not connected, or to another image.
pub fn reconnect(index: NbdIndex, config: &NbdConfig, sockets: &[OwnedFd]) -> Result<()> {
    let attributes = vec![
        number(ATTR_INDEX, index.0),
        number(ATTR_SIZE_BYTES, config.size_bytes),
        number(ATTR_DEAD_CONN_TIMEOUT, config.dead_connection_timeout_s),
        text(ATTR_BACKEND_IDENTIFIER, &config.backend),
        socket_list(sockets),
    ];
    Channel::open()?.ask(CMD_RECONFIGURE, attributes, "connect again").map(drop)
}

/// Tells a device its new size.
///
/// # Errors
/// As [`connect`].
pub fn resize(index: NbdIndex, backend: &str, size_bytes: u64) -> Result<()> {
    let attributes = vec![
        number(ATTR_INDEX, index.0),
        number(ATTR_SIZE_BYTES, size_bytes),
        text(ATTR_BACKEND_IDENTIFIER, backend),
    ];
    Channel::open()?.ask(CMD_RECONFIGURE, attributes, "resize").map(drop)
}

/// Disconnects a device: requests under way are answered or fail. One that is not connected is no
/// error.
///
/// # Errors
/// As [`connect`].
pub fn disconnect(index: NbdIndex) -> Result<()> {
    let attributes = vec![number(ATTR_INDEX, index.0)];
    Channel::open()?.ask(CMD_DISCONNECT, attributes, "disconnect").map(drop)
}

/// True where the kernel says that the device is connected.
///
/// # Errors
/// As [`connect`].
pub fn status(index: NbdIndex) -> Result<bool> {
    let attributes = vec![number(ATTR_INDEX, index.0)];
    let answer = Channel::open()?.ask(CMD_STATUS, attributes, "look at")?;
    Ok(answer.is_some_and(|answer| connected(&answer, index)))
}

fn connected(answer: &Genlmsghdr<u8, u16>, index: NbdIndex) -> bool {
    let handle = answer.attrs().get_attr_handle();
    let Ok(list) = handle.get_nested_attributes::<u16>(ATTR_DEVICE_LIST) else { return false };
    list.iter().filter(|item| *item.nla_type().nla_type() == DEVICE_ITEM).any(|item| {
        let Ok(item) = item.get_attr_handle::<u16>() else { return false };
        item.get_attr_payload_as::<u32>(DEVICE_INDEX) == Ok(index.0)
            && item.get_attr_payload_as::<u8>(DEVICE_CONNECTED) == Ok(1)
    })
}

fn connecting(config: &NbdConfig, sockets: &[OwnedFd]) -> Vec<Attribute> {
    let read_only = if config.read_only { SERVER_FLAG_READ_ONLY } else { 0 };
    let mut attributes = Vec::new();
    attributes.extend(config.index.map(|index| number(ATTR_INDEX, index.0)));
    attributes.extend([
        number(ATTR_SIZE_BYTES, config.size_bytes),
        number(ATTR_BLOCK_SIZE_BYTES, BLOCK_BYTES),
        number(ATTR_TIMEOUT, REQUEST_TIMEOUT_S),
        number(ATTR_SERVER_FLAGS, SERVER_FLAGS | read_only),
        number(ATTR_CLIENT_FLAGS, CLIENT_FLAGS),
        number(ATTR_DEAD_CONN_TIMEOUT, config.dead_connection_timeout_s),
        text(ATTR_BACKEND_IDENTIFIER, &config.backend),
        socket_list(sockets),
    ]);
    attributes
}

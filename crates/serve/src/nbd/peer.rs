//! The peer of a socket: for log lines, and for the limits of each peer.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::credentials::{self, Credentials};

/// Bits of the network in an IPv6 address. A subscriber can commonly choose the rest.
const IPV6_NETWORK_BITS: u32 = 64;

/// The key of a peer for limits. Connections with the same key count as one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum PeerKey {
    /// A user of this machine.
    Uid(u32),
    /// An address; for IPv6 only its network.
    Address(IpAddr),
    /// The kernel does not say.
    Unknown,
}

/// A client's name in log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Local { uid: u32, pid: u32 },
    Remote(SocketAddr),
    Unknown,
}

impl Peer {
    /// Asks the kernel who has connected.
    pub(super) fn of(socket: BorrowedFd<'_>) -> Self {
        match rustix::net::getpeername(socket).ok().flatten().map(SocketAddr::try_from) {
            Some(Ok(address)) => Self::Remote(address),
            // No address, or one of another family: this is a unix socket.
            _ => Self::of_unix(socket),
        }
    }

    fn of_unix(socket: BorrowedFd<'_>) -> Self {
        match credentials::of_peer(socket) {
            Ok(Credentials { uid, pid }) => Self::Local { uid, pid },
            Err(_) => Self::Unknown,
        }
    }

    pub(super) fn key(&self) -> PeerKey {
        match self {
            Self::Local { uid, .. } => PeerKey::Uid(*uid),
            Self::Remote(address) => PeerKey::Address(network_of(address.ip())),
            Self::Unknown => PeerKey::Unknown,
        }
    }
}

fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - IPV6_NETWORK_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, pid } => write!(f, "uid {uid} pid {pid}"),
            Self::Remote(address) => address.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_local_peer_is_its_user_and_a_remote_one_its_address() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let local = Peer::of(ours.as_fd());
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(local.key(), PeerKey::Uid(uid));
        assert_eq!(local.to_string(), format!("uid {uid} pid {}", std::process::id()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let remote = Peer::of(accepted.as_fd());
        assert_eq!(remote.key(), PeerKey::Address("127.0.0.1".parse().unwrap()));
        assert_eq!(remote.to_string(), client.local_addr().unwrap().to_string());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}

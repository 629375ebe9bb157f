//! `serve`: images as NBD exports, on a unix socket or a TCP port.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use marcot::Patience;
use marcot_client::exports::StoreExports;
use marcot_serve::descriptors::{self, Shares};
use marcot_serve::nbd::{
    Address, CONNECTIONS_DEFAULT, NbdServer, SOCKET_MODE_DEFAULT, ServerOptions,
};

use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::EINVAL;
use crate::failure::{Failure, Outcome};
use crate::output::{line, out};
use crate::session::Session;
use crate::{logging, signals};

const SERVE: &[Opt] = &[
    Opt::new("socket", Kind::Text, "unix socket to listen on [default: STORE/nbd.sock]"),
    Opt::new("socket-mode", Kind::Text, "access to the socket, octal [default: 600]"),
    Opt::new("tcp", Kind::Text, "address and port to listen on; neither encrypted nor guarded"),
    Opt::new("read-only", Kind::Flag, "let nobody write"),
    Opt::new(
        "force",
        Kind::Flag,
        "take images over that another host has open and that is gone for good, once each; what it has not flushed is lost",
    ),
    Opt::new(
        "connections-max",
        Kind::Range(1, CONNECTIONS_MAX),
        "clients at once [default: a quarter of the descriptors the process may have, at most 2048]",
    ),
    Opt::new(
        "images-max",
        Kind::Range(1, CONNECTIONS_MAX),
        "images open at once [default: what the descriptors the process may have are enough for]",
    ),
    Opt::new(
        "idle-time-s",
        Kind::Integer,
        "close images unused for so long, or as soon as a command needs one for itself [default: 30]",
    ),
];
/// More than Linux allows descriptors in a process.
const CONNECTIONS_MAX: u64 = 1 << 30;
/// Too many open files.
const EMFILE: i32 = 24;
const SOCKET_NAME: &str = "nbd.sock";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["serve"], "Serve images to NBD clients, opened when asked for.", serve)
        .own()
        .positionals(&[Positional {
            name: "pool-name",
            help: "pools to serve [default: all]",
            many: true,
            optional: false,
        }])
        .options(&[options::ONE_POOL, SERVE, &[options::MAP_MEMORY, options::IO_TIMEOUT]])
        .examples(&[
            (
                "serve --socket /run/marcot.sock kubernetes",
                "then qemu-img info 'nbd+unix:///kubernetes/vm-1?socket=/run/marcot.sock'",
            ),
            ("serve --tcp 10.0.0.5:10809", "then nbdinfo nbd://10.0.0.5/rbd/vm-1"),
        ])];

fn serve(session: &Session, args: &Args) -> Outcome {
    logging::start();
    session.set_patience(Patience::Guests { io_timeout: io_timeout(args.integer("io-timeout")) });
    let client = session.client()?;
    let mut pools = args.positionals().to_vec();
    pools.extend(args.text("pool").map(str::to_string));
    for name in &pools {
        session.pool(name)?;
    }
    let mut options = ServerOptions { addresses: addresses(session, args)?, ..Default::default() };
    let shares = shares(args, client.pools()?.len() as u64)?;
    options.connections_max = count(shares.connections);
    options.images_max = count(shares.images);
    options.opens_max = count(shares.opens);
    client.store().set_segment_files_max(count(shares.segment_files));
    client.store().set_pools_max(count(shares.pools));
    if let Some(seconds) = args.integer("idle-time-s") {
        options.idle_time = Duration::from_secs(seconds);
    }
    let exports = StoreExports::new(client, pools, args.flag("read-only"));
    let exports = exports.taking_over(args.flag("force"));
    let server = NbdServer::bind(&options, Arc::new(exports)).map_err(|e| Failure::system(&e))?;
    for address in server.addresses() {
        // The server also works if this cannot be written.
        let _ = out(&line(&format!("listening on {address}")));
    }
    signals::catch();
    let stop = server.stop_handle();
    std::thread::spawn(move || {
        signals::wait(|| false);
        stop.stop();
    });
    server.run()?;
    Ok(())
}

/// The time after which requests fail; 0 for never.
pub fn io_timeout(seconds: Option<u64>) -> Option<Duration> {
    seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// How clients and images share the descriptors.
fn shares(args: &Args, pools: u64) -> Outcome<Shares> {
    let limit = descriptors::raise_limit();
    let connections = args.integer("connections-max");
    let shares = descriptors::divide(limit, pools, connections, CONNECTIONS_DEFAULT as u64);
    let enough = |shares: &Shares| args.integer("images-max").is_none_or(|n| n <= shares.images);
    let Some(shares) = shares.filter(enough) else {
        let limit = limit.map_or("as many as it wants".to_string(), |limit| limit.to_string());
        let message = format!(
            "the process may have {limit} descriptors, which is too few: a client and each of the \
             {pools} pools take one, an open image up to {}; raise the limit (ulimit -n) or lower \
             --connections-max and --images-max",
            descriptors::IMAGE_DESCRIPTORS_MAX
        );
        return Err(Failure::new(EMFILE, message));
    };
    Ok(Shares { images: args.integer("images-max").unwrap_or(shares.images), ..shares })
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn addresses(session: &Session, args: &Args) -> Outcome<Vec<Address>> {
    let mut addresses = Vec::new();
    if let Some(text) = args.text("tcp") {
        addresses.push(Address::Tcp(resolve(text)?));
    }
    let socket = args.text("socket").map(PathBuf::from);
    if socket.is_some() || addresses.is_empty() {
        let path = match socket {
            Some(path) => path,
            None => session.client()?.directory().join(SOCKET_NAME),
        };
        addresses.push(Address::Unix { path, mode: socket_mode(args)? });
    }
    Ok(addresses)
}

fn socket_mode(args: &Args) -> Outcome<u32> {
    let Some(text) = args.text("socket-mode") else { return Ok(SOCKET_MODE_DEFAULT) };
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| crate::args::parse::invalid_argument("socket-mode"))
}

/// The first address of `HOST:PORT`.
fn resolve(text: &str) -> Outcome<SocketAddr> {
    let bad = |why: String| Failure::new(EINVAL, format!("cannot listen on '{text}': {why}"));
    let mut found = text.to_socket_addrs().map_err(|error| bad(error.to_string()))?;
    found.next().ok_or_else(|| bad("no such address".to_string()))
}

//! `perf image iostat` and `iotop` on an image that a server has open, and that a client reads and writes meanwhile.
#![allow(missing_docs)]

mod common;
#[path = "../../serve/tests/support/nbd_client.rs"]
mod nbd_client;
#[path = "common/server.rs"]
mod server;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{World, ran};
use nbd_client::NbdClient;
use server::Server;

const WRITE_BYTES: usize = 8 << 10;
const READ_BYTES: u32 = 4 << 10;

/// Runs `work` while a client writes 8 KiB and reads 4 KiB in turn, and returns what it returns.
fn while_used<T>(server: &Server, export: &str, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = NbdClient::connect(&server.socket, export);
            let data = vec![1; WRITE_BYTES];
            while !over.load(Ordering::Relaxed) {
                assert_eq!(client.write(0, 0, &data), 0);
                assert!(client.read(0, READ_BYTES).is_ok());
            }
        });
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        outcome
    })
}

fn world() -> World {
    let world = World::new();
    world.silently(&["namespace create rbd/ns", "create quiet --size 16M"]);
    world.silently(&["create busy --size 16M", "create rbd/ns/busy --size 16M"]);
    world
}

#[test]
fn iostat_tells_what_clients_do_and_leaves_out_images_that_are_not_used() {
    let world = world();
    let server = Server::start(&world, "");
    let (json, plain, elsewhere) = while_used(&server, "rbd/ns/busy", || {
        let json = world.rbd("perf image iostat --iterations 1 --format json");
        let plain = world.rbd("perf image iostat rbd --iterations 1 --sort-by read-bytes");
        (json, plain, world.rbd("perf image iostat rbd/ns --iterations 1 --format xml"))
    });
    assert_eq!((json.status, plain.status, elsewhere.status), (0, 0, 0), "{json:?} {plain:?}");
    let rows: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let [row] = rows.as_array().unwrap().as_slice() else { panic!("{json:?}") };
    assert_eq!(
        (row["pool"].as_str(), row["pool_namespace"].as_str(), row["image"].as_str()),
        (Some("rbd"), Some("ns"), Some("busy"))
    );
    let number = |key: &str| row[key].as_f64().unwrap();
    let (writes, reads) = (number("write_ops"), number("read_ops"));
    assert!(writes > 1.0 && reads > 1.0, "{json:?}");
    // Each request counts once, with all its bytes.
    assert!((number("write_bytes") / writes - WRITE_BYTES as f64).abs() < 1e-3, "{json:?}");
    assert!((number("read_bytes") / reads - f64::from(READ_BYTES)).abs() < 1e-3, "{json:?}");
    // They come one after the other, so there are no more than their latencies allow.
    for (ops, latency) in [(writes, "write_latency"), (reads, "read_latency")] {
        assert!(number(latency) > 0.0 && number(latency) * ops <= 1.01e9, "{json:?}");
    }
    let lines: Vec<_> = plain.out.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines[0].ends_with(" RD_LAT "), "{plain:?}");
    assert!(lines[1].starts_with("ns/busy  ") && lines[2].is_empty(), "{plain:?}");
    assert!(elsewhere.out.starts_with("<images><image><pool>rbd</pool>"), "{elsewhere:?}");
}

#[test]
fn what_iostat_cannot_do_is_refused() {
    let world = world();
    let pool = "rbd: mgr command failed: (2) No such file or directory: [errno 2] RADOS object not found (Pool \
                'nosuch' not found)\n";
    assert_eq!(world.rbd("perf image iostat nosuch"), common::says(pool, 2));
    assert_eq!(world.rbd("perf image iostat rbd/nosuch").status, 2);
    let refused = "rbd: the argument for option '--iterations' is invalid\n";
    assert_eq!(world.rbd("perf image iostat --iterations 0"), common::says(refused, 1));
    assert_eq!(world.rbd("perf image iostat --sort-by bogus").status, 1);
    let no_terminal = world.marcot("perf image iotop");
    assert_eq!(no_terminal.status, 25);
    assert!(no_terminal.err.contains("needs a terminal") && no_terminal.out.is_empty());
}

/// Types in a terminal of `script`, when the screen shows what was waited for: the column changes with `>`, `q` ends it
/// and gives the terminal back.
#[test]
fn iotop_draws_a_screen_and_obeys_keys() {
    let world = world();
    let server = Server::start(&world, "");
    let program = env!("CARGO_BIN_EXE_marcot");
    let line = format!(
        "shows() {{ until grep -qF -- \"$1\" seen 2>/dev/null; do sleep 0.05; done; }}
         (shows ' rbd/busy'; printf '>'; shows '>READS'; printf q; shows '[?1049l') |
             timeout 120 script -qefc '{program} perf image iotop' seen >/dev/null; echo status $?; cat seen"
    );
    let shown = while_used(&server, "rbd/busy", || {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", &line]).env("MARCOT_STORE", world.path("store")).env("TERM", "xterm");
        ran(shell.current_dir(world.path("")))
    });
    assert!(shown.out.starts_with("status 0\n"), "{shown:?}");
    assert!(
        shown.out.contains("\u{1b}[?1049h") && shown.out.contains("\u{1b}[?1049l"),
        "{shown:?}"
    );
    assert!(shown.out.contains(">WRITES ") && shown.out.contains(" rbd/busy\u{1b}[K"), "{shown:?}");
    assert!(!shown.out.contains("rbd/quiet"), "{shown:?}");
}

//! `ceph`: as much of it as programs ask that only want to know whether there is a cluster, and which pools it
//! has and what they hold. The answers are of this machine's store.

use super::Program;
use super::ceph_output::{self, End, FORMAT};
use super::ceph_pool::{self, PLACEMENT_GROUPS, PoolUse, error, invalid_command};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional};
use crate::errno::{EINVAL, EOPNOTSUPP};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table, err, line};
use crate::program;
use crate::session::Session;
use crate::size;

/// First words of Ceph's commands that only a cluster can answer.
const OF_CLUSTERS: &[&str] = &[
    "auth",
    "balancer",
    "config",
    "config-key",
    "crash",
    "daemon",
    "device",
    "features",
    "fs",
    "insights",
    "iostat",
    "log",
    "mds",
    "mgr",
    "mon",
    "nfs",
    "node",
    "orch",
    "osd",
    "pg",
    "progress",
    "quorum_status",
    "report",
    "service",
    "tell",
    "telemetry",
    "time-sync-status",
    "versions",
];
/// The address that stands for the store: programs want to read one.
const ADDRESS: &str = "127.0.0.1:6789/0";
const HEALTH: &str = "HEALTH_OK";
/// The name of the release that this program follows.
const RELEASE: &str = "pacific";
/// How Ceph writes a time that is not known.
const NO_TIME: &str = "0.000000";
/// What the release's monitors can do.
const MONITOR_FEATURES: [&str; 8] = [
    "kraken",
    "luminous",
    "mimic",
    "osdmap-prune",
    "nautilus",
    "octopus",
    "pacific",
    "elector-pinging",
];
/// Ceph's class of a medium that it knows nothing about.
const CLASS: &str = "hdd";

/// Options that `ceph` takes before any command.
const CLIENT: &[Opt] = &[
    Opt::new("connect-timeout", Kind::Integer, "accepted"),
    Opt::new("concise", Kind::Flag, "accepted"),
];

/// The program.
pub const CEPH: Program = Program {
    arrange: |arguments| {
        arguments.into_iter().map(|a| if a == "-s" { "status".into() } else { a }).collect()
    },
    unknown: |_, words| {
        let first = words.first().map_or("", String::as_str);
        let typed = words.join(" ");
        match OF_CLUSTERS.contains(&first) {
            true => error(
                EOPNOTSUPP,
                format!(
                    "'{typed}' asks a Ceph cluster; there is none here, only the pools of this machine ('rbd help')"
                ),
            ),
            false => Failure::bare(EINVAL, format!("no valid command found: {typed}"))
                .then_bare("Error EINVAL: invalid command"),
        }
    },
    ..Program::new("ceph", &[COMMANDS, ceph_pool::COMMANDS])
};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["status"], "Show the state of the store.", status)
        .options(&[CLIENT, FORMAT])
        .examples(&[("-s", "for people"), ("status --format json", "for programs")]),
    CommandSpec::new(&["health"], "Show whether the pools can be used.", health)
        .positionals(&[Positional::one("detail", "accepted")])
        .options(&[CLIENT, FORMAT]),
    CommandSpec::new(&["version"], "Show the version of this program.", version)
        .options(&[CLIENT, FORMAT]),
    CommandSpec::new(&["fsid"], "Show the number of the store.", fsid).options(&[CLIENT, FORMAT]),
    CommandSpec::new(&["df"], "Show what pools hold and what is free.", df)
        .positionals(&[Positional::one("detail", "'detail' for more columns")])
        .options(&[CLIENT, FORMAT])
        .examples(&[("df", "for people"), ("df detail --format json", "for programs")]),
    CommandSpec::new(&["mon", "dump"], "Show one monitor: this machine.", monitors)
        .options(&[CLIENT, FORMAT]),
];

/// The number of the store in the form of a UUID (RFC 9562, version 8).
fn store_uuid(session: &Session) -> Outcome<String> {
    /// An odd number without a pattern: it spreads the 64 bits of a number over the second half.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let first = session.client()?.store().id();
    let second = first.wrapping_mul(SPREAD);
    Ok(format!(
        "{:08x}-{:04x}-8{:03x}-8{:03x}-{:012x}",
        first >> 32,
        (first >> 16) & 0xffff,
        first & 0xfff,
        second >> 52,
        second & 0xffff_ffff_ffff
    ))
}

fn fsid(session: &Session, args: &Args) -> Outcome {
    let id = store_uuid(session)?;
    let document = || ("fsid", Node::Object(vec![("fsid", id.as_str().into())]));
    ceph_output::print(args, End::Bare, || line(&id), document)
}

fn version(session: &Session, args: &Args) -> Outcome {
    let text = program::version(session.program);
    let text = text.trim_end();
    let document = || ("version", Node::Object(vec![("version", text.into())]));
    ceph_output::print(args, End::Bare, || line(text), document)
}

fn health(session: &Session, args: &Args) -> Outcome {
    ceph_pool::all(session)?;
    let document = || ("health", health_node());
    ceph_output::print(args, End::Bare, || line(HEALTH), document)
}

fn health_node() -> Node {
    Node::Object(vec![
        ("status", HEALTH.into()),
        ("checks", Node::Object(Vec::new())),
        ("mutes", Node::Array(Vec::new())),
    ])
}

fn status(session: &Session, args: &Args) -> Outcome {
    let id = store_uuid(session)?;
    let pools = ceph_pool::all(session)?;
    let room = ceph_pool::room(&pools);
    let totals = Totals {
        pools: pools.len() as u64,
        groups: pools.len() as u64 * PLACEMENT_GROUPS,
        images: pools.iter().map(|pool| pool.images).sum(),
        bytes: room.used_bytes + room.free_bytes,
        room,
    };
    let document = || ("status", status_node(&id, &totals));
    ceph_output::print(args, End::Newline, || status_plain(&id, &totals), document)
}

/// What all pools hold.
struct Totals {
    pools: u64,
    groups: u64,
    images: u64,
    bytes: u64,
    room: ceph_pool::Room,
}

fn status_plain(id: &str, totals: &Totals) -> String {
    let Totals { pools, groups, images, bytes, room } = totals;
    let (used, free) = (size::show(room.used_bytes), size::show(room.free_bytes));
    let all = size::show(*bytes);
    format!(
        "  cluster:\n    id:     {id}\n    health: {HEALTH}\n \n  services:\n    mon: 1 daemons, quorum a\n    osd: 1 osds: 1 up, 1 in\n \n  data:\n    pools:   {pools} pools, {groups} pgs\n    objects: {images} objects, {used}\n    usage:   {used} used, {free} / {all} avail\n    pgs:     {groups} active+clean\n \n"
    )
}

/// What `ceph -s` tells programs. A store has no services, no file systems and no managers.
fn status_node(id: &str, totals: &Totals) -> Node {
    let object = Node::Object;
    let nothing = || Node::Object(Vec::new());
    let (zero, one) = (|| Node::Number(0), || Node::Number(1));
    let clean =
        object(vec![("state_name", "active+clean".into()), ("count", totals.groups.into())]);
    let members = vec![
        ("fsid", Node::from(id)),
        ("health", health_node()),
        ("election_epoch", one()),
        ("quorum", Node::array("rank", [zero()])),
        ("quorum_names", Node::array("id", [Node::from("a")])),
        ("quorum_age", zero()),
        (
            "monmap",
            object(vec![
                ("epoch", one()),
                ("min_mon_release_name", RELEASE.into()),
                ("num_mons", one()),
            ]),
        ),
        (
            "osdmap",
            object(vec![
                ("epoch", one()),
                ("num_osds", one()),
                ("num_up_osds", one()),
                ("osd_up_since", zero()),
                ("num_in_osds", one()),
                ("osd_in_since", zero()),
                ("num_remapped_pgs", zero()),
            ]),
        ),
        (
            "pgmap",
            object(vec![
                ("pgs_by_state", Node::array("pgs_by_state_element", [clean])),
                ("num_pgs", totals.groups.into()),
                ("num_pools", totals.pools.into()),
                ("num_objects", totals.images.into()),
                ("data_bytes", totals.room.used_bytes.into()),
                ("bytes_used", totals.room.used_bytes.into()),
                ("bytes_avail", totals.room.free_bytes.into()),
                ("bytes_total", totals.bytes.into()),
            ]),
        ),
        (
            "fsmap",
            object(vec![
                ("epoch", one()),
                ("by_rank", Node::Array(Vec::new())),
                ("up:standby", zero()),
            ]),
        ),
        (
            "mgrmap",
            object(vec![
                ("available", Node::Bool(false)),
                ("num_standbys", zero()),
                ("modules", Node::Array(Vec::new())),
                ("services", nothing()),
            ]),
        ),
        (
            "servicemap",
            object(vec![("epoch", one()), ("modified", NO_TIME.into()), ("services", nothing())]),
        ),
        ("progress_events", nothing()),
    ];
    Node::Object(members)
}

fn monitors(session: &Session, args: &Args) -> Outcome {
    let id = store_uuid(session)?;
    let plain = || {
        format!(
            "epoch 1\nfsid {id}\nlast_changed {NO_TIME}\ncreated {NO_TIME}\nmin_mon_release 16 ({RELEASE})\nelection_strategy: 1\n0: v2:{ADDRESS} mon.a\n"
        )
    };
    let document = || {
        let address = Node::Object(vec![
            ("type", "v2".into()),
            ("addr", ADDRESS.trim_end_matches("/0").into()),
            ("nonce", Node::Number(0)),
        ]);
        let monitor = Node::Object(vec![
            ("rank", Node::Number(0)),
            ("name", "a".into()),
            ("public_addrs", Node::Object(vec![("addrvec", Node::array("addr", [address]))])),
            ("addr", ADDRESS.into()),
            ("public_addr", ADDRESS.into()),
            ("priority", Node::Number(0)),
            ("weight", Node::Number(0)),
            ("crush_location", "{}".into()),
        ]);
        let features = Node::Object(vec![
            ("persistent", Node::array("bit_flag", MONITOR_FEATURES.map(Node::from))),
            ("optional", Node::Array(Vec::new())),
        ]);
        let members = vec![
            ("epoch", Node::Number(1)),
            ("fsid", Node::from(id.as_str())),
            ("modified", NO_TIME.into()),
            ("created", NO_TIME.into()),
            ("min_mon_release", Node::Number(16)),
            ("min_mon_release_name", RELEASE.into()),
            ("election_strategy", Node::Number(1)),
            ("disallowed_leaders: ", "".into()),
            ("stretch_mode", Node::Bool(false)),
            ("tiebreaker_mon", "".into()),
            ("removed_ranks: ", "".into()),
            ("features", features),
            ("mons", Node::array("mon", [monitor])),
            ("quorum", Node::array("mon", [Node::Number(0)])),
        ];
        ("monmap", Node::Object(members))
    };
    ceph_output::print(args, End::Newline, plain, document)?;
    err("dumped monmap epoch 1\n");
    Ok(())
}

fn df(session: &Session, args: &Args) -> Outcome {
    let detail = match args.positional(0) {
        None => false,
        Some("detail") => true,
        Some(word) => return Err(invalid_command(&format!("{word} not in detail"))),
    };
    let pools = ceph_pool::all(session)?;
    let room = ceph_pool::room(&pools);
    let total_bytes = room.used_bytes + room.free_bytes;
    let document = || {
        let raw = vec![
            ("total_bytes", total_bytes.into()),
            ("total_avail_bytes", room.free_bytes.into()),
            ("total_used_bytes", room.used_bytes.into()),
            ("total_used_raw_bytes", room.used_bytes.into()),
            ("total_used_raw_ratio", Node::Fraction17(share(room.used_bytes, total_bytes))),
        ];
        let mut stats = raw.clone();
        stats.extend([
            ("num_osds", Node::Number(1)),
            ("num_per_pool_osds", Node::Number(0)),
            ("num_per_pool_omap_osds", Node::Number(0)),
        ]);
        let members = vec![
            ("stats", Node::Object(stats)),
            ("stats_by_class", Node::Object(vec![(CLASS, Node::Object(raw))])),
            ("pools", Node::array("pool", pools.iter().map(|pool| pool_node(pool, detail)))),
        ];
        ("stats", Node::Object(members))
    };
    ceph_output::print(args, End::Newline, || df_plain(&pools, &room, detail), document)
}

/// The part of a whole, from 0 to 1.
#[allow(clippy::cast_precision_loss, reason = "it is shown to people with few digits")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn pool_node(pool: &PoolUse, detail: bool) -> Node {
    let kib = pool.used_bytes.div_ceil(1024);
    let mut stats: Vec<(&'static str, Node)> = vec![("stored", pool.used_bytes.into())];
    if detail {
        stats.push(("stored_data", pool.used_bytes.into()));
        stats.push(("stored_omap", Node::Number(0)));
    }
    stats.push(("objects", pool.images.into()));
    stats.push(("kb_used", kib.into()));
    stats.push(("bytes_used", pool.used_bytes.into()));
    if detail {
        stats.push(("data_bytes_used", pool.used_bytes.into()));
        stats.push(("omap_bytes_used", Node::Number(0)));
    }
    let used = share(pool.used_bytes, pool.used_bytes + pool.free_bytes);
    stats.push(("percent_used", Node::Fraction17(used)));
    stats.push(("max_avail", pool.free_bytes.into()));
    if detail {
        for name in ["quota_objects", "quota_bytes", "dirty", "rd", "rd_bytes", "wr", "wr_bytes"] {
            stats.push((name, Node::Number(0)));
        }
        stats.push(("compress_bytes_used", Node::Number(0)));
        stats.push(("compress_under_bytes", Node::Number(0)));
        stats.push(("stored_raw", pool.used_bytes.into()));
        stats.push(("avail_raw", pool.free_bytes.into()));
    }
    Node::Object(vec![
        ("name", pool.name.as_str().into()),
        ("id", pool.number.into()),
        ("stats", Node::Object(stats)),
    ])
}

fn df_plain(pools: &[PoolUse], room: &ceph_pool::Room, detail: bool) -> String {
    let percent = |part: u64, whole: u64| match share(part, whole) * 100.0 {
        small if small < 0.005 => "0".to_owned(),
        percent => format!("{percent:.2}"),
    };
    let total_bytes = room.used_bytes + room.free_bytes;
    let mut raw = Table::new()
        .column("CLASS", Align::Left)
        .column_aligned("SIZE", Align::Right, Align::Right)
        .column_aligned("AVAIL", Align::Right, Align::Right)
        .column_aligned("USED", Align::Right, Align::Right)
        .column_aligned("RAW USED", Align::Right, Align::Right)
        .column_aligned("%RAW USED", Align::Right, Align::Right);
    for class in [CLASS, "TOTAL"] {
        raw.row(vec![
            class.to_owned(),
            size::show(total_bytes),
            size::show(room.free_bytes),
            size::show(room.used_bytes),
            size::show(room.used_bytes),
            percent(room.used_bytes, total_bytes),
        ]);
    }
    let mut table = Table::new().column("POOL", Align::Left);
    let columns: &[&'static str] = match detail {
        false => &["ID", "PGS", "STORED", "OBJECTS", "USED", "%USED", "MAX AVAIL"],
        true => &[
            "ID",
            "PGS",
            "STORED",
            "(DATA)",
            "(OMAP)",
            "OBJECTS",
            "USED",
            "(DATA)",
            "(OMAP)",
            "%USED",
            "MAX AVAIL",
            "QUOTA OBJECTS",
            "QUOTA BYTES",
            "DIRTY",
            "USED COMPR",
            "UNDER COMPR",
        ],
    };
    for column in columns {
        table = table.column_aligned(column, Align::Right, Align::Right);
    }
    for pool in pools {
        let used = size::show(pool.used_bytes);
        let parts = || detail.then(|| [used.clone(), size::show(0)]).into_iter().flatten();
        let mut row = vec![pool.name.clone(), pool.number.to_string()];
        row.extend([PLACEMENT_GROUPS.to_string(), used.clone()]);
        row.extend(parts());
        row.extend([pool.images.to_string(), used.clone()]);
        row.extend(parts());
        row.push(percent(pool.used_bytes, pool.used_bytes + pool.free_bytes));
        row.push(size::show(pool.free_bytes));
        if detail {
            row.extend(["N/A", "N/A", "N/A", "0 B", "0 B"].map(str::to_owned));
        }
        table.row(row);
    }
    format!("--- RAW STORAGE ---\n{} \n--- POOLS ---\n{}", raw.render(), table.render())
}

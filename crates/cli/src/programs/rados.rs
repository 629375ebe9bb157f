//! `rados`: the list of pools and what they hold. There are no objects to read and write.

use super::Program;
use super::ceph_output::{self, FORMAT};
use super::ceph_pool::{self, PoolUse};
use crate::args::{Args, CommandSpec, options};
use crate::errno::{EINVAL, EOPNOTSUPP};
use crate::failure::{Failure, Outcome, STATUS_USAGE};
use crate::output::{Align, Node, Table, line};
use crate::session::Session;
use crate::size;

/// Commands of Ceph's `rados` that work on its objects.
const OF_OBJECTS: &[&str] = &[
    "append",
    "bench",
    "cleanup",
    "clearomap",
    "cp",
    "create",
    "export",
    "get",
    "getomapval",
    "getxattr",
    "import",
    "listomapkeys",
    "listomapvals",
    "listsnaps",
    "listwatchers",
    "listxattr",
    "lock",
    "ls",
    "lssnap",
    "mksnap",
    "mv",
    "notify",
    "purge",
    "put",
    "rm",
    "rmomapkey",
    "rmsnap",
    "rmxattr",
    "rollback",
    "setomapval",
    "setxattr",
    "stat",
    "touch",
    "truncate",
    "watch",
];

/// The program.
pub const RADOS: Program = Program {
    without_command: |program| {
        Err(Failure::usage(format!(
            "-h or --help for usage; {} has 'lspools' and 'df'",
            program.name
        )))
    },
    unknown: |_, words| {
        let first = words.first().map_or("", String::as_str);
        if OF_OBJECTS.contains(&first) {
            return Failure::new(
                EOPNOTSUPP,
                format!(
                    "'{first}' works on the objects of a Ceph cluster; a pool here holds images only ('rbd ls')"
                ),
            );
        }
        Failure::bare(STATUS_USAGE, format!("unrecognized command {first}; -h or --help for usage"))
            .then_bare(format!("error {EINVAL}: ({EINVAL}) Invalid argument"))
    },
    ..Program::new("rados", &[COMMANDS])
};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["lspools"], "List pools.", list_pools)
        .options(&[options::ONE_POOL, FORMAT])
        .examples(&[("lspools", "one name a line")]),
    CommandSpec::new(&["df"], "Show what pools hold.", usage)
        .options(&[options::ONE_POOL, FORMAT])
        .examples(&[("df --format json", "for programs")]),
];

fn list_pools(session: &Session, _args: &Args) -> Outcome {
    let names = session.client()?.pools()?;
    crate::output::out(&names.iter().map(|name| line(name)).collect::<String>())
}

fn usage(session: &Session, args: &Args) -> Outcome {
    let pools = ceph_pool::all(session)?;
    let wanted = args.text("pool");
    let shown: Vec<&PoolUse> =
        pools.iter().filter(|pool| wanted.is_none_or(|name| pool.name == name)).collect();
    let images: u64 = shown.iter().map(|pool| pool.images).sum();
    let room = ceph_pool::room(&pools);
    let plain = || {
        let mut table = Table::new()
            .column("POOL_NAME", Align::Left)
            .column("USED", Align::Right)
            .column("OBJECTS", Align::Right);
        for pool in &shown {
            table.row(vec![
                pool.name.clone(),
                size::show(pool.used_bytes),
                pool.images.to_string(),
            ]);
        }
        format!(
            "{}\ntotal_objects    {images}\ntotal_used       {}\ntotal_avail      {}\ntotal_space      {}\n",
            table.render(),
            size::show(room.used_bytes),
            size::show(room.free_bytes),
            size::show(room.used_bytes + room.free_bytes),
        )
    };
    let kib = |bytes: u64| Node::from(bytes.div_ceil(1024));
    let document = || {
        let pools = shown.iter().map(|pool| {
            Node::Object(vec![
                ("name", pool.name.as_str().into()),
                ("id", pool.number.into()),
                ("size_bytes", pool.used_bytes.into()),
                ("size_kb", kib(pool.used_bytes)),
                ("num_objects", pool.images.into()),
            ])
        });
        let members = vec![
            ("pools", Node::array("pool", pools)),
            ("total_objects", images.into()),
            ("total_used", kib(room.used_bytes)),
            ("total_avail", kib(room.free_bytes)),
            ("total_space", kib(room.used_bytes + room.free_bytes)),
        ];
        ("stats", Node::Object(members))
    };
    ceph_output::print_as_rados(args, plain, document)
}

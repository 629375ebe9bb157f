//! `rados`: the list of pools, what they hold, and the names of the objects by which RBD would know their images.
//! There are no objects to read and write.

use super::Program;
use super::ceph_output::{self, FORMAT};
use super::ceph_pool::{self, PoolUse};
use marcot::printable::printable;
use marcot_client::{Namespace, Pool};

use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::errno::{self, EINVAL, EOPNOTSUPP};
use crate::failure::{Failure, Outcome, STATUS_USAGE, strerror};
use crate::layout;
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

/// Columns of `df` after the pool's name.
const COLUMNS: [&str; 13] = [
    "USED",
    "OBJECTS",
    "CLONES",
    "COPIES",
    "MISSING_ON_PRIMARY",
    "UNFOUND",
    "DEGRADED",
    "RD_OPS",
    "RD",
    "WR_OPS",
    "WR",
    "USED COMPR",
    "UNDER COMPR",
];

const NAMESPACE: &[Opt] = &[
    Opt::new("namespace", Kind::Text, "namespace name").letter('N'),
    Opt::new("all", Kind::Flag, "of all namespaces"),
];

/// The program.
pub const RADOS: Program = Program {
    without_command: |program| {
        Err(Failure::usage(format!(
            "-h or --help for usage; {} has 'lspools', 'ls' and 'df'",
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
    CommandSpec::new(&["ls"], "List the objects by which RBD knows its images.", list_objects)
        .options(&[options::ONE_POOL, NAMESPACE, FORMAT])
        .examples(&[("-p rbd ls", "rbd_id.NAME and rbd_header.ID; no objects with data")]),
    CommandSpec::new(&["df"], "Show what pools hold.", usage)
        .options(&[options::ONE_POOL, FORMAT])
        .examples(&[("df --format json", "for programs")]),
];

fn list_pools(session: &Session, _args: &Args) -> Outcome {
    let names = session.client()?.pools()?;
    crate::output::out(&names.iter().map(|name| line(name)).collect::<String>())
}

/// The pool that a command works on.
fn pool(session: &Session, args: &Args) -> Outcome<Pool> {
    let Some(name) = args.text("pool") else {
        return Err(Failure::bare(STATUS_USAGE, "either pool name or pg id needs to be specified"));
    };
    opened(session, name)
}

fn opened(session: &Session, name: &str) -> Outcome<Pool> {
    session.client()?.pool(name).map_err(|error| {
        let errno = errno::of(&error);
        let why = strerror(errno);
        Failure::bare(STATUS_USAGE, format!("error opening pool {name}: ({errno}) {why}"))
    })
}

/// The objects by which RBD knows its images. There are none with their data.
fn objects(pool: &Pool, namespace: &Namespace) -> Outcome<Vec<String>> {
    let images = pool.images(namespace)?;
    let mut names = match images.is_empty() {
        true => Vec::new(),
        false => vec!["rbd_directory".to_owned()],
    };
    if *namespace == Namespace::DEFAULT {
        names.push("rbd_info".to_owned());
        if !pool.namespaces()?.is_empty() {
            names.push("rbd_namespace".to_owned());
        }
    }
    for (name, id) in images {
        names.push(format!("rbd_id.{name}"));
        names.push(format!("rbd_header.{id}"));
        let info = pool.known_image(name, id).info();
        if info.is_ok_and(|info| layout::has_feature(&info, "object-map")) {
            names.push(format!("rbd_object_map.{id}"));
        }
    }
    Ok(names)
}

fn list_objects(session: &Session, args: &Args) -> Outcome {
    let pool = pool(session, args)?;
    let all = args.flag("all");
    let mut namespaces = vec![Namespace::named(args.text("namespace").unwrap_or_default())];
    if all {
        namespaces = vec![Namespace::DEFAULT];
        namespaces.extend(pool.namespaces()?.into_iter().map(Namespace::named));
    }
    let mut found = Vec::new();
    for namespace in namespaces {
        if pool.has_namespace(&namespace)? {
            let names = objects(&pool, &namespace)?;
            found.extend(names.into_iter().map(|name| (namespace.to_string(), name)));
        }
    }
    let plain = || {
        let row = |(namespace, name): &(String, String)| match all {
            true => format!("{}\t{}", printable(namespace), line(name)),
            false => line(name),
        };
        found.iter().map(row).collect()
    };
    let node = |(namespace, name): &(String, String)| {
        let namespace = Node::from(namespace.as_str());
        Node::Object(vec![("namespace", namespace), ("name", name.as_str().into())])
    };
    let document = || ("objects", Node::array("object", found.iter().map(node)));
    ceph_output::print_as_rados(args, plain, document)
}

fn usage(session: &Session, args: &Args) -> Outcome {
    let pools = ceph_pool::all(session)?;
    let wanted = args.text("pool");
    if let Some(name) = wanted {
        opened(session, name)?;
    }
    let shown: Vec<&PoolUse> =
        pools.iter().filter(|pool| wanted.is_none_or(|name| pool.name == name)).collect();
    let images: u64 = shown.iter().map(|pool| pool.images).sum();
    let room = ceph_pool::room(&pools);
    let plain = || {
        let mut table = Table::new().column("POOL_NAME", Align::Left);
        for column in COLUMNS {
            table = table.column_aligned(column, Align::Right, Align::Right);
        }
        for pool in &shown {
            let images = pool.images.to_string();
            let mut row = vec![pool.name.clone(), size::show(pool.used_bytes), images.clone()];
            row.extend(["0".to_owned(), images]);
            row.extend(["0", "0", "0", "0", "0 B", "0", "0 B", "0 B", "0 B"].map(str::to_owned));
            table.row(row);
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
                ("num_object_clones", Node::Number(0)),
                ("num_object_copies", pool.images.into()),
                ("num_objects_missing_on_primary", Node::Number(0)),
                ("num_objects_unfound", Node::Number(0)),
                ("num_objects_degraded", Node::Number(0)),
                ("read_ops", Node::Number(0)),
                ("read_bytes", Node::Number(0)),
                ("write_ops", Node::Number(0)),
                ("write_bytes", Node::Number(0)),
                ("compress_bytes_used", Node::Number(0)),
                ("compress_under_bytes", Node::Number(0)),
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

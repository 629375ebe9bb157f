//! `device list`, `map`, `unmap`, `attach`: images as block devices of this machine.
//!
//! This file reads the command line and prints; [`crate::devices`] does the work.

use super::IMAGE_OR_SNAP_SPEC;
use marcot_serve::mapping::{Driver, MappedRecord};

use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::devices;
use crate::failure::{EINVAL, EOPNOTSUPP, Failure, Outcome, strerror};
use crate::output::{Align, Node, Table, out};
use crate::session::Session;
use crate::spec;

/// `krbd` and `ggate` are names that scripts for `rbd` give.
const TYPE: &[Opt] = &[Opt::new(
    "device-type",
    Kind::Choice(&["nbd", "fuse", "krbd", "ggate"]),
    "device type [nbd, fuse; default: what the machine has]",
)
.letter('t')];
const MAP: &[Opt] = &[
    Opt::new("read-only", Kind::Flag, "let nobody write"),
    Opt::new("exclusive", Kind::Flag, "accepted: an image always has one writer"),
    Opt::new("options", Kind::Text, "device specific options: ro, rw").letter('o'),
];
const UNMAP: &[Opt] = &[Opt::new(
    "options",
    Kind::Text,
    "device specific options: force (also if it is in use: its users get I/O errors)",
)
.letter('o')];
const DEVICE: &[Opt] = &[Opt::new("device", Kind::Text, "specify device path")];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        words: &["device", "list"],
        aliases: &[&["showmapped"], &["device", "ls"]],
        about: "List mapped rbd images.",
        positionals: &[],
        options: &[TYPE, options::FORMAT],
        examples: &[("device list", "images, snapshots and their devices")],
        hidden: false,
        run: list,
    },
    CommandSpec {
        words: &["device", "map"],
        aliases: &[&["map"]],
        about: "Map an image to a block device.",
        positionals: &[IMAGE_OR_SNAP_SPEC],
        options: &[TYPE, options::SNAP, MAP, &[options::MAP_MEMORY]],
        examples: &[
            ("device map vm-1", "prints the device"),
            ("device map template@v1", "a snapshot, read-only"),
        ],
        hidden: false,
        run: map,
    },
    CommandSpec {
        words: &["device", "unmap"],
        aliases: &[&["unmap"]],
        about: "Unmap a rbd device.",
        positionals: &[Positional::one(
            "image-or-snap-or-device-spec",
            "image, snapshot, or device specification \
             ([<pool-name>/[<namespace>/]]<image-name>[@<snap-name>] or <device-path>)",
        )],
        options: &[TYPE, options::SNAP, UNMAP],
        examples: &[
            ("device unmap /dev/nbd0", ""),
            ("device unmap vm-1", "by image"),
            ("device unmap -o force vm-1", "though it is mounted; what was not synced is lost"),
        ],
        hidden: false,
        run: unmap,
    },
    CommandSpec {
        words: &["device", "attach"],
        aliases: &[],
        about: "Serve a device again whose server has died.",
        positionals: &[IMAGE_OR_SNAP_SPEC],
        options: &[TYPE, options::SNAP, DEVICE, MAP, &[options::MAP_MEMORY]],
        examples: &[("device attach --device /dev/nbd0 vm-1", "without unmounting it")],
        hidden: false,
        run: attach,
    },
    CommandSpec {
        words: &["device", "server"],
        aliases: &[],
        about: "Serve a device; started by 'device map'.",
        positionals: &[],
        options: &[],
        examples: &[],
        hidden: true,
        run: serve_device,
    },
];

fn serve_device(_session: &Session, _args: &Args) -> Outcome {
    devices::serve()
}

/// `nbd` or `fuse`; what other names mean is what the machine has.
fn kind(args: &Args) -> Outcome<Option<Driver>> {
    match args.text("device-type") {
        Some("ggate") => Err(Failure::new(EOPNOTSUPP, "ggate is only supported on FreeBSD")),
        Some("nbd") => Ok(Some(Driver::Nbd)),
        Some("fuse") => Ok(Some(Driver::Fuse)),
        _ => Ok(None),
    }
}

fn list(_session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    kind(args)?;
    let mapped = devices::list()?;
    let document = || ("devices", Node::array("device", mapped.iter().map(node)));
    format.print(|| table(&mapped), document)
}

/// A dash stands for no snapshot.
fn shown_snap(mapped: &MappedRecord) -> &str {
    if mapped.snap.is_empty() { "-" } else { &mapped.snap }
}

fn shown_device(mapped: &MappedRecord) -> String {
    mapped.device.display().to_string()
}

fn table(mapped: &[MappedRecord]) -> String {
    let headers = ["id", "pool", "namespace", "image", "snap", "device"];
    let mut table =
        headers.into_iter().fold(Table::new(), |table, name| table.column(name, Align::Left));
    for m in mapped {
        let (id, device) = (m.id.to_string(), shown_device(m));
        let cells = [&id, &m.pool, &m.namespace, &m.image, shown_snap(m), &device];
        table.row(cells.map(str::to_string).to_vec());
    }
    table.render()
}

fn node(mapped: &MappedRecord) -> Node {
    Node::Object(vec![
        ("id", mapped.id.to_string().as_str().into()),
        ("pool", mapped.pool.as_str().into()),
        ("namespace", mapped.namespace.as_str().into()),
        ("name", mapped.image.as_str().into()),
        ("snap", shown_snap(mapped).into()),
        ("device", shown_device(mapped).as_str().into()),
    ])
}

fn map(session: &Session, args: &Args) -> Outcome {
    map_to(session, args, None)
}

fn attach(session: &Session, args: &Args) -> Outcome {
    map_to(session, args, Some(args.require("device")?))
}

fn map_to(session: &Session, args: &Args, device: Option<&str>) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP)?;
    let kind = kind(args)?;
    let read_only = read_only(args)?;
    let image = session.find(&target)?;
    if !target.snap.is_empty() {
        image.snapshot(&target.snap)?;
    }
    let request =
        devices::Request { image: &image, target: &target, read_only, driver: kind, device };
    out(&format!("{}\n", devices::map(session, &request)?))
}

/// `--read-only`, or `ro` among the options.
fn read_only(args: &Args) -> Outcome<bool> {
    let mut read_only = args.flag("read-only");
    let given = args.text("options").unwrap_or_default();
    for option in given.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "read_only" => read_only = true,
            "rw" => read_only = false,
            // Tuning of the Ceph client, of no meaning here.
            "exclusive" | "noshare" | "share" | "nocrc" | "crc" => {}
            other => {
                return Err(Failure::invalid(format!("unknown map option '{other}'"))
                    .then("couldn't parse map options"));
            }
        }
    }
    Ok(read_only)
}

/// `force` among the options.
fn force(args: &Args) -> Outcome<bool> {
    let given = args.text("options").unwrap_or_default();
    match given.split(',').find(|option| !matches!(*option, "" | "force")) {
        None => Ok(given.contains("force")),
        Some(other) => Err(Failure::invalid(format!("unknown unmap option '{other}'"))
            .then("couldn't parse unmap options")),
    }
}

fn unmap(_session: &Session, args: &Args) -> Outcome {
    kind(args)?;
    let force = force(args)?;
    let path = args.positional(0).filter(|text| text.starts_with("/dev/"));
    if let Some(path) = path {
        let found = devices::list()?.into_iter().find(|m| m.device.as_os_str() == path);
        let mapped = found.ok_or_else(|| not_a_device(path))?;
        return devices::unmap(&mapped, force);
    }
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP.optional())?;
    if target.image.is_empty() {
        return Err(Failure::invalid("unmap requires either image name or device path"));
    }
    let found = devices::list()?.into_iter().find(|mapped| shows(mapped, &target));
    let mapped = found.ok_or_else(|| not_mapped(&target))?;
    devices::unmap(&mapped, force)
}

fn shows(mapped: &MappedRecord, target: &Target) -> bool {
    let of_device = (&mapped.pool, &mapped.namespace, &mapped.image, &mapped.snap);
    let pool = target.pool_or_default().to_string();
    of_device == (&pool, &target.namespace, &target.image, &target.snap)
}

fn not_a_device(path: &str) -> Failure {
    use std::os::unix::fs::FileTypeExt;
    let block = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    let what = if block { "is not a mapped device" } else { "is not a block device" };
    unmap_failed(format!("'{path}' {what}"))
}

fn not_mapped(target: &Target) -> Failure {
    let pool = target.pool_or_default();
    let name = spec::show(pool, &target.namespace, &target.image, &target.snap);
    unmap_failed(format!("{name}: not a mapped image or snapshot"))
}

fn unmap_failed(why: String) -> Failure {
    Failure::invalid(why).then(format!("unmap failed: ({EINVAL}) {}", strerror(EINVAL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_rbds() {
        let mapped = |id: u32, namespace: &str, image: &str, snap: &str| MappedRecord {
            id,
            pid: 1,
            started_ticks: 1,
            store: "/store".into(),
            pool: "rbd".into(),
            namespace: namespace.into(),
            image: image.into(),
            snap: snap.into(),
            device: format!("/dev/rbd{id}").into(),
            driver: Driver::Nbd,
            read_only: false,
            mount_directory: "/run/marcot/0.mount".into(),
        };
        assert_eq!(
            table(&[mapped(0, "", "img", ""), mapped(10, "ns1", "long-name", "snap1")]),
            "id  pool  namespace  image      snap   device    \n\
             0   rbd              img        -      /dev/rbd0 \n\
             10  rbd   ns1        long-name  snap1  /dev/rbd10\n"
        );
    }

    #[test]
    fn what_is_not_mapped_is_said_in_rbds_words() {
        let target = Target { image: "a".into(), ..Target::default() };
        assert_eq!(
            not_mapped(&target).render("rbd"),
            "rbd: rbd/a: not a mapped image or snapshot\n\
             rbd: unmap failed: (22) Invalid argument\n"
        );
    }
}

//! `diff`: where content differs from a snapshot, or from nothing.

use marcot::command::DiffExtent;
use marcot::{Command, Reply};

use super::IMAGE_OR_SNAP_SPEC;
use crate::access;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::content::strange_reply;
use crate::failure::{EINVAL, ENOENT, Failure, Outcome};
use crate::output::{Align, Node, Table};
use crate::session::Session;

const ERROR: &str = "diff error";
const DIFF: &[Opt] = &[
    Opt::new("from-snap", Kind::Text, "snapshot starting point"),
    Opt::new("whole-object", Kind::Flag, "compare whole object"),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec {
    words: &["diff"],
    aliases: &[],
    about: "Print extents that differ since a previous snap, or image creation.",
    positionals: &[IMAGE_OR_SNAP_SPEC],
    options: &[options::SNAP, DIFF, options::FORMAT],
    examples: &[
        ("diff vm-1", "where there is data"),
        ("diff --from-snap monday vm-1@tuesday", "what changed between two snapshots"),
    ],
    hidden: false,
    run: diff,
}];

fn diff(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP)?;
    let image = session.find(&target)?;
    let info = image.info()?;
    let to_snap = match target.snap.as_str() {
        "" => None,
        name => Some(image.snapshot(name)?),
    };
    let from_snap = args.text("from-snap");
    if let Some(name) = from_snap {
        let from = info.snapshots.iter().find(|s| s.name == name && !s.trashed);
        let from = from.ok_or_else(|| {
            Failure::errno(ERROR, ENOENT).because(format!("there is no snapshot '{name}'"))
        })?;
        if to_snap.as_ref().is_some_and(|to| to.id < from.id) {
            let cause = format!("snapshot '{name}' is not older than the one to compare with");
            return Err(Failure::errno(ERROR, EINVAL).because(cause));
        }
    }
    let size_bytes = to_snap.as_ref().map_or(info.size_bytes, |s| s.size_bytes);
    let command = Command::Diff {
        from_snap: from_snap.map(str::to_string),
        to_snap: to_snap.map(|s| s.name),
        offset: 0,
        length: size_bytes,
    };
    let failed = |error: marcot::Error| Failure::engine(ERROR, &error);
    let reply = access::inspect(&image.pool, image.id, &command).map_err(failed)?;
    let Reply::Diff { mut extents } = reply else { return Err(failed(strange_reply())) };
    if from_snap.is_none() {
        extents.retain(|extent| extent.data);
    }
    let object_bytes = 1 << info.order;
    if args.flag("whole-object") {
        extents = widen(&extents, object_bytes, size_bytes);
    }
    let extents = split(&extents, object_bytes);
    format.print(|| plain(&extents), || ("extents", document(&extents)))
}

/// Grows extents to whole objects; an object with any data is data.
fn widen(extents: &[DiffExtent], object_bytes: u64, size_bytes: u64) -> Vec<DiffExtent> {
    let mut wide: Vec<DiffExtent> = Vec::new();
    for piece in split(extents, object_bytes) {
        let offset = piece.offset / object_bytes * object_bytes;
        match wide.last_mut() {
            Some(last) if last.offset == offset => last.data |= piece.data,
            _ => {
                let length = object_bytes.min(size_bytes.saturating_sub(offset));
                wide.push(DiffExtent { offset, length, data: piece.data });
            }
        }
    }
    wide
}

/// Splits extents at the edges of objects, as `rbd` reports them.
fn split(extents: &[DiffExtent], object_bytes: u64) -> Vec<DiffExtent> {
    let mut pieces = Vec::new();
    for extent in extents {
        let end = extent.offset + extent.length;
        let mut offset = extent.offset;
        while offset < end {
            let next = ((offset / object_bytes + 1) * object_bytes).min(end);
            pieces.push(DiffExtent { offset, length: next - offset, data: extent.data });
            offset = next;
        }
    }
    pieces
}

fn plain(extents: &[DiffExtent]) -> String {
    let mut table = Table::new()
        .column("Offset", Align::Left)
        .column("Length", Align::Left)
        .column("Type", Align::Left);
    for extent in extents {
        let kind = if extent.data { "data" } else { "zero" };
        table.row(vec![extent.offset.to_string(), extent.length.to_string(), kind.to_string()]);
    }
    table.render()
}

fn document(extents: &[DiffExtent]) -> Node {
    let node = |extent: &DiffExtent| {
        Node::Object(vec![
            ("offset", extent.offset.into()),
            ("length", extent.length.into()),
            ("exists", Node::quoted_bool(extent.data)),
        ])
    };
    Node::array("extent", extents.iter().map(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn extent(offset: u64, length: u64, data: bool) -> DiffExtent {
        DiffExtent { offset, length, data }
    }

    #[test]
    fn extents_are_cut_at_objects() {
        let pieces = split(&[extent(2, 7, true)], 4);
        assert_eq!(pieces, [extent(2, 2, true), extent(4, 4, true), extent(8, 1, true)]);
    }

    #[test]
    fn whole_objects_end_with_the_image() {
        let wide = widen(&[extent(1, 1, false), extent(3, 1, true), extent(9, 1, false)], 4, 10);
        assert_eq!(wide, [extent(0, 4, true), extent(8, 2, false)]);
    }

    #[test]
    fn the_table_is_rbds() {
        assert_eq!(
            plain(&[extent(0, 4_194_304, true), extent(4_194_304, 4_194_304, true)]),
            "Offset   Length   Type\n0        4194304  data\n4194304  4194304  data\n"
        );
    }
}

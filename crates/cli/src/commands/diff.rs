//! `diff`: where content differs from a snapshot, or from an image without data.

use marcot_client::inspect::{Diff, DiffExtent};

use super::IMAGE_OR_SNAP_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::errno::{EINVAL, ENOENT};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table};
use crate::session::{self, Session};

const ERROR: &str = "diff error";
const DIFF: &[Opt] = &[
    Opt::new("from-snap", Kind::Text, "snapshot starting point"),
    Opt::new("whole-object", Kind::Flag, "compare whole object"),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec::new(
    &["diff"],
    "Print extents that differ since a previous snap, or image creation.",
    diff,
)
.positionals(&[IMAGE_OR_SNAP_SPEC])
.options(&[options::SNAP, DIFF, options::FORMAT])
.examples(&[
    ("diff vm-1", "where there is data"),
    ("diff --from-snap monday vm-1@tuesday", "what changed between two snapshots"),
])];

fn diff(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP)?;
    let format = args.format()?;
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    let to_snap = match target.snap.as_str() {
        "" => None,
        name => Some(session::snapshot(&image, name)?),
    };
    let from_snap = args.text("from-snap");
    if let Some(name) = from_snap {
        let from = info.snapshots.iter().find(|s| s.name == name && s.is_of_users());
        let from = from.ok_or_else(|| {
            Failure::errno(ERROR, ENOENT).because(format!("there is no snapshot '{name}'"))
        })?;
        if to_snap.as_ref().is_some_and(|to| to.id < from.id) {
            let cause = format!("snapshot '{name}' is not older than the one to compare with");
            return Err(Failure::errno(ERROR, EINVAL).because(cause));
        }
    }
    let size_bytes = to_snap.as_ref().map_or(info.size_bytes, |s| s.size_bytes);
    let to_snap = to_snap.map(|s| s.name);
    let compare = |from: Option<&str>, offset: u64, length: u64| {
        let diff = Diff { from, to: to_snap.as_deref(), offset, length };
        image.diff(&diff).map_err(|error| Failure::engine(ERROR, &error))
    };
    let mut extents = compare(from_snap, 0, size_bytes)?;
    if from_snap.is_none() {
        extents.retain(|extent| extent.data);
    }
    let object_bytes = 1 << info.order;
    if args.flag("whole-object") {
        extents = widen(&extents, object_bytes, size_bytes);
        if let Some((offset, length)) = hull(extents.iter().filter(|extent| !extent.data)) {
            let left = compare(None, offset, length)?;
            keep_objects(&mut extents, &left, object_bytes);
        }
    }
    let extents = split(&extents, object_bytes);
    format.print(|| plain(&extents), || ("extents", document(&extents)))
}

/// The range from the first to the last of these extents: offset and length.
fn hull<'a>(extents: impl Iterator<Item = &'a DiffExtent>) -> Option<(u64, u64)> {
    let ends = extents.map(|extent| (extent.offset, extent.offset + extent.length));
    let (from, to) = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
    Some((from, to - from))
}

/// Marks objects that still hold data as data. As with RBD, only an object without any data is
/// zero: a program that copies whole objects would lose the rest otherwise.
fn keep_objects(objects: &mut [DiffExtent], left: &[DiffExtent], object_bytes: u64) {
    let left = split(left, object_bytes);
    let mut left = left.iter().filter(|piece| piece.data).peekable();
    for object in objects {
        while left.next_if(|piece| piece.offset < object.offset).is_some() {}
        let end = object.offset + object.length;
        object.data |= left.peek().is_some_and(|piece| piece.offset < end);
    }
}

/// Grows extents to whole objects; an object with new data is data.
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
    fn an_object_that_lost_only_a_part_is_data() {
        let mut wide = widen(&[extent(1, 1, false), extent(4, 4, false)], 4, 10);
        assert_eq!(wide, [extent(0, 4, false), extent(4, 4, false)]);
        assert_eq!(hull(wide.iter()), Some((0, 8)));
        keep_objects(&mut wide, &[extent(0, 1, true), extent(8, 2, true)], 4);
        assert_eq!(wide, [extent(0, 4, true), extent(4, 4, false)]);
        let mut last = [extent(0, 4, false), extent(8, 2, false)];
        keep_objects(&mut last, &[extent(3, 6, true)], 4);
        assert_eq!(last, [extent(0, 4, true), extent(8, 2, true)]);
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

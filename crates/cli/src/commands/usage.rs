//! `disk-usage`: provisioned and used bytes of images and snapshots.

use std::collections::HashMap;

use marcot::{ErrorKind, ImageId};
use marcot_client::inspect::UsageRow;
use marcot_client::{Image, ImageName, Pool};

use super::IMAGE_OR_SNAP_SPEC;
use super::list::{Unread, tell_unread};
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::errno::{EINVAL, ENOENT};
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{Align, Node, Table};
use crate::session::Session;
use crate::size;

const USAGE: &[Opt] = &[
    Opt::new("from-snap", Kind::Text, "snapshot starting point"),
    Opt::new("exact", Kind::Flag, "compute exact disk usage (slow)"),
    Opt::new("merge-snapshots", Kind::Flag, "merge snapshot sizes with its image"),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec::new(
    &["disk-usage"],
    "Show disk usage stats for pool, image or snapshot.",
    usage,
)
.aliases(&[&["du"]])
.positionals(&[IMAGE_OR_SNAP_SPEC])
.options(&[options::SNAP, options::FORMAT, USAGE])
.examples(&[
    ("du", "every image of the pool rbd"),
    ("du vm-1", "an image and its snapshots; data of the parent does not count"),
])];

struct Row {
    image: String,
    id: ImageId,
    usage: UsageRow,
}

fn usage(session: &Session, args: &Args) -> Outcome {
    let from = args.text("from-snap").filter(|name| !name.is_empty());
    let mut wanted = Wanted::IMAGE_OR_SNAP;
    wanted.image_required = args.flag("from-snap");
    let target = names::target(args, &mut 0, wanted)?;
    let format = args.format()?;
    let pool = session.pool_of(&target)?;
    let whole_pool = target.image.is_empty();
    let chosen = Chosen { from, to: (!target.snap.is_empty()).then_some(&*target.snap) };
    let mut rows = Vec::new();
    let mut unread = Unread::new();
    let images = chosen_images(&pool, &target)?;
    let none = images.is_empty();
    for (name, id) in images {
        let image = pool.known_image(ImageName::new(&*name).in_namespace(target.namespace()), id);
        match image_rows(&image, &name) {
            // Removed since the names were read.
            Err(failure) if whole_pool && failure.status == ENOENT => {}
            Err(failure) if whole_pool => unread.push((name, failure)),
            found => match chosen.of(found?)? {
                Some(found) => rows.extend(found),
                // Between a snapshot and itself there is nothing, and `rbd` does not even print a head.
                None => return Ok(()),
            },
        }
    }
    let totals = Totals::of(&rows, chosen.to.is_some());
    if args.flag("merge-snapshots") {
        rows = merge(rows);
    }
    // The head is there where rows are not: those of snapshots alone are merged into nothing.
    let table = || if none { String::new() } else { plain(&rows, &totals) };
    format.print(table, || ("stats", document(&rows, &totals, whole_pool)))?;
    tell_unread(session, unread).map_err(|failure| {
        let status = failure.status;
        failure.then(format!("du failed: ({status}) {}", strerror(status)))
    })
}

/// The snapshots that limit what is shown: rows after the first, up to the last.
struct Chosen<'a> {
    from: Option<&'a str>,
    to: Option<&'a str>,
}

impl Chosen<'_> {
    /// The chosen rows of one image; `None` if both snapshots are the same.
    fn of(&self, mut rows: Vec<Row>) -> Outcome<Option<Vec<Row>>> {
        let place = |name: &str| {
            let at = rows.iter().position(|row| row.usage.snapshot.as_deref() == Some(name));
            at.ok_or_else(|| not_found("specified snapshot is not found.".to_string()))
        };
        let to = self.to.map(place).transpose()?;
        let from = self.from.map(place).transpose()?;
        match (from, to) {
            (Some(from), Some(to)) if from == to => return Ok(None),
            (Some(from), Some(to)) if from > to => return Err(Failure::errno("du failed", EINVAL)),
            _ => {}
        }
        rows.truncate(to.map_or(rows.len(), |to| to + 1));
        rows.drain(..from.map_or(0, |from| from + 1));
        Ok(Some(rows))
    }
}

fn not_found(message: String) -> Failure {
    Failure::bare(ENOENT, message).then(format!("du failed: ({ENOENT}) {}", strerror(ENOENT)))
}

fn chosen_images(pool: &Pool, target: &Target) -> Outcome<Vec<(String, ImageId)>> {
    if target.image.is_empty() {
        return Ok(pool.images(&target.namespace())?);
    }
    match pool.image(target.name()) {
        Ok(image) => Ok(vec![(target.image.clone(), image.id())]),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(not_found(format!("specified image {} is not found.", target.image)))
        }
        Err(error) => Err(Failure::engine("du failed", &error)),
    }
}

/// Rows of one image, oldest snapshot first, without removed snapshots that are kept for their children.
fn image_rows(image: &Image, name: &str) -> Outcome<Vec<Row>> {
    let rows = image.usage().map_err(|error| Failure::engine("du failed", &error))?;
    let row = |usage| Row { image: name.to_owned(), id: image.id(), usage };
    Ok(rows.into_iter().map(row).collect())
}

/// One row for each image, with the sum of the used bytes of its rows.
fn merge(rows: Vec<Row>) -> Vec<Row> {
    let mut used: HashMap<ImageId, u64> = HashMap::new();
    for row in &rows {
        *used.entry(row.id).or_default() += row.usage.used_bytes;
    }
    let heads = rows.into_iter().filter(|row| row.usage.snapshot.is_none());
    heads
        .map(|mut row| {
            row.usage.used_bytes = used.get(&row.id).copied().unwrap_or_default();
            row
        })
        .collect()
}

/// Sums over all rows, also over those that are merged into others.
struct Totals {
    rows: usize,
    provisioned_bytes: u64,
    used_bytes: u64,
}

impl Totals {
    /// Provisioned bytes count once for each image; if only snapshots are shown, for each of them.
    fn of(rows: &[Row], snapshots_only: bool) -> Self {
        let counted = rows.iter().filter(|row| snapshots_only || row.usage.snapshot.is_none());
        Self {
            rows: rows.len(),
            provisioned_bytes: counted.map(|row| row.usage.provisioned_bytes).sum(),
            used_bytes: rows.iter().map(|row| row.usage.used_bytes).sum(),
        }
    }
}

fn plain(rows: &[Row], totals: &Totals) -> String {
    let mut table = Table::new()
        .column("NAME", Align::Left)
        .column_aligned("PROVISIONED", Align::Right, Align::Right)
        .column("USED", Align::Right)
        .header_always();
    for row in rows {
        let name = match &row.usage.snapshot {
            Some(snap) => format!("{}@{snap}", row.image),
            None => row.image.clone(),
        };
        let usage = &row.usage;
        table.row(vec![name, size::show(usage.provisioned_bytes), size::show(usage.used_bytes)]);
    }
    if totals.rows > 1 {
        let (provisioned, used) = (totals.provisioned_bytes, totals.used_bytes);
        table.row(vec!["<TOTAL>".to_string(), size::show(provisioned), size::show(used)]);
    }
    table.render()
}

fn document(rows: &[Row], totals: &Totals, whole_pool: bool) -> Node {
    let images = Node::array("image", rows.iter().map(row_node));
    let mut members = vec![("images", images)];
    if whole_pool {
        members.push(("total_provisioned_size", totals.provisioned_bytes.into()));
        members.push(("total_used_size", totals.used_bytes.into()));
    }
    Node::Object(members)
}

fn row_node(row: &Row) -> Node {
    let mut members: Vec<(&'static str, Node)> =
        vec![("name", row.image.as_str().into()), ("id", row.id.to_string().into())];
    if let Some(snap) = &row.usage.snapshot {
        members.push(("snapshot", snap.as_str().into()));
        members.push(("snapshot_id", row.usage.snapshot_id.0.into()));
    }
    members.push(("provisioned_size", row.usage.provisioned_bytes.into()));
    members.push(("used_size", row.usage.used_bytes.into()));
    Node::Object(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use marcot::SnapId;

    const MIB: u64 = 1 << 20;

    fn row(snapshot: Option<&str>, used_bytes: u64) -> Row {
        let snapshot = snapshot.map(str::to_string);
        let usage =
            UsageRow { snapshot, snapshot_id: SnapId(4), provisioned_bytes: 8 * MIB, used_bytes };
        Row { image: "a".into(), id: ImageId(1), usage }
    }

    #[test]
    fn the_table_is_rbds() {
        let rows = [row(Some("s1"), 8 * MIB), row(Some("s2"), 4 * MIB), row(None, 0)];
        assert_eq!(
            plain(&rows, &Totals::of(&rows, false)),
            "NAME     PROVISIONED  USED  \n\
             a@s1           8 MiB   8 MiB\n\
             a@s2           8 MiB   4 MiB\n\
             a              8 MiB     0 B\n\
             <TOTAL>        8 MiB  12 MiB\n"
        );
    }

    #[test]
    fn a_snapshot_is_shown_with_those_before_it() {
        let rows = || vec![row(Some("s1"), 1), row(Some("s2"), 2), row(None, 4)];
        let used = |from, to| -> Option<Vec<u64>> {
            let rows = Chosen { from, to }.of(rows()).unwrap()?;
            Some(rows.iter().map(|row| row.usage.used_bytes).collect())
        };
        assert_eq!(used(None, None), Some(vec![1, 2, 4]));
        assert_eq!(used(None, Some("s2")), Some(vec![1, 2]));
        assert_eq!(used(Some("s1"), None), Some(vec![2, 4]));
        assert_eq!(used(Some("s1"), Some("s2")), Some(vec![2]));
        assert_eq!(used(Some("s1"), Some("s1")), None);
        let refused = |from, to| Chosen { from, to }.of(rows()).err().unwrap().status;
        assert_eq!(refused(Some("s2"), Some("s1")), EINVAL);
        assert_eq!(refused(None, Some("s3")), ENOENT);
    }

    #[test]
    fn merged_rows_carry_the_sum() {
        let merged = merge(vec![row(Some("s1"), 3), row(None, 4)]);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].usage.used_bytes, 7);
    }
}

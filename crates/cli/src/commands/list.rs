//! `list`: the images of a pool.

use std::rc::Rc;

use marcot::{ImageId, ImageInfo, ParentInfo, SnapInfo};
use marcot_client::{Pool, spec};

use super::POOL_SPEC;
use crate::args::{Args, CommandSpec, Kind, Opt, names, options};
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{Align, Node, Table, line, warn};
use crate::session::Session;
use crate::size;

const LONG: &[Opt] = &[Opt::new("long", Kind::Flag, "long listing format").letter('l')];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec::new(&["list"], "List rbd images.", list)
    .aliases(&[&["ls"]])
    .positionals(&[POOL_SPEC])
    .options(&[LONG, options::POOL_AND_NAMESPACE, options::FORMAT])
    .examples(&[
        ("ls", "names of the images of the pool rbd"),
        ("ls -l kubernetes", "with sizes, parents and snapshots"),
        ("ls -l --format json --pretty-format", "for programs"),
    ])];

fn list(session: &Session, args: &Args) -> Outcome {
    let target = names::pool_target(args)?;
    let format = args.format()?;
    let listed = session
        .pool_of(&target)
        .and_then(|pool| Ok((pool.images(&target.namespace())?, pool)))
        .map_err(listing_failed)?;
    let (images, pool) = listed;
    if args.flag("long") {
        let (rows, unread) = rows(&pool, images);
        format.print(|| table(&rows), || ("images", document(&rows)))?;
        return tell_unread(session, unread).map_err(listing_failed);
    }
    let lines = || images.iter().map(|(name, _)| line(name)).collect();
    let names = || Node::array("name", images.iter().map(|(name, _)| name.as_str().into()));
    format.print(lines, || ("images", names()))
}

fn listing_failed(failure: Failure) -> Failure {
    let status = failure.status;
    failure.then(format!("listing images failed: ({status}) {}", strerror(status)))
}

/// An image, or a snapshot of it. All rows of an image share its record.
struct Row {
    image: Rc<ImageInfo>,
    /// Its index among the image's snapshots.
    snap: Option<usize>,
}

/// Images that cannot be read, by name, and why.
pub type Unread = Vec<(String, Failure)>;

/// Names each image that is missing in the output, and then fails.
pub fn tell_unread(session: &Session, unread: Unread) -> Outcome {
    for (name, why) in &unread {
        warn(session.program, &format!("image '{name}' is left out: {}", why.sentence()));
    }
    match unread.as_slice() {
        [] => Ok(()),
        [(_, first), ..] => {
            Err(Failure::new(first.status, format!("{} images cannot be read", unread.len())))
        }
    }
}

/// The rows of all images that can be read, and the images that cannot.
fn rows(pool: &Pool, images: Vec<(String, ImageId)>) -> (Vec<Row>, Unread) {
    let mut rows = Vec::new();
    let mut unread = Vec::new();
    let mut reader = pool.info_reader();
    for (name, id) in images {
        let image = match reader.info_of(&name, id) {
            Ok(image) => Rc::new(image),
            // Removed since the names were read.
            Err(error) if error.kind() == marcot::ErrorKind::NotFound => continue,
            Err(error) => {
                unread.push((name, error.into()));
                continue;
            }
        };
        let shown = |snap: &Option<usize>| snap.is_none_or(|n| image.snapshots[n].is_of_users());
        let snaps = [None].into_iter().chain((0..image.snapshots.len()).map(Some)).filter(shown);
        rows.extend(snaps.map(|snap| Row { image: Rc::clone(&image), snap }));
    }
    (rows, unread)
}

impl Row {
    fn snap(&self) -> Option<&SnapInfo> {
        self.image.snapshots.get(self.snap?)
    }

    fn size_bytes(&self) -> u64 {
        self.snap().map_or(self.image.size_bytes, |s| s.size_bytes)
    }

    fn parent(&self) -> Option<&ParentInfo> {
        match self.snap() {
            Some(snap) => snap.parent.as_ref(),
            None => self.image.parent.as_ref(),
        }
    }

    /// The lock in RBD's words: short for the table, and long.
    fn lock(&self) -> Option<(&'static str, &'static str)> {
        let image = &self.image;
        match image.locks.first() {
            _ if self.snap.is_some() => None,
            Some(lock) if lock.shared => Some(("shr", "shared")),
            None if image.owned_by.is_none() => None,
            _ => Some(("excl", "exclusive")),
        }
    }

    fn cells(&self) -> Vec<String> {
        let name = match self.snap() {
            Some(snap) => format!("{}@{}", self.image.name, snap.name),
            None => self.image.name.clone(),
        };
        let protected = self.snap().is_some_and(|s| s.protected);
        vec![
            name,
            size::show(self.size_bytes()),
            self.parent().map(show_parent).unwrap_or_default(),
            "2".to_string(),
            if protected { "yes" } else { "" }.to_string(),
            self.lock().map_or("", |(short, _)| short).to_string(),
        ]
    }

    fn node(&self) -> (&'static str, Node) {
        let mut members: Vec<(&'static str, Node)> = vec![
            ("image", self.image.name.as_str().into()),
            ("id", self.image.id.to_string().into()),
        ];
        if let Some(snap) = self.snap() {
            members.push(("snapshot", snap.name.as_str().into()));
            members.push(("snapshot_id", snap.id.0.into()));
        }
        members.push(("size", self.size_bytes().into()));
        if let Some(parent) = self.parent() {
            members.push(("parent", parent_node(parent)));
        }
        members.push(("format", 2u64.into()));
        if let Some(snap) = self.snap() {
            members.push(("protected", Node::quoted_bool(snap.protected)));
        }
        if let Some((_, long)) = self.lock() {
            members.push(("lock_type", long.into()));
        }
        let element = if self.snap.is_some() { "snapshot" } else { "image" };
        (element, Node::Object(members))
    }
}

/// `pool/[namespace/]image@snap`.
pub fn show_parent(parent: &ParentInfo) -> String {
    spec::show(&parent.pool, &parent.namespace, &parent.image, &parent.snap)
}

/// Pool, namespace, image and snapshot of a parent.
pub fn parent_node(parent: &ParentInfo) -> Node {
    Node::Object(vec![
        ("pool", parent.pool.as_str().into()),
        ("pool_namespace", parent.namespace.to_string().into()),
        ("image", parent.image.as_str().into()),
        ("snapshot", parent.snap.as_str().into()),
    ])
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new()
        .column("NAME", Align::Left)
        .column("SIZE", Align::Right)
        .column("PARENT", Align::Left)
        .column("FMT", Align::Right)
        .column("PROT", Align::Left)
        .column("LOCK", Align::Left);
    for row in rows {
        table.row(row.cells());
    }
    table.render()
}

fn document(rows: &[Row]) -> Node {
    Node::Array(rows.iter().map(Row::node).collect())
}

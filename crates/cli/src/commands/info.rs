//! `info`: the records of an image or snapshot.

use marcot::{GroupInfo, ImageInfo, OwnerInfo, OwnerState, ParentInfo, PoolId, SnapInfo};
use marcot_client::spec;

use super::IMAGE_OR_SNAP_SPEC;
use super::list::show_parent;
use super::status::{owner_node, show_owner};
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, options};
use crate::failure::Outcome;
use crate::layout;
use crate::output::{Node, line};
use crate::session::{self, Session, no_such_snapshot};
use crate::{size, time};

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["info"], "Show information about image size, striping, etc.", info)
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[options::SNAP, &[options::IMAGE_ID], options::FORMAT])
        .examples(&[
            ("info vm-1", "size, id, parent and overlap"),
            ("info template@v1", "a snapshot, and whether it is protected"),
        ])];

fn info(session: &Session, args: &Args) -> Outcome {
    let image_id = args.image_id();
    let mut wanted = Wanted::IMAGE_OR_SNAP;
    wanted.image_required = image_id.is_none();
    let target = names::target(args, &mut 0, wanted)?;
    session::refuse_name_and_id(&target, image_id)?;
    let format = args.format()?;
    let found = session.find_by(&target, image_id)?;
    let image = session::info(&found)?;
    // If this cannot be read now, it is left out. The rest is shown all the same.
    let is_parent = found.has_unprotected_child().unwrap_or_default();
    let group = found.group().ok().flatten();
    let snap = match target.snap.as_str() {
        "" => None,
        name => Some(named_snapshot(&image, name)?),
    };
    let mut view = View::new(found.pool().id(), &image, snap.as_ref(), is_parent, group.as_ref());
    let levels = found.pool().levels();
    view.read_only = (!levels.is_writable()).then(|| levels.why_read_only(found.pool().name()));
    format.print(|| view.plain(), || ("image", view.node()))
}

fn named_snapshot(image: &ImageInfo, name: &str) -> Outcome<SnapInfo> {
    let found = image.snapshots.iter().find(|s| s.name == name && s.is_of_users());
    found.cloned().ok_or_else(|| {
        no_such_snapshot().because(format!("image '{}' has no snapshot '{name}'", image.name))
    })
}

/// An image as its head or one of its snapshots records it.
struct View<'a> {
    image: &'a ImageInfo,
    pool: PoolId,
    snap: Option<&'a SnapInfo>,
    size_bytes: u64,
    parent: Option<&'a ParentInfo>,
    features: Vec<String>,
    op_features: Vec<&'static str>,
    /// `pool/[namespace/]group`.
    group: Option<String>,
    /// Why this program must not write it, if that is because of its format.
    read_only: Option<String>,
}

impl<'a> View<'a> {
    fn new(
        pool: PoolId,
        image: &'a ImageInfo,
        snap: Option<&'a SnapInfo>,
        is_parent: bool,
        group: Option<&GroupInfo>,
    ) -> Self {
        let parent = match snap {
            Some(snap) => snap.parent.as_ref(),
            None => image.parent.as_ref(),
        };
        let op_features = op_features(image, is_parent, group.is_some());
        let group = group.map(|group| spec::show(&group.pool, &group.namespace, &group.name, ""));
        let mut features = layout::shown_features(image);
        if !op_features.is_empty() {
            features.push("operations".to_string());
        }
        if image.migration.is_some() {
            features.push("migrating".to_string());
        }
        let size_bytes = snap.map_or(image.size_bytes, |s| s.size_bytes);
        let read_only = None;
        Self { image, pool, snap, size_bytes, parent, features, op_features, group, read_only }
    }

    fn object_bytes(&self) -> u64 {
        1 << self.image.order
    }

    fn objects(&self) -> u64 {
        layout::stripe(self.image).objects(self.size_bytes)
    }

    /// Who has it open, where several hosts may have.
    fn owner(&self) -> Option<&'a OwnerInfo> {
        self.image.owner.as_ref().filter(|owner| owner.state != OwnerState::Closed)
    }

    fn prefix(&self) -> String {
        let image = self.image;
        // RBD has the number of the image's pool here.
        match image.data_pool.as_str() {
            "" => format!("rbd_data.{}", image.id),
            _ => format!("rbd_data.{}.{}", self.pool.0, image.id),
        }
    }

    /// Unit in bytes and count, if they are not those of an image without stripes.
    fn stripe(&self) -> Option<(u64, u64)> {
        let stripe = layout::stripe(self.image);
        stripe.is_striped().then_some((stripe.unit_bytes, stripe.count))
    }

    fn plain(&self) -> String {
        let image = self.image;
        let mut lines = vec![
            format!("size {} in {} objects", size::show(self.size_bytes), self.objects()),
            format!("order {} ({} objects)", image.order, size::show(self.object_bytes())),
            format!("snapshot_count: {}", image.snapshots.len()),
            format!("id: {}", image.id),
        ];
        if !image.data_pool.is_empty() {
            lines.push(format!("data_pool: {}", image.data_pool));
        }
        lines.extend([
            format!("block_name_prefix: {}", self.prefix()),
            "format: 2".to_string(),
            format!("features: {}", self.features.join(", ")),
            format!("op_features: {}", self.op_features.join(", ")),
            "flags: ".to_string(),
        ]);
        lines.extend(self.group.iter().map(|group| format!("group: {group}")));
        lines.extend([
            format!("create_timestamp: {}", time::ctime(image.created_s)),
            format!("access_timestamp: {}", time::ctime(image.modified_s)),
            format!("modify_timestamp: {}", time::ctime(image.modified_s)),
        ]);
        if let Some(snap) = self.snap {
            lines.push(format!("protected: {}", if snap.protected { "True" } else { "False" }));
        }
        if let Some(limit) = image.snapshot_limit {
            lines.push(format!("snapshot_limit: {limit}"));
        }
        if let Some(parent) = self.parent {
            let (shown, trash) = (show_parent(parent), in_trash(parent));
            lines.push(format!("parent: {shown}{trash}{}", missing(parent)));
            lines.push(format!("overlap: {}", size::show(parent.overlap_bytes)));
        }
        if let Some((unit_bytes, count)) = self.stripe() {
            lines.push(format!("stripe unit: {}", size::show(unit_bytes)));
            lines.push(format!("stripe count: {count}"));
        }
        if let Some(owner) = self.owner() {
            lines.push(format!("owner: {}", show_owner(owner)));
        }
        lines.extend(self.read_only.iter().map(|why| format!("read_only: {why}")));
        let body: String = lines.iter().map(|text| format!("\t{}", line(text))).collect();
        line(&format!("rbd image '{}':", image.name)) + &body
    }

    fn node(&self) -> Node {
        let image = self.image;
        let texts = |item, texts: &mut dyn Iterator<Item = &str>| {
            Node::array(item, texts.map(Node::from).collect::<Vec<_>>())
        };
        let mut members: Vec<(&'static str, Node)> = vec![
            ("name", image.name.as_str().into()),
            ("id", image.id.to_string().into()),
            ("size", self.size_bytes.into()),
            ("objects", self.objects().into()),
            ("order", u64::from(image.order).into()),
            ("object_size", self.object_bytes().into()),
            ("snapshot_count", (image.snapshots.len() as u64).into()),
        ];
        if !image.data_pool.is_empty() {
            members.push(("data_pool", image.data_pool.as_str().into()));
        }
        members.extend([
            ("block_name_prefix", self.prefix().into()),
            ("format", 2u64.into()),
            ("features", texts("feature", &mut self.features.iter().map(String::as_str))),
            ("op_features", texts("op_feature", &mut self.op_features.iter().copied())),
            ("flags", Node::array("flag", [])),
        ]);
        if let Some(group) = &self.group {
            members.push(("group", group.as_str().into()));
        }
        let times: [(&'static str, Node); 3] = [
            ("create_timestamp", time::ctime(image.created_s).into()),
            ("access_timestamp", time::ctime(image.modified_s).into()),
            ("modify_timestamp", time::ctime(image.modified_s).into()),
        ];
        members.extend(times);
        if let Some(snap) = self.snap {
            members.push(("protected", Node::quoted_bool(snap.protected)));
        }
        if let Some(limit) = image.snapshot_limit {
            members.push(("snapshot_limit", limit.into()));
        }
        if let Some(parent) = self.parent {
            members.push(("parent", parent_node(parent)));
        }
        if let Some((unit_bytes, count)) = self.stripe() {
            members.push(("stripe_unit", unit_bytes.into()));
            members.push(("stripe_count", count.into()));
        }
        members.extend(self.owner().map(|owner| ("owner", owner_node(owner))));
        members.extend(self.read_only.as_deref().map(|why| ("read_only", why.into())));
        Node::Object(members)
    }
}

/// The note for an image whose parent is in the trash.
fn in_trash(parent: &ParentInfo) -> String {
    if parent.in_trash { format!(" (trash {})", parent.image_id) } else { String::new() }
}

/// The note for an image whose parent is missing.
fn missing(parent: &ParentInfo) -> &'static str {
    if parent.reachable { "" } else { " (missing: only blocks written to the child can be read)" }
}

fn parent_node(parent: &ParentInfo) -> Node {
    let mut members = vec![
        ("pool", parent.pool.as_str().into()),
        ("pool_namespace", parent.namespace.to_string().into()),
        ("image", parent.image.as_str().into()),
        ("id", parent.image_id.to_string().into()),
        ("snapshot", parent.snap.as_str().into()),
        ("trash", Node::Bool(parent.in_trash)),
        ("overlap", parent.overlap_bytes.into()),
    ];
    if !parent.reachable {
        members.push(("missing", Node::Bool(true)));
    }
    Node::Object(members)
}

/// The operation features that clones of format 2 set on parent and child; `is_parent` if the image has some.
fn op_features(image: &ImageInfo, is_parent: bool, in_group: bool) -> Vec<&'static str> {
    let mut names = Vec::new();
    let trash = image.snapshots.iter().any(|s| s.trashed);
    if trash || is_parent {
        names.push("clone-parent");
    }
    if image.parent.as_ref().is_some_and(|p| p.clone_format == 2) {
        names.push("clone-child");
    }
    if in_group {
        names.push("group");
    }
    if trash {
        names.push("snap-trash");
    }
    names
}

//! `group create`, `list`, `remove`, `rename`; `group image add`, `list`, `remove`; `group snap create`,
//! `list`, `remove`, `rename`, `rollback`.

use marcot::{ErrorKind, GroupInfo, Namespace};
use marcot_client::group::Group;
use marcot_client::spec::Pattern;
use marcot_client::{Image, ImageName};

use super::snap::quiesce;
use super::{IMAGE_SPEC, POOL_SPEC};
use crate::args::names::{self, Role, SnapRule, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{self, EBADF, EEXIST};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table};
use crate::session::{self, Session, parse_image_id};

const GROUP_SPEC: Positional = Positional::one(
    "group-spec",
    "group specification (example: [<pool-name>/[<namespace>/]]<group-name>)",
);
const SOURCE_GROUP_SPEC: Positional = Positional::one(
    "source-group-spec",
    "source group specification (example: [<pool-name>/[<namespace>/]]<group-name>)",
);
const DEST_GROUP_SPEC: Positional = Positional::one(
    "dest-group-spec",
    "destination group specification (example: [<pool-name>/[<namespace>/]]<group-name>)",
);
const GROUP_SNAP_SPEC: Positional = Positional::one(
    "group-snap-spec",
    "group specification (example: [<pool-name>/[<namespace>/]]<group-name>@<snap-name>)",
);
const DEST_SNAP: Positional =
    Positional::one("dest-snap", "destination snapshot name (example: <snap-name>)");

const GROUP_NAME: Opt = Opt::new("group", Kind::Text, "group name");
const GROUP: &[Opt] = &[options::POOL, options::NAMESPACE, GROUP_NAME];
const SOURCE_GROUP: &[Opt] = &[
    options::SOURCE_SNAP[0],
    options::SOURCE_SNAP[1],
    Opt::new("group", Kind::Text, "source group name"),
];
const SNAP: &[Opt] = &[Opt::new("snap", Kind::Text, "snapshot name")];
const DEST_GROUP: &[Opt] = &[
    Opt::new("dest-pool", Kind::Text, "destination pool name"),
    Opt::new("dest-namespace", Kind::Text, "destination namespace name"),
    Opt::new("dest-group", Kind::Text, "destination group name"),
];
const MEMBER: &[Opt] = &[
    Opt::new("group-pool", Kind::Text, "group pool name"),
    Opt::new("group-namespace", Kind::Text, "group namespace name"),
    GROUP_NAME,
    Opt::new("image-pool", Kind::Text, "image pool name"),
    Opt::new("image-namespace", Kind::Text, "image namespace name"),
    Opt::new("image", Kind::Text, "image name"),
    Opt::new("pool", Kind::Text, "pool name unless overridden").letter('p'),
];
const QUIESCE: &[Opt] = &[
    Opt::new("skip-quiesce", Kind::Flag, "do not run quiesce hooks"),
    Opt::new("ignore-quiesce-error", Kind::Flag, "ignore quiesce hook error"),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["group", "create"], "Create a group.", create)
        .positionals(&[GROUP_SPEC])
        .options(&[GROUP])
        .examples(&[("group create database", "then 'group image add' its disks")]),
    CommandSpec::new(&["group", "list"], "List rbd groups.", list)
        .aliases(&[&["group", "ls"]])
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE, options::FORMAT])
        .examples(&[("group ls", "the groups of the pool rbd")]),
    CommandSpec::new(&["group", "remove"], "Delete a group.", remove)
        .aliases(&[&["group", "rm"]])
        .positionals(&[GROUP_SPEC])
        .options(&[GROUP])
        .examples(&[("group rm database", "its snapshots go too; its images stay")]),
    CommandSpec::new(&["group", "rename"], "Rename a group within pool.", rename)
        .positionals(&[SOURCE_GROUP_SPEC, DEST_GROUP_SPEC])
        .options(&[SOURCE_GROUP, DEST_GROUP])
        .examples(&[("group rename database db", "snapshots keep their group")]),
    CommandSpec::new(&["group", "image", "add"], "Add an image to a group.", image_add)
        .positionals(&[GROUP_SPEC, IMAGE_SPEC])
        .options(&[MEMBER])
        .examples(&[("group image add database data-disk", "an image is in one group at most")]),
    CommandSpec::new(&["group", "image", "list"], "List images in a group.", image_list)
        .aliases(&[&["group", "image", "ls"]])
        .positionals(&[GROUP_SPEC])
        .options(&[options::FORMAT, GROUP])
        .examples(&[("group image ls database", "")]),
    CommandSpec::new(&["group", "image", "remove"], "Remove an image from a group.", image_remove)
        .aliases(&[&["group", "image", "rm"]])
        .positionals(&[GROUP_SPEC, IMAGE_SPEC])
        .options(&[MEMBER, &[options::IMAGE_ID]])
        .examples(&[("group image rm database data-disk", "the image stays, out of the group")]),
    CommandSpec::new(&["group", "snap", "create"], "Make a snapshot of a group.", snap_create)
        .positionals(&[GROUP_SNAP_SPEC])
        .options(&[GROUP, SNAP, QUIESCE])
        .examples(&[("group snap create database@monday", "of all its images at one moment")]),
    CommandSpec::new(&["group", "snap", "list"], "List snapshots of a group.", snap_list)
        .aliases(&[&["group", "snap", "ls"]])
        .positionals(&[GROUP_SPEC])
        .options(&[options::FORMAT, GROUP])
        .examples(&[("group snap ls database", "oldest first")]),
    CommandSpec::new(&["group", "snap", "remove"], "Remove a snapshot from a group.", snap_remove)
        .aliases(&[&["group", "snap", "rm"]])
        .positionals(&[GROUP_SNAP_SPEC])
        .options(&[GROUP, SNAP])
        .examples(&[("group snap rm database@monday", "from all images that have a part of it")]),
    CommandSpec::new(&["group", "snap", "rename"], "Rename group's snapshot.", snap_rename)
        .positionals(&[GROUP_SNAP_SPEC, DEST_SNAP])
        .options(&[GROUP, SNAP, &[options::DEST_SNAP]])
        .examples(&[("group snap rename database@monday before-upgrade", "")]),
    CommandSpec::new(&["group", "snap", "rollback"], "Rollback group to snapshot.", snap_rollback)
        .positionals(&[GROUP_SNAP_SPEC])
        .options(&[options::NO_PROGRESS, GROUP, SNAP])
        .examples(&[("group snap rollback database@monday", "what came later is lost")]),
];

const WANTED: Wanted = Wanted {
    role: Role::Group,
    snap: SnapRule::None,
    pattern: Pattern::NewImage,
    image_required: true,
};
const WANTED_SNAP: Wanted = Wanted { snap: SnapRule::Required, ..WANTED };

/// The group that a command line names.
fn group_of(session: &Session, target: &Target) -> Outcome<Group> {
    let pool = session.pool_of(target)?;
    Ok(pool.group(&target.namespace(), &target.image))
}

fn create(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED)?;
    let pool = session.pool_of(&target)?;
    let made = pool.create_group(&target.namespace(), &target.image);
    made.map(drop).map_err(|error| Failure::engine("create error", &error))
}

fn list(session: &Session, args: &Args) -> Outcome {
    let target = names::pool_target(args)?;
    let format = args.format()?;
    let pool = session.pool_of(&target)?;
    let groups = pool.groups(&target.namespace())?;
    let plain = || groups.iter().map(|name| crate::output::line(name)).collect();
    let nodes = || Node::array("name", groups.iter().map(|name| name.as_str().into()));
    format.print(plain, || ("groups", nodes()))
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED)?;
    let group = group_of(session, &target)?;
    // As with `rbd`, which takes a group that is not there for one that is gone.
    if group.info().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Ok(());
    }
    group.remove().map_err(|error| Failure::engine("remove error", &error))
}

fn rename(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let from = names::target(args, &mut cursor, WANTED)?;
    let to = names::target(args, &mut cursor, Wanted { role: Role::DestGroup, ..WANTED })?;
    // `rbd` compares what was written.
    if from.pool != to.pool {
        let pools = format!("source pool: {}, dest pool: {}", from.pool, to.pool);
        return Err(Failure::invalid("group rename across pools not supported").then_bare(pools));
    }
    if from.namespace != to.namespace {
        let names =
            format!("source namespace: {}, dest namespace: {}", from.namespace, to.namespace);
        return Err(
            Failure::invalid("group rename across namespaces not supported").then_bare(names)
        );
    }
    let renamed = group_of(session, &from)?.rename(&to.image);
    renamed.map(drop).map_err(|error| Failure::engine("failed to rename group", &error))
}

fn image_add(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "add image error";
    let (group, target) = member(session, args)?;
    let failed = |error: marcot::Error| Failure::engine(ERROR, &error);
    let pool = session.pool_of(&target)?;
    // The group is looked for before the image.
    group.info().map_err(failed)?;
    let image = pool.image(target.name()).map_err(failed)?;
    group.add(&image).map_err(|error| match error.kind() {
        ErrorKind::Exists => Failure::errno(ERROR, EEXIST).because(error.sentence()),
        _ => failed(error),
    })
}

/// The group and the image that a command line names.
fn member(session: &Session, args: &Args) -> Outcome<(Group, Target)> {
    let mut cursor = 0;
    let of = names::target(args, &mut cursor, Wanted { role: Role::GroupOfMember, ..WANTED })?;
    let mut wanted = Wanted { role: Role::Member, ..WANTED };
    wanted.image_required = args.image_id().is_none();
    let image = names::target(args, &mut cursor, wanted)?;
    if of.namespace != image.namespace {
        return Err(Failure::invalid("group and image namespace must match."));
    }
    session::refuse_name_and_id(&image, args.image_id())?;
    Ok((group_of(session, &of)?, image))
}

fn image_remove(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "remove image error";
    let (group, target) = member(session, args)?;
    let failed = |error: marcot::Error| match error.kind() {
        ErrorKind::InGroup => Failure::errno(ERROR, EBADF).because(error.sentence()),
        _ => Failure::engine(ERROR, &error),
    };
    let pool = session.pool_of(&target)?;
    group.info().map_err(failed)?;
    let image: Image = match args.image_id() {
        None => pool.image(target.name()).map_err(failed)?,
        Some(text) => {
            // A number that no image has is in no group.
            let Some(id) = parse_image_id(text) else { return Ok(()) };
            pool.known_image(ImageName::new(text).in_namespace(target.namespace()), id)
        }
    };
    group.take_out(&image).map_err(failed)
}

/// A member with its names.
struct Row {
    pool: String,
    image: String,
}

fn image_list(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED)?;
    let format = args.format()?;
    let group = group_of(session, &target)?;
    let rows = match group.info() {
        // As with `rbd`.
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        info => members(&group, &info?),
    };
    let namespace = target.namespace();
    // `rbd` has a blank at the end of each line.
    let plain = || {
        let name = |row: &Row| ImageName::new(&*row.image).in_namespace(&namespace);
        let line = |row: &Row| crate::output::line(&format!("{}/{} ", row.pool, name(row)));
        rows.iter().map(line).collect()
    };
    let nodes = || Node::array("image", rows.iter().map(|row| node(row, &namespace)));
    format.print(plain, || ("images", nodes()))
}

/// The members that have a name. One in the trash has none.
fn members(group: &Group, info: &GroupInfo) -> Vec<Row> {
    let row = |member: &marcot::MemberId| {
        let image = group.member(*member).ok()?;
        let info = image.info().ok().filter(|info| !info.in_trash)?;
        Some(Row { pool: image.pool().name().to_owned(), image: info.name })
    };
    let mut rows: Vec<Row> = info.members.iter().filter_map(row).collect();
    rows.sort_by(|a, b| (&a.pool, &a.image).cmp(&(&b.pool, &b.image)));
    rows
}

fn node(row: &Row, namespace: &Namespace) -> Node {
    Node::Object(vec![
        ("image", row.image.as_str().into()),
        ("pool", row.pool.as_str().into()),
        ("namespace", namespace.to_string().into()),
        // `rbd` numbers the states of a membership; this one is complete.
        ("state", 0u64.into()),
    ])
}

fn snap_create(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED_SNAP)?;
    let quiesce = quiesce(args)?;
    let created = group_of(session, &target)?.create_snapshot(&target.snap, quiesce);
    // `rbd` says nothing here but in its log.
    created.map_err(|error| Failure::quiet(errno::of(&error)).because(error.sentence()))
}

fn snap_list(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED)?;
    let format = args.format()?;
    let snapshots = match group_of(session, &target)?.info() {
        // As with `rbd`.
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        info => info?.snapshots,
    };
    let state = |complete: bool| if complete { "ok" } else { "incomplete" };
    let plain = || {
        let mut table = Table::new().column("NAME", Align::Left).column("STATUS", Align::Right);
        for snapshot in &snapshots {
            table.row(vec![snapshot.name.clone(), state(snapshot.complete).to_string()]);
        }
        table.render()
    };
    let node = |snapshot: &marcot::GroupSnapshotInfo| {
        Node::Object(vec![
            ("snapshot", snapshot.name.as_str().into()),
            ("state", state(snapshot.complete).into()),
        ])
    };
    let nodes = || Node::array("group_snap", snapshots.iter().map(node));
    format.print(plain, || ("group_snaps", nodes()))
}

fn snap_remove(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED_SNAP)?;
    let removed = group_of(session, &target)?.remove_snapshot(&target.snap);
    removed.map_err(|error| Failure::engine("failed to remove group snapshot", &error))
}

fn snap_rename(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, WANTED_SNAP)?;
    let to = match args.text("dest-snap").filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => args
            .positional(cursor)
            .ok_or_else(|| Failure::invalid("destination snapshot name was not specified"))?,
    };
    if to.contains(['/', '@']) {
        return Err(Failure::invalid(format!("invalid snap name '{to}'")));
    }
    let group = group_of(session, &target)?;
    // As with `rbd`, also where there is no such group.
    if to == target.snap {
        return Err(Failure::errno("failed to rename group snapshot", EEXIST));
    }
    let renamed = group.rename_snapshot(&target.snap, to);
    renamed.map_err(|error| Failure::engine("failed to rename group snapshot", &error))
}

fn snap_rollback(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, WANTED_SNAP)?;
    let group = group_of(session, &target)?;
    let mut progress = session.parts("Rolling back to group snapshot");
    let outcome = group.roll_back(&target.snap, &mut |done, total| progress.update(done, total));
    progress
        .end(outcome.map_err(|error| Failure::engine("rollback group to snapshot failed", &error)))
}

//! `snap create`, `list`, `remove`, `purge`, `rename`, `rollback`, `protect`, `unprotect`.

use marcot::{ErrorKind, GroupSnapshotId, SnapId, SnapInfo};
use marcot_client::Image;
use marcot_client::Quiesce;
use marcot_client::spec::Pattern;

use super::image::objects;
use super::{IMAGE_SPEC, SNAP_SPEC};
use crate::args::names::{self, Role, SnapRule, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{EBUSY, EINVAL, ENOENT, ENOSYS};
use crate::failure::{Failure, Outcome};
use crate::layout::{LAYERING, NO_LAYERING, has_feature};
use crate::output::{Align, Node, Table, line, out};
use crate::session::{self, Session};
use crate::{size, time};

const QUIESCE: &[Opt] = &[
    Opt::new("skip-quiesce", Kind::Flag, "do not run quiesce hooks"),
    Opt::new("ignore-quiesce-error", Kind::Flag, "ignore quiesce hook error"),
];
const ALL: &[Opt] =
    &[Opt::new("all", Kind::Flag, "list snapshots from all namespaces").letter('a')];
const FORCE: &[Opt] =
    &[Opt::new("force", Kind::Flag, "flatten children and unprotect snapshot if needed.")];
const SOURCE_SNAP_SPEC: Positional = Positional::one(
    "source-snap-spec",
    "source snapshot specification \
     (example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
);
const DEST_SNAP_SPEC: Positional = Positional::one(
    "dest-snap-spec",
    "destination snapshot specification \
     (example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
);

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["snap", "create"], "Create a snapshot.", create)
        .aliases(&[&["snap", "add"]])
        .positionals(&[SNAP_SPEC])
        .options(&[options::SNAP, QUIESCE, options::NO_PROGRESS])
        .examples(&[("snap create template@v1", "of everything acknowledged until now")]),
    CommandSpec::new(&["snap", "list"], "Dump list of image snapshots.", list)
        .aliases(&[&["snap", "ls"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, &[options::IMAGE_ID], options::FORMAT, ALL])
        .examples(&[("snap ls template", "oldest first")]),
    CommandSpec::new(&["snap", "remove"], "Delete a snapshot.", remove)
        .aliases(&[&["snap", "rm"]])
        .positionals(&[SNAP_SPEC])
        .options(&[
            options::SNAP,
            &[options::IMAGE_ID, options::SNAP_ID],
            options::NO_PROGRESS,
            FORCE,
        ])
        .examples(&[
            ("snap rm vm-1@before-upgrade", "refused while the snapshot is protected"),
            ("snap rm template@v1 --force", "flattens its children first"),
        ]),
    CommandSpec::new(&["snap", "purge"], "Delete all unprotected snapshots.", purge)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, &[options::IMAGE_ID], options::NO_PROGRESS])
        .examples(&[("snap purge vm-1", "protected snapshots stay")]),
    CommandSpec::new(&["snap", "rename"], "Rename a snapshot.", rename)
        .positionals(&[SOURCE_SNAP_SPEC, DEST_SNAP_SPEC])
        .options(&[options::SOURCE_SNAP, options::DEST, &[options::DEST_SNAP]])
        .examples(&[("snap rename template@v1 template@2024", "children keep their parent")]),
    CommandSpec::new(&["snap", "rollback"], "Rollback image to snapshot.", rollback)
        .aliases(&[&["snap", "revert"]])
        .positionals(&[SNAP_SPEC])
        .options(&[options::SNAP, options::NO_PROGRESS])
        .examples(&[("snap rollback vm-1@before-upgrade", "what came later is lost")]),
    CommandSpec::new(&["snap", "protect"], "Prevent a snapshot from being deleted.", protect)
        .positionals(&[SNAP_SPEC])
        .options(&[options::SNAP])
        .examples(&[("snap protect template@v1", "so that it can be cloned")]),
    CommandSpec::new(&["snap", "unprotect"], "Allow a snapshot to be deleted.", unprotect)
        .positionals(&[SNAP_SPEC])
        .options(&[options::SNAP, &[options::IMAGE_ID]])
        .examples(&[("snap unprotect template@v1", "refused while it has children")]),
];

/// What is done with hooks that quiesce programs.
pub fn quiesce(args: &Args) -> Outcome<Quiesce> {
    match (args.flag("skip-quiesce"), args.flag("ignore-quiesce-error")) {
        (true, true) => {
            let message = "ignore-quiesce-error cannot be used together with skip-quiesce";
            Err(Failure::invalid(message))
        }
        (true, false) => Ok(Quiesce::Skip),
        (false, true) => Ok(Quiesce::IgnoreErrors),
        (false, false) => Ok(Quiesce::Required),
    }
}

fn create(session: &Session, args: &Args) -> Outcome {
    let wanted = Wanted { pattern: Pattern::NewSnapshot, ..Wanted::SNAP };
    let target = names::target(args, &mut 0, wanted)?;
    let quiesce = quiesce(args)?;
    let image = session.find(&target)?;
    let mut progress = session.steps("Creating snap");
    let outcome = image.create_snapshot(&target.snap, quiesce).map_err(|error| {
        // `rbd` looks for the name before it looks whether somebody has locked the image.
        match error.kind() == ErrorKind::ReadOnly && image.snapshot(&target.snap).info().is_ok() {
            true => taken(&target.snap),
            false => error,
        }
    });
    if outcome.is_ok() {
        progress.update(10, 100);
    }
    progress.end(outcome.map(drop).map_err(|e| Failure::engine("failed to create snapshot", &e)))
}

fn taken(name: &str) -> marcot::Error {
    marcot::Error::new(ErrorKind::Exists, format!("snapshot '{name}' already exists"))
}

fn list(session: &Session, args: &Args) -> Outcome {
    let target = image_target(args, SnapRule::None)?;
    let format = args.format()?;
    let image = session.find_by(&target, args.image_id())?;
    let all = args.flag("all");
    let info = session::info(&image)?;
    let mut listed = Vec::new();
    for snap in info.snapshots.into_iter().filter(|snap| all || snap.is_of_users()) {
        let place = match snap.group {
            Some(id) => Place::Group(group_names(&image, id)),
            None if snap.trashed => Place::Trash(snap.original_name.clone()),
            None => Place::User,
        };
        listed.push((snap, place));
    }
    let node = || Node::array("snapshot", listed.iter().map(|row| snap_node(row, all)));
    format.print(|| snap_table(&listed, all), || ("snapshots", node()))
}

/// Where a snapshot belongs.
enum Place {
    /// To the user.
    User,
    /// It was removed, and had this name.
    Trash(String),
    /// To a group's snapshot: pool, group and snapshot by name.
    Group((String, String, String)),
}

impl Place {
    fn cell(&self) -> String {
        match self {
            Self::User => "user".to_string(),
            Self::Trash(name) => format!("trash ({name})"),
            Self::Group((pool, group, snap)) => format!("group ({pool}/{group}@{snap})"),
        }
    }

    fn members(&self) -> Vec<(&'static str, Node)> {
        let text = |text: &String| Node::from(text.as_str());
        match self {
            Self::User => vec![("type", "user".into())],
            Self::Trash(name) => vec![("type", "trash".into()), ("original_name", text(name))],
            Self::Group((pool, group, snap)) => vec![
                ("type", "group".into()),
                ("pool", text(pool)),
                ("group", text(group)),
                ("group snap", text(snap)),
            ],
        }
    }
}

/// The names of a group's snapshot; its numbers where it cannot be found.
fn group_names(image: &Image, id: GroupSnapshotId) -> (String, String, String) {
    let found = image.pool().group_snapshot_names(id);
    found.ok().flatten().unwrap_or_else(|| {
        (id.pool.to_string(), format!("{:016x}", id.group), format!("{:016x}", id.snapshot))
    })
}

/// The image that is named by `--image-id` or by a spec.
fn find_image(session: &Session, args: &Args, snap: SnapRule) -> Outcome<(Target, Image)> {
    let target = image_target(args, snap)?;
    let found = session.find_by(&target, args.image_id())?;
    Ok((target, found))
}

fn image_target(args: &Args, snap: SnapRule) -> Outcome<Target> {
    let image_id = args.image_id();
    let mut wanted = Wanted { snap, ..Wanted::IMAGE };
    wanted.image_required = image_id.is_none();
    let target = names::target(args, &mut 0, wanted)?;
    session::refuse_name_and_id(&target, image_id)?;
    Ok(target)
}

fn snap_table(snaps: &[(SnapInfo, Place)], all: bool) -> String {
    let mut table = Table::new()
        .column("SNAPID", Align::Right)
        .column("NAME", Align::Left)
        .column("SIZE", Align::Right)
        .column("PROTECTED", Align::Left)
        .column("TIMESTAMP", Align::Left);
    if all {
        table = table.column("NAMESPACE", Align::Left);
    }
    for (snap, place) in snaps {
        let mut cells = vec![
            snap.id.to_string(),
            snap.name.clone(),
            size::show(snap.size_bytes),
            if snap.protected { "yes" } else { "" }.to_string(),
            time::ctime(snap.created_s),
        ];
        if all {
            cells.push(place.cell());
        }
        table.row(cells);
    }
    table.render()
}

fn snap_node((snap, place): &(SnapInfo, Place), all: bool) -> Node {
    let mut members: Vec<(&'static str, Node)> = vec![
        ("id", snap.id.0.into()),
        ("name", snap.name.as_str().into()),
        ("size", snap.size_bytes.into()),
        ("protected", Node::quoted_bool(snap.protected)),
        ("timestamp", time::ctime(snap.created_s).into()),
    ];
    if all {
        members.push(("namespace", Node::Object(place.members())));
    }
    Node::Object(members)
}

fn remove(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "failed to remove snapshot";
    let snap_id = args.integer("snap-id");
    let rule = if snap_id.is_some() { SnapRule::Permitted } else { SnapRule::Required };
    let image_id = args.image_id();
    let wanted = Wanted { snap: rule, image_required: image_id.is_none(), ..Wanted::IMAGE };
    let target = names::target(args, &mut 0, wanted)?;
    if image_id.is_some() && !target.image.is_empty() {
        // Only here without a blank at the end.
        return Err(Failure::invalid("trying to access image using both name and id."));
    }
    if snap_id.is_some() && !target.snap.is_empty() {
        return Err(both_name_and_id());
    }
    let image = session.find_by(&target, image_id)?;
    let name = match snap_id {
        // A part of a group's snapshot is known by its number only.
        None if is_of_group(&image, &target.snap) => return no_snapshot_to_remove(session),
        None => target.snap,
        Some(id) => name_of_id(&image, id).ok_or_else(|| Failure::errno(ERROR, ENOENT))?,
    };
    let force = args.flag("force");
    if snap_id.is_some() && (force || args.flag("no-progress")) {
        let message = "force and no-progress options not permitted when removing by id.";
        return Err(Failure::invalid(message));
    }
    let mut progress = session.steps("Removing snap");
    let mut report = |done, total| progress.update_before_end(done, total);
    let removed = image.snapshot(&name).remove(force, &mut report);
    progress.end(removed.map_err(|error| match error.kind() {
        ErrorKind::Protected => {
            Failure::new(EBUSY, format!("snapshot '{name}' is protected from removal."))
        }
        _ => Failure::engine(ERROR, &error),
    }))
}

/// True for a name that only a part of a group's snapshot has.
fn is_of_group(image: &Image, name: &str) -> bool {
    let snapshots = image.info().map(|info| info.snapshots).unwrap_or_default();
    let mut named = snapshots.iter().filter(|snap| snap.name == name).peekable();
    named.peek().is_some() && named.all(|snap| snap.group.is_some())
}

fn no_snapshot_to_remove(session: &Session) -> Outcome {
    session.steps("Removing snap").fail();
    Err(Failure::errno("failed to remove snapshot", ENOENT))
}

fn both_name_and_id() -> Failure {
    Failure::new(EINVAL, "trying to access snapshot using both name and id.")
}

/// The name of the snapshot with this number.
fn name_of_id(image: &Image, id: u64) -> Option<String> {
    let snapshots = image.info().ok()?.snapshots;
    snapshots.into_iter().find(|s| s.id == SnapId(id)).map(|s| s.name)
}

fn purge(session: &Session, args: &Args) -> Outcome {
    let (_, image) = find_image(session, args, SnapRule::None)?;
    if !session::info(&image)?.snapshots.iter().any(SnapInfo::is_of_users) {
        return Ok(());
    }
    let mut progress = session.parts("Removing all snapshots");
    let purged = image.purge_snapshots(&mut |done, total| progress.update(done, total));
    let protected = match purged {
        Ok(purged) => purged.protected,
        Err(error) => {
            progress.fail();
            return Err(Failure::engine("removing snaps failed", &error));
        }
    };
    if protected.is_empty() {
        progress.finish();
        return Ok(());
    }
    progress.fail();
    out(&purge_left(session.program, &protected))
}

/// `rbd` prints this to standard output, and succeeds.
fn purge_left(program: &str, protected: &[String]) -> String {
    let verb = if protected.len() == 1 { "is" } else { "are" };
    line(&format!(
        "{program}: error removing snapshot(s) '{}', which {verb} protected - these must be \
         unprotected with `{program} snap unprotect`.",
        protected.join(",")
    ))
}

fn rename(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let from = names::target(args, &mut cursor, Wanted::SNAP)?;
    let wanted = Wanted { role: Role::Dest, pattern: Pattern::NewSnapshot, ..Wanted::SNAP };
    let to = names::target(args, &mut cursor, wanted)?;
    if from.pool != to.pool && !to.pool.is_empty() {
        return Err(Failure::invalid("source and destination pool must be the same"));
    }
    if from.image != to.image && !to.image.is_empty() {
        return Err(Failure::invalid("source and destination image name must be the same"));
    }
    let image = session.find(&from)?;
    let renamed = image.snapshot(&from.snap).rename(&to.snap);
    renamed.map(drop).map_err(|e| Failure::engine("renaming snap failed", &e))
}

fn rollback(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::SNAP)?;
    let image = session.find(&target)?;
    let snapshot = image.snapshot(&target.snap);
    let mut progress = session.parts("Rolling back to snapshot");
    let mut report = |done, total| progress.update_before_end(done, total);
    let outcome = snapshot.roll_back(&mut report).map_err(|error| match error.kind() {
        // `rbd` looks for the snapshot before it looks whether somebody has locked the image.
        ErrorKind::ReadOnly => snapshot.info().err().unwrap_or(error),
        _ => error,
    });
    if let (true, Ok(info)) = (outcome.is_ok(), image.info()) {
        progress.catch_up(1, objects(info.size_bytes, info.order));
    }
    progress.end(outcome.map_err(|e| Failure::engine("rollback failed", &e)))
}

fn protect(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::SNAP)?;
    const ERROR: &str = "protecting snap failed";
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    let found = info.snapshots.iter().any(|snap| snap.name == target.snap && snap.is_of_users());
    if found && !has_feature(&info, LAYERING) {
        return Err(Failure::errno(ERROR, ENOSYS).because(NO_LAYERING));
    }
    match image.snapshot(&target.snap).protect() {
        Err(error) if error.kind() == ErrorKind::Protected => {
            Err(Failure::new(EBUSY, "snap is already protected"))
        }
        outcome => outcome.map_err(|e| Failure::engine(ERROR, &e)),
    }
}

fn unprotect(session: &Session, args: &Args) -> Outcome {
    let (target, image) = find_image(session, args, SnapRule::Required)?;
    match image.snapshot(&target.snap).unprotect() {
        Err(error) if error.kind() == ErrorKind::NotProtected => {
            Err(Failure::invalid("snap is already unprotected"))
        }
        outcome => outcome.map_err(|e| Failure::engine("unprotecting snap failed", &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purge_names_what_it_left() {
        assert_eq!(
            purge_left("rbd", &["b".into()]),
            "rbd: error removing snapshot(s) 'b', which is protected - these must be unprotected \
             with `rbd snap unprotect`.\n"
        );
        assert!(purge_left("rbd", &["b".into(), "a".into()]).contains("'b,a', which are"));
    }
}

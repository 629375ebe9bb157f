//! `clone`, `children`, `forget-child`, `flatten`.

use marcot::{ChildInfo, CloneOptions, ErrorKind, SnapId};
use marcot_client::layering::Children;
use marcot_client::{Image, Namespace};

use super::image::objects;
use super::{DEST_IMAGE_SPEC, IMAGE_OR_SNAP_SPEC, IMAGE_SPEC};
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno;
use crate::errno::{EBUSY, ENOENT, ENOSYS, EXDEV};
use crate::failure::{Failure, Outcome};
use crate::layout::{self, LAYERING, NO_LAYERING};
use crate::output::{Node, err, line, warn};
use crate::session::{self, Session};
use crate::time;

const UNTRACKED: &[Opt] = &[Opt::new(
    "untracked",
    Kind::Flag,
    "clone even where no marker can be left for the parent's owner, who may then remove the parent",
)
.own()];
const CHILDREN: &[Opt] = &[
    Opt::new("all", Kind::Flag, "list all children (include trash)").letter('a'),
    Opt::new("descendants", Kind::Flag, "include all descendants"),
];

const FORGET: &[Opt] = &[Opt::new(
    "force",
    Kind::Flag,
    "forget it; if it exists all the same, it loses what it shares once the snapshot is removed",
)];
const CHILD_ID: Positional =
    Positional::one("child-id", "id of the clone, as 'children --all' shows it");

const CLONE_FORMAT: &str = "rbd_default_clone_format";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["clone"], "Clone a snapshot into a CoW child image.", clone)
        .positionals(&[
            Positional::one(
                "source-snap-spec",
                "source snapshot specification \
                 (example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
            ),
            DEST_IMAGE_SPEC,
        ])
        .options(&[options::SOURCE_SNAP, options::DEST, options::LAYOUT, UNTRACKED])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("clone template@v1 vm-1", "the snapshot must be protected"),
            ("clone templates/debian@12 web/vm-1", "into another pool"),
            ("clone --rbd-default-clone-format 2 template@v1 vm-2", "no protection needed"),
        ]),
    CommandSpec::new(&["children"], "Display children of an image or its snapshot.", children)
        .positionals(&[IMAGE_OR_SNAP_SPEC])
        .options(&[options::SNAP, &[options::SNAP_ID], CHILDREN, options::FORMAT])
        .examples(&[
            ("children template@v1", "of one snapshot, in every pool of the store"),
            ("children template --descendants", "and their children"),
        ]),
    CommandSpec::new(
        &["forget-child"],
        "Forget a clone that was made on a host that is gone.",
        forget_child,
    )
    .own()
    .positionals(&[IMAGE_OR_SNAP_SPEC, CHILD_ID])
    .options(&[options::SNAP, FORGET])
    .examples(&[(
        "forget-child --force template@v1 5f0c3b7a91d2e648",
        "so that template@v1 can be unprotected; 'children --all' shows hosts and ids",
    )]),
    CommandSpec::new(&["flatten"], "Fill clone with parent data (make it independent).", flatten)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::NO_PROGRESS])
        .examples(&[("flatten vm-1", "works while the image is in use")]),
];

fn clone(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "clone error";
    let mut cursor = 0;
    let source = names::target(args, &mut cursor, Wanted::SNAP)?;
    let dest = names::target(args, &mut cursor, Wanted::DEST)?;
    let wanted = layout::Wanted::read(args)?;
    let format = clone_format(args);
    let parent_pool = session.pool_of(&source)?;
    let dest_pool = session.pool_of(&dest)?;
    let failed = |error| clone_failure(&source, &error);
    let parent = parent_pool.image(source.name()).map_err(failed)?;
    if format == 1 && source.namespace != dest.namespace {
        return Err(Failure::new(EXDEV, "clone v2 required for cross-namespace clones."));
    }
    let info = parent.info().map_err(failed)?;
    let snapshot = info.snapshots.iter().find(|s| s.is_of_users() && s.name == source.snap);
    if snapshot.is_some() && !layout::has_feature(&info, LAYERING) {
        return Err(Failure::errno(ERROR, ENOSYS).because(NO_LAYERING));
    }
    if let Some(snapshot) = snapshot
        && format == 1
        && !snapshot.protected
    {
        let message = "parent snapshot must be protected";
        return Err(failed(marcot::Error::new(ErrorKind::NotProtected, message)));
    }
    if snapshot.is_none() {
        let message = format!("image '{}' has no snapshot '{}'", source.image, source.snap);
        return Err(failed(marcot::Error::new(ErrorKind::NotFound, message)));
    }
    if wanted.leaves_out(LAYERING) {
        let cause = "cloning image must support layering";
        return Err(Failure::errno(ERROR, ENOSYS).because(cause));
    }
    let from = layout::Source::image(&info);
    let layout = wanted.options_whatever_the_name(session, &dest_pool, &from, ERROR)?;
    let options = CloneOptions::new().format(format).untracked(args.flag("untracked"));
    let options = options
        .order(layout.order)
        .features(layout.features)
        .stripe(layout.stripe_unit_bytes, layout.stripe_count)
        .data_pool(layout.data_pool);
    let snapshot = parent.snapshot(&source.snap);
    let cloned = snapshot.clone_into(&dest_pool, dest.name(), &options);
    cloned.map(drop).map_err(failed)
}

/// `rbd`'s error of a failed clone, with a line about the cause. The command has two names, so the line says
/// which was not found.
fn clone_failure(source: &Target, error: &marcot::Error) -> Failure {
    let name = source.spec();
    match error.kind() {
        ErrorKind::NotFound => Failure::errno("clone error", ENOENT)
            .because(format!("parent snapshot '{name}' does not exist")),
        ErrorKind::NotProtected => Failure::errno("clone error", errno::of(error))
            .because(format!("{}; protect it with 'snap protect {name}'", error.sentence())),
        _ => Failure::engine("clone error", error),
    }
}

/// The value of `--rbd-default-clone-format`: 1 unless it is 2.
pub fn clone_format(args: &Args) -> u32 {
    if args.config(CLONE_FORMAT) == Some("2") { 2 } else { 1 }
}

/// Says that a value of `--rbd-default-clone-format` is not one that it has. As with `rbd`, the command runs all
/// the same, with the default.
pub fn tell_bad_clone_format(config: &[(String, String)]) {
    let given = config.iter().filter(|(name, _)| name == CLONE_FORMAT).map(|(_, value)| value);
    for other in given.filter(|value| !["1", "2", "auto"].contains(&value.as_str())) {
        let message = format!(
            "parse error setting '{CLONE_FORMAT}' to '{other}' ('{other}' is not one of the \
             permitted values: 1, 2, auto)"
        );
        err(&format!("{}\n", line(&message)));
    }
}

fn children(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE_OR_SNAP)?;
    if args.integer("snap-id").is_some() && !target.snap.is_empty() {
        return Err(Failure::invalid("trying to access snapshot using both name and id."));
    }
    let format = args.format()?;
    let image = session.find(&target)?;
    let snap = chosen_snapshot(args, &target, &image)?;
    let which = match args.flag("descendants") {
        true => Children::Descendants,
        false => Children::Direct,
    };
    let all = args.flag("all");
    let mut found = image.children(which, snap)?;
    found.retain(|child| all || !child.in_trash);
    found.sort_by(|a, b| place(a).cmp(&place(b)));
    let plain = || found.iter().map(|child| plain_child(child, all)).collect();
    format.print(plain, || {
        ("children", Node::array("child", found.iter().map(|child| child_node(child, all))))
    })
}

fn chosen_snapshot(args: &Args, target: &Target, image: &Image) -> Outcome<Option<SnapId>> {
    let snapshots = session::info(image)?.snapshots;
    let missing = || Failure::new(ENOENT, "snapshot does not exist.");
    if let Some(id) = args.integer("snap-id").map(SnapId) {
        let found = snapshots.iter().any(|s| s.id == id);
        return if found { Ok(Some(id)) } else { Err(missing()) };
    }
    if target.snap.is_empty() {
        return Ok(None);
    }
    let found = snapshots.iter().find(|s| s.name == target.snap && s.is_of_users());
    found.map(|s| Some(s.id)).ok_or_else(missing)
}

fn forget_child(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "error forgetting child";
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
    let Some(id) = args.positional(cursor) else {
        return Err(Failure::invalid("the id of the child was not specified"));
    };
    let image = session.find(&target)?;
    let snap = chosen_snapshot(args, &target, &image)?;
    let child = session::parse_image_id(id);
    let children = image.children(Children::Direct, snap)?;
    let Some(child) = children.iter().find(|found| Some(found.image_id) == child) else {
        let why = format!("{} has no child with the id '{id}'", target.spec());
        return Err(Failure::errno(ERROR, ENOENT).because(why));
    };
    if !child.seen && !args.flag("force") {
        let why = format!(
            "{child} was cloned {} and may still exist: without its record, the snapshot can be \
             unprotected and removed, and the clone then loses the data that it shares; '--force' forgets it",
            time::ctime(child.created_s)
        );
        return Err(Failure::errno(ERROR, EBUSY).because(why));
    }
    image.forget_child(child.image_id).map_err(|error| Failure::engine(ERROR, &error))
}

/// Of two with one name, the one in the trash is the older one, and comes first as with `rbd`.
fn place(child: &ChildInfo) -> (&str, &Namespace, &str, bool) {
    (&child.pool, &child.namespace, &child.image, !child.in_trash)
}

fn plain_child(child: &ChildInfo, all: bool) -> String {
    let note = match child.host {
        _ if child.in_trash => format!(" (trash {})", child.image_id),
        Some(_) if all => format!(" (id {})", child.image_id),
        _ => String::new(),
    };
    line(&format!("{child}{note}"))
}

fn child_node(child: &ChildInfo, all: bool) -> Node {
    let mut members: Vec<(&'static str, Node)> = vec![
        ("pool", child.pool.as_str().into()),
        ("pool_namespace", child.namespace.to_string().into()),
        ("image", child.image.as_str().into()),
    ];
    if all {
        members.push(("id", child.image_id.to_string().into()));
        members.push(("trash", Node::Bool(child.in_trash)));
        members.extend(child.host.as_deref().map(|host| ("host", host.into())));
    }
    Node::Object(members)
}

fn flatten(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    let parts = info.parent.as_ref().map_or(0, |p| objects(p.overlap_bytes, info.order));
    let mut progress = session.parts("Image flatten");
    progress.count_in(parts);
    let mut report = |done, total| progress.update_before_end(done, total);
    let outcome = image.flatten(&mut report);
    if outcome.is_ok() {
        progress.catch_up(1, parts);
    }
    progress.end(outcome.map_err(|e| Failure::engine("flatten error", &e)))?;
    tell_of_attached_snapshots(session, &image)
}

/// Prints which snapshots still need the parent. An image without the feature `deep-flatten` has some.
fn tell_of_attached_snapshots(session: &Session, image: &Image) -> Outcome {
    let attached =
        image.attached_snapshots().map_err(|error| session::opening_failed(image, &error))?;
    if !attached.is_empty() {
        let message = format!(
            "the image no longer needs its parent, but these snapshots of it do, because it lacks the \
             feature deep-flatten: {}",
            attached.join(", ")
        );
        warn(session.program, &message);
    }
    Ok(())
}

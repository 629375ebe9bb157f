//! `create`, `resize`, `rename`, `remove`.

use marcot::ErrorKind;
use marcot_client::{CreateOptions, Image, ImageName, Pool};

use super::{DEST_IMAGE_SPEC, IMAGE_SPEC};
use crate::args::names::{self, Role, SnapRule, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{self, EBUSY, ENOTEMPTY};
use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::session::{self, Session};
use crate::signals;

const THICK: &[Opt] =
    &[Opt::new("thick-provision", Kind::Flag, "fully allocate storage and zero image")];
const ALLOW_SHRINK: &[Opt] = &[Opt::new("allow-shrink", Kind::Flag, "permit shrinking")];
const FORCE: &[Opt] = &[Opt::new(
    "force",
    Kind::Flag,
    "remove the image even if its head is damaged: its data and its snapshots are given up; refused \
     while it has children, which must be flattened or removed first",
)
.own()];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["create"], "Create an empty image.", create)
        .positionals(&[IMAGE_SPEC])
        .options(&[
            options::IMAGE,
            options::IMAGE_FORMAT,
            options::LAYOUT,
            THICK,
            options::SIZE,
            options::NO_PROGRESS,
        ])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("create vm-1 --size 10G", "an image in the pool rbd"),
            ("create kubernetes/empty.img -s 512", "512 MiB in another pool"),
        ]),
    CommandSpec::new(&["resize"], "Resize (expand or shrink) image.", resize)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::SIZE, ALLOW_SHRINK, options::NO_PROGRESS])
        .examples(&[
            ("resize vm-1 --size 20G", "grow; works while the image is in use"),
            ("resize vm-1 --size 5G --allow-shrink", "shrink; data beyond 5 GiB is lost"),
        ]),
    CommandSpec::new(&["rename"], "Rename image within pool.", rename)
        .aliases(&[&["mv"]])
        .positionals(&[
            Positional::one(
                "source-image-spec",
                "source image specification (example: [<pool-name>/[<namespace>/]]<image-name>)",
            ),
            DEST_IMAGE_SPEC,
        ])
        .options(&[options::SOURCE, options::DEST])
        .examples(&[("rename vm-1 web-1", "children keep their parent")]),
    CommandSpec::new(&["remove"], "Delete an image.", remove)
        .aliases(&[&["rm"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, FORCE, options::NO_PROGRESS])
        .examples(&[
            ("rm vm-1", "refused while the image has snapshots or is in use"),
            ("rm --force vm-1", "give up what a damaged head named; nothing else is forced"),
        ]),
];

fn create(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "create error";
    let wanted = layout::Wanted::read(args)?;
    let target = names::target(args, &mut 0, Wanted::NEW_IMAGE)?;
    let size_bytes = required_size(args)?;
    let pool = session.pool_of(&target)?;
    let nothing = layout::Source::nothing();
    let mut options = wanted.options(session, (&pool, &target), &nothing, ERROR)?;
    options.size_bytes = size_bytes;
    if args.flag("thick-provision") {
        return create_thick(session, &pool, &target, &options);
    }
    pool.create(target.name(), &options).map_err(|error| Failure::engine(ERROR, &error))?;
    Ok(())
}

/// Creates an image whose blocks are all written. Until they are, the image is hidden.
fn create_thick(
    session: &Session,
    pool: &Pool,
    target: &Target,
    options: &CreateOptions,
) -> Outcome {
    const ERROR: &str = "create error";
    signals::catch_and_watch();
    let failed = |error: marcot::Error| match error.kind() {
        ErrorKind::Interrupted => Failure::new(signals::status(), format!("{ERROR}: interrupted")),
        _ => Failure::engine(ERROR, &error),
    };
    let mut incoming = pool.begin_image(target.name(), options).map_err(failed)?;
    let mut progress = session.bytes("Thick provisioning");
    let written = incoming.fill_with_zeros(&mut |done, total| progress.update(done, total));
    progress.end(written.and_then(|()| incoming.finish()).map(drop).map_err(failed))
}

fn required_size(args: &Args) -> Outcome<u64> {
    args.bytes_of_mib("size").ok_or_else(|| Failure::invalid("must specify --size <M/G/T>"))
}

fn resize(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let size_bytes = required_size(args)?;
    let image = session.find(&target)?;
    let allow_shrink = args.flag("allow-shrink");
    let info = session::info(&image)?;
    check_new_size(info.size_bytes, size_bytes, allow_shrink)?;
    let mut progress = session.steps("Resizing image");
    let mut report = |done, total| progress.update_before_end(done, total);
    let outcome = image.resize(size_bytes, allow_shrink, &mut report);
    if outcome.is_ok() && size_bytes < info.size_bytes {
        progress.catch_up(objects(size_bytes, info.order), objects(info.size_bytes, info.order));
    }
    progress.end(outcome.map_err(|e| Failure::engine("resize error", &e)))
}

/// How many objects an image of `rbd` would have.
pub fn objects(size_bytes: u64, order: u32) -> u64 {
    size_bytes.div_ceil(1 << order)
}

fn check_new_size(old_bytes: u64, new_bytes: u64, allow_shrink: bool) -> Outcome {
    if new_bytes < old_bytes && !allow_shrink {
        return Err(Failure::invalid(
            "shrinking an image is only allowed with the --allow-shrink flag",
        ));
    }
    if new_bytes == old_bytes {
        // rbd has a blank at the end of this line.
        return Err(Failure::invalid("new size is equal to original size "));
    }
    Ok(())
}

fn rename(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let from = names::target(args, &mut cursor, Wanted::IMAGE)?;
    let wanted = Wanted { role: Role::Dest, snap: SnapRule::None, ..Wanted::NEW_IMAGE };
    let to = names::target(args, &mut cursor, wanted)?;
    check_same_pool(&from, &to)?;
    let pool = session.pool_of(&from)?;
    check_same_namespace(&from, &to)?;
    pool.rename(from.name(), &to.image).map_err(|error| Failure::engine("rename error", &error))
}

/// `rbd` compares the pools as they are written on the command line.
fn check_same_pool(from: &Target, to: &Target) -> Outcome {
    if !to.pool.is_empty() && from.pool != to.pool {
        let pools = format!("source pool: {} dest pool: {}", from.pool, to.pool);
        return Err(Failure::invalid("mv/rename across pools not supported").then_bare(pools));
    }
    Ok(())
}

/// `rbd` looks at them once it has found those of the source.
fn check_same_namespace(from: &Target, to: &Target) -> Outcome {
    let elsewhere = !to.pool.is_empty() || !to.namespace.is_empty();
    if elsewhere && from.namespace != to.namespace {
        return Err(Failure::invalid("mv/rename across namespaces not supported").then_bare(
            format!("source namespace: {} dest namespace: {}", from.namespace, to.namespace),
        ));
    }
    Ok(())
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let pool = session.pool_of(&target)?;
    const ERROR: &str = "delete error";
    let mut progress = session.parts("Removing image");
    let outcome = pool
        .image(target.name())
        .map_err(|error| Failure::engine(ERROR, &error))
        .and_then(|image| {
            let info = image.info().ok();
            let parts = info.map_or(0, |i| objects(i.size_bytes, i.order));
            progress.count_in(parts);
            let mut report = |done, total| progress.update_before_end(done, total);
            let removed = match args.flag("force") {
                true => image.give_up(&mut report),
                false => image.remove(&mut report),
            };
            removed.map_err(|error| removal_failure(session, &image, &error, ERROR))?;
            progress.catch_up(1, parts);
            Ok(())
        });
    progress.end(outcome)
}

/// `rbd`'s words for an image that has snapshots.
pub fn has_snapshots(program: &str) -> String {
    format!(
        "image has snapshots - these must be deleted with '{program} snap purge' before the image can \
         be removed."
    )
}

/// The failure of a removal, with `rbd`'s words for the reasons that users meet; `what` names the others.
pub fn removal_failure(
    session: &Session,
    image: &Image,
    error: &marcot::Error,
    what: &str,
) -> Failure {
    match error.kind() {
        ErrorKind::HasSnapshots => {
            let program = session.program;
            let trash_only = image.info().is_ok_and(|i| i.snapshots.iter().all(|s| s.trashed));
            let message = if trash_only {
                "image has snapshots with linked clones - these must be deleted or flattened \
                 before the image can be removed."
                    .to_string()
            } else {
                has_snapshots(program)
            };
            Failure::new(ENOTEMPTY, message)
        }
        ErrorKind::InGroup => {
            let group = image.group().ok().flatten();
            let place = group.map_or_else(String::new, |group| {
                let name = ImageName::new(group.name).in_namespace(group.namespace);
                format!(" {}/{name}", group.pool)
            });
            Failure::new(errno::of(error), format!("error: image belongs to a group{place}"))
                .then_bare("Remove the image from the group and try again.")
        }
        ErrorKind::Owned | ErrorKind::Busy => {
            Failure::new(EBUSY, "error: image still has watchers")
                .then_bare(
                    "This means the image is still open or the client using it crashed. Try again \
                 after closing/unmapping it or waiting 30s for the crashed client to timeout.",
                )
                .because(error.sentence())
        }
        ErrorKind::Corrupt if image.info().is_err() => {
            let hint = "restore the head from a backup, or give the image up with 'rm --force'";
            Failure::engine(what, error).then(hint)
        }
        _ => Failure::engine(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pool: &str, namespace: &str) -> Target {
        Target { pool: pool.into(), namespace: namespace.into(), ..Target::default() }
    }

    #[test]
    fn rename_compares_pools_as_written() {
        assert!(check_same_pool(&at("rbd", ""), &at("", "")).is_ok());
        assert!(check_same_pool(&at("rbd", ""), &at("rbd", "")).is_ok());
        let failure = check_same_pool(&at("", ""), &at("rbd", "")).unwrap_err();
        assert_eq!(
            failure.render("rbd"),
            "rbd: mv/rename across pools not supported\nsource pool:  dest pool: rbd\n"
        );
        assert!(check_same_namespace(&at("rbd", "n"), &at("rbd", "")).is_err());
        assert!(check_same_namespace(&at("rbd", "n"), &at("", "")).is_ok());
    }

    #[test]
    fn a_size_must_differ_and_may_shrink_only_when_allowed() {
        assert!(check_new_size(5, 6, false).is_ok());
        assert!(check_new_size(5, 4, true).is_ok());
        assert_eq!(check_new_size(5, 4, false).unwrap_err().status, 22);
        let same = check_new_size(5, 5, true).unwrap_err();
        assert_eq!(same.render("rbd"), "rbd: new size is equal to original size \n");
    }
}

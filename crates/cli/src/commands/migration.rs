//! `migration prepare`, `execute`, `commit`, `abort`.

use marcot_client::MigrationOptions;
use marcot_client::layering::Children;
use marcot_client::migration::Migration;

use super::image::objects;
use super::{DEST_IMAGE_SPEC, IMAGE_SPEC, import_only};
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{EBUSY, ENOSYS};
use crate::failure::{Failure, Outcome};
use crate::layout::{self, LAYERING};
use crate::output::err;
use crate::session::Session;
use crate::signals;

const SOURCE_SPEC: Positional = Positional::one(
    "source-image-or-snap-spec",
    "source image or snapshot specification \
     (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
);
const FLATTEN: &[Opt] =
    &[Opt::new("flatten", Kind::Flag, "fill clone with parent data (make it independent)")];
const FORCE: &[Opt] = &[Opt::new("force", Kind::Flag, "proceed even if the image has children")];

const NO_SNAPSHOT: &str = "snapshot name specified for a command that doesn't use it";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["migration", "prepare"], "Prepare image migration.", prepare)
        .positionals(&[SOURCE_SPEC, DEST_IMAGE_SPEC])
        .options(&[
            import_only::OPTIONS,
            options::SOURCE_SNAP,
            options::DEST,
            options::IMAGE_FORMAT,
            options::LAYOUT,
            FLATTEN,
        ])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("migration prepare vm-1 fast/vm-1", "fast/vm-1 can be used at once"),
            ("migration prepare vm-1 rbd/web/vm-1", "into a namespace; nothing is copied"),
            (
                "migration prepare --import-only --source-spec '{\"type\":\"qcow\",\"stream\":{\"type\":\"file\",\"file_path\":\"/images/vm.qcow2\"}}' vm-1",
                "usable at once; reads what is not copied yet from the file",
            ),
            (
                "migration prepare --import-only --source-spec-path vm.json vm-1",
                "the same, described in a file; formats raw, qcow, vmdk, vhd, vhdx; streams file, http (url), nbd (uri)",
            ),
        ]),
    CommandSpec::new(&["migration", "execute"], "Execute image migration.", execute)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::NO_PROGRESS])
        .examples(&[("migration execute fast/vm-1", "works while the image is in use")]),
    CommandSpec::new(&["migration", "commit"], "Commit image migration.", commit)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::NO_PROGRESS, FORCE])
        .examples(&[("migration commit fast/vm-1", "removes the source, rbd/vm-1")]),
    CommandSpec::new(&["migration", "abort"], "Cancel interrupted image migration.", abort)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::NO_PROGRESS])
        .examples(&[(
            "migration abort fast/vm-1",
            "back to rbd/vm-1; data written meanwhile stays, new snapshots do not",
        )]),
];

fn prepare(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "preparing migration failed";
    if import_only::is_asked(args) {
        return import_only::prepare(session, args);
    }
    let mut cursor = 0;
    let source = names::target(args, &mut cursor, Wanted::IMAGE)?;
    let dest = names::target(args, &mut cursor, Wanted::DEST.optional());
    let mut dest = dest.map_err(|failure| match failure.sentence() {
        // `rbd` does not say here which of the two names is meant.
        text if text == format!("destination {NO_SNAPSHOT}") => Failure::invalid(NO_SNAPSHOT),
        _ => failure,
    })?;
    if dest.image.is_empty() {
        dest.image.clone_from(&source.image);
    }
    let wanted = layout::Wanted::read(args)?;
    let pool = session.pool_of(&source)?;
    let dest_pool = session.pool_of(&dest)?;
    let failed = |error| Failure::engine(ERROR, &error);
    let info = pool.image(source.name()).and_then(|image| image.info()).map_err(failed)?;
    let from = layout::Source::image(&info);
    let layout = wanted.options_whatever_the_name(session, &dest_pool, &from, ERROR)?;
    if wanted.leaves_out(LAYERING) && info.snapshots.iter().any(|snap| snap.protected) {
        let cause = "protected snapshots need the feature layering";
        return Err(Failure::errno(ERROR, ENOSYS).because(cause));
    }
    let options = MigrationOptions { layout, flatten: args.flag("flatten") };
    let prepared = pool.prepare_migration(source.name(), &dest_pool, dest.name(), &options);
    prepared.map(drop).map_err(|error| match error.kind() {
        // As with `rbd`, whatever is in the way of the source.
        marcot::ErrorKind::Owned | marcot::ErrorKind::HasChildren => {
            Failure::errno(ERROR, EBUSY).because(error.sentence())
        }
        _ => failed(error),
    })
}

/// The migration of the image that the command line names, by its present name or, of the source, by the one before.
fn find(session: &Session, target: &Target) -> Outcome<Result<Migration, marcot::Error>> {
    Ok(session.pool_of(target)?.migration(target.name()))
}

fn failed(what: &str, error: &marcot::Error) -> Failure {
    match error.kind() {
        marcot::ErrorKind::Interrupted => {
            Failure::new(signals::status(), format!("{what}: interrupted"))
        }
        marcot::ErrorKind::Owned | marcot::ErrorKind::HasChildren => {
            Failure::errno(what, EBUSY).because(error.sentence())
        }
        _ => Failure::engine(what, error),
    }
}

fn execute(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "migration failed";
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let found = find(session, &target)?;
    let mut progress = session.parts("Image migration");
    signals::catch_and_watch();
    let outcome = found.and_then(|migration| {
        progress.count_in(parts(&migration));
        migration.execute(&mut |done, total| progress.update_before_end(done, total))?;
        progress.catch_up(1, parts(&migration));
        Ok(())
    });
    progress.end(outcome.map_err(|error| failed(ERROR, &error)))
}

/// The objects of the image, by which `rbd` counts.
fn parts(migration: &Migration) -> u64 {
    migration.target().info().map_or(0, |info| objects(info.size_bytes, info.order))
}

fn commit(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "committing migration failed";
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let migration = find(session, &target)?.map_err(|error| {
        // `rbd` looks at the status first.
        Failure::engine("getting migration status failed", &error)
    })?;
    let force = args.flag("force");
    if let Some(warning) = descendants(&migration, force) {
        if !force {
            return Err(warning);
        }
        err(&warning.render(session.program));
    }
    let mut progress = session.parts("Commit image migration");
    progress.count_in(parts(&migration));
    let outcome = migration.commit(&mut |done, total| progress.update_before_end(done, total));
    if outcome.is_ok() {
        progress.catch_up(1, parts(&migration));
    }
    progress.end(outcome.map_err(|error| failed(ERROR, &error)))
}

/// What `rbd` says where the image has clones. Readers of them notice nothing here, but scripts wait for `--force`.
fn descendants(migration: &Migration, force: bool) -> Option<Failure> {
    let mut found = migration.target().children(Children::Descendants, None).ok()?;
    if found.is_empty() {
        return None;
    }
    found.sort_by_key(ToString::to_string);
    let count = if found.len() == 1 { "a descendant" } else { "descendants" };
    let mut warning = Failure::new(EBUSY, format!("the image has {count}: "));
    for child in found {
        warning = warning.then_bare(format!("  {child}"));
    }
    let last = match force {
        true => "Proceeding anyway due to force flag set.",
        false => "Ensure no descendant images are opened read-only and run again with force flag.",
    };
    let what = "Warning: in-use, read-only descendant images will not detect the parent update.";
    Some(warning.then_bare(what).then_bare(last))
}

fn abort(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "aborting migration failed";
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let found = find(session, &target)?;
    let mut progress = session.parts("Abort image migration");
    let outcome = found.and_then(|migration| {
        migration.abort(&mut |done, total| progress.update_before_end(done, total))
    });
    progress.end(outcome.map_err(|error| failed(ERROR, &error)))
}

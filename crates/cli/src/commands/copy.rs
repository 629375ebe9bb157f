//! `copy`: a full, independent copy of an image or snapshot. `deep copy`: one with its snapshots and its parent.

use marcot::{CreateOptions, ImageInfo};
use marcot_client::deep_copy::DeepCopy;
use marcot_client::{Image, Pool};

use super::DEST_IMAGE_SPEC;
use super::layer::clone_format;
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::ENOSYS;
use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::session::{self, Session};
use crate::signals;

const ERROR: &str = "copy failed";
const ERROR_DEEP: &str = "deep copy failed";

const SOURCE_SPEC: Positional = Positional::one(
    "source-image-or-snap-spec",
    "source image or snapshot specification \
     (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
);
const FLATTEN: &[Opt] =
    &[Opt::new("flatten", Kind::Flag, "fill clone with parent data (make it independent)")];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["copy"], "Copy src image to dest.", copy)
        .aliases(&[&["cp"]])
        .positionals(&[SOURCE_SPEC, DEST_IMAGE_SPEC])
        .options(&[
            options::SOURCE_SNAP,
            options::DEST,
            options::LAYOUT,
            options::SPARSE_SIZE,
            options::NO_PROGRESS,
        ])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("cp vm-1 vm-1-copy", "without snapshots and without parent"),
            ("cp vm-1@before-upgrade backup/vm-1", "of a snapshot, into another pool"),
            (
                "cp vm-1@before-upgrade backup/vm-1",
                "again after an interruption: it goes on where it was",
            ),
        ]),
    CommandSpec::new(&["deep", "copy"], "Deep copy src image to dest.", deep_copy)
        .aliases(&[&["deep", "cp"]])
        .positionals(&[SOURCE_SPEC, DEST_IMAGE_SPEC])
        .options(&[
            options::SOURCE_SNAP,
            options::DEST,
            options::LAYOUT,
            FLATTEN,
            options::NO_PROGRESS,
        ])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("deep cp vm-1 backup/vm-1", "with snapshots, their protection, and the parent"),
            ("deep cp --flatten vm-1 backup/vm-1", "with snapshots, and without parent"),
        ]),
];

/// What a copy is made of, and where.
struct Task {
    image: Image,
    info: ImageInfo,
    snap: Option<String>,
    pool: Pool,
    dest: Target,
    wanted: layout::Wanted,
}

impl Task {
    fn read(session: &Session, args: &Args) -> Outcome<Self> {
        let mut cursor = 0;
        let source = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
        let dest = names::target(args, &mut cursor, Wanted::DEST)?;
        let wanted = layout::Wanted::read(args)?;
        let image = session.find(&source)?;
        let info = session::info(&image)?;
        let snap = match source.snap.as_str() {
            "" => None,
            name => Some(session::snapshot(&image, name)?.name),
        };
        let pool = session.pool_of(&dest)?;
        Ok(Self { image, info, snap, pool, dest, wanted })
    }

    /// The layout of the copy. `error` is `rbd`'s name for the failure.
    fn layout(&self, session: &Session, error: &str) -> Outcome<CreateOptions> {
        let from = layout::Source::image(&self.info);
        self.wanted.options(session, (&self.pool, &self.dest), &from, error)
    }

    /// True if a deep copy has a parent, or a snapshot that is protected.
    fn needs_layering(&self, flatten: bool) -> bool {
        let last = self.snap.as_deref();
        let mut snapshots = self.info.snapshots.iter().filter(|snap| snap.is_of_users());
        let end = snapshots.clone().position(|snap| Some(snap.name.as_str()) == last);
        let count = end.map_or(usize::MAX, |end| end + 1);
        (self.info.parent.is_some() && !flatten)
            || snapshots.by_ref().take(count).any(|snap| snap.protected)
    }

    fn object_bytes(&self) -> u64 {
        1 << self.info.order
    }
}

fn copy(session: &Session, args: &Args) -> Outcome {
    let task = Task::read(session, args)?;
    let mut progress = session.bytes("Image copy");
    let layout = match task.layout(session, ERROR) {
        Ok(layout) => Some(layout),
        Err(failure) => return progress.end(Err(failure)),
    };
    let mut report = |done, total| progress.pass(done, task.object_bytes(), total);
    signals::catch_and_watch();
    let (image, pool, name) = (&task.image, &task.pool, task.dest.name());
    let copied = match &task.snap {
        None => image.copy_into(pool, name, layout, &mut report),
        Some(snap) => image.snapshot(snap).copy_into(pool, name, layout, &mut report),
    };
    progress.end(copied.map(drop).map_err(|error| failed(ERROR, &error)))
}

fn deep_copy(session: &Session, args: &Args) -> Outcome {
    let task = Task::read(session, args)?;
    let mut progress = session.bytes("Image deep copy");
    let layout = match task.layout(session, ERROR_DEEP) {
        Ok(layout) => Some(layout),
        Err(failure) => return progress.end(Err(failure)),
    };
    if task.needs_layering(args.flag("flatten")) && task.wanted.leaves_out("layering") {
        let cause = "a parent, and protected snapshots, need the feature layering";
        return progress.end(Err(Failure::errno(ERROR_DEEP, ENOSYS).because(cause)));
    }
    let mut report = |done, total| progress.pass(done, task.object_bytes(), total);
    signals::catch_and_watch();
    let what = DeepCopy {
        up_to: task.snap.as_deref(),
        layout,
        flatten: args.flag("flatten"),
        clone_format: Some(clone_format(args)),
    };
    let copied = task.image.deep_copy_into(&task.pool, task.dest.name(), what, &mut report);
    progress.end(copied.map(drop).map_err(|error| failed(ERROR_DEEP, &error)))
}

fn failed(what: &str, error: &marcot::Error) -> Failure {
    if error.kind() == marcot::ErrorKind::Interrupted {
        return Failure::new(signals::status(), format!("{what}: interrupted"));
    }
    Failure::engine(what, error)
}

//! `import`: makes an image from a file or standard input.

use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use marcot_client::Pool;
use marcot_client::copy::GRAIN_BYTES;
use marcot_client::foreign::{Steps, Trouble};
use marcot_client::incoming::Incoming;
use marcot_foreign::spool::fill;
use marcot_foreign::{Format, Source as Disk};

use super::DEST_IMAGE_SPEC;
use super::files::{EXPORT_FORMAT, is_format_2, path_argument, sparse_grain};
use super::origin::{self, Origin};
use super::source::Source;
use super::whole::import_whole;
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::EOPNOTSUPP;
use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::output::warn;
use crate::progress::Progress;
use crate::session::Session;
use crate::{signals, time};

const OLD_NAMES: &[Opt] = &[
    Opt::new("pool", Kind::Text, "deprecated: use --dest-pool").letter('p'),
    Opt::new("image", Kind::Text, "deprecated: use --dest"),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["import"], "Import image from file.", import)
        .positionals(&[
            Positional::one("path-name", "import file (or '-' for stdin)"),
            DEST_IMAGE_SPEC,
        ])
        .options(&[
            options::IMPORT_PATH,
            options::DEST,
            options::IMAGE_FORMAT,
            options::LAYOUT,
            options::SPARSE_SIZE,
            options::NO_PROGRESS,
            EXPORT_FORMAT,
            origin::OPTIONS,
            OLD_NAMES,
        ])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("import debian.raw templates/debian", "zeros take no space"),
            ("import --export-format 2 vm-1.rbd vm-1", "with its snapshots and its metadata"),
            ("import - vm-1 < disk.raw", "from a pipe"),
            (
                "import debian.qcow2 templates/debian",
                "also VMDK, VHD, VHDX, and .gz, .xz, .zst around them",
            ),
            (
                "import --backing-dir /images /images/vm-1.qcow2 vm-1",
                "with its chain of backing files, if all lie in that directory",
            ),
            (
                "import https://example.org/debian.qcow2 templates/debian",
                "only the parts with data, where the server answers requests for ranges; the variable SSL_CERT_FILE names a file of certificates of authorities",
            ),
            (
                "import nbd://host/vm-1 vm-1",
                "an export of an NBD server; nbd+unix:///NAME?socket=PATH",
            ),
            ("import --source-format raw disk.qcow2 file", "the bytes of the file as they are"),
            (
                "import debian.raw templates/debian",
                "again after an interruption: it goes on where it was",
            ),
        ])];

fn import(session: &Session, args: &Args) -> Outcome {
    let outcome = import_quietly(session, args);
    if args.flag("image") {
        warn(session.program, "--image is deprecated, use --dest");
    }
    if args.flag("pool") {
        warn(session.program, "-p [ --pool ] is deprecated, use --dest-pool");
    }
    outcome
}

fn import_quietly(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let path = path_argument(args, &mut cursor)?;
    let target = destination(args, &mut cursor, &path)?;
    let wanted = layout::Wanted::read(args)?;
    let pool = session.pool_of(&target)?;
    let mut progress = session.bytes("Importing image");
    if origin::is_url(&path) {
        let outcome = if is_format_2(args) {
            Err(Failure::errno(ERROR, EOPNOTSUPP)
                .because("a stream with snapshots is read from a file or from standard input"))
        } else {
            let job = Job { session, args, pool: &pool, target: &target, path: &path };
            job.run(&wanted, None, &mut progress)
        };
        return progress.end(outcome);
    }
    let source = Source::open(session, &path, ERROR)?;
    let outcome = source.size_bytes(session, ERROR).and_then(|_| {
        if is_format_2(args) {
            return import_whole(session, args, &pool, &target, &source, &mut progress);
        }
        let job = Job { session, args, pool: &pool, target: &target, path: &path };
        job.run(&wanted, Some(&source), &mut progress)
    });
    progress.end(outcome)
}

/// An import of the bytes of a disk.
struct Job<'a> {
    session: &'a Session,
    args: &'a Args,
    pool: &'a Pool,
    target: &'a Target,
    path: &'a str,
}

impl Job<'_> {
    /// Imports what is in `source`, or at the URL where there is none.
    fn run(
        &self,
        wanted: &layout::Wanted,
        source: Option<&Source>,
        progress: &mut Progress,
    ) -> Outcome {
        let Self { session, args, pool, target, path } = *self;
        let nothing = layout::Source::nothing();
        let options = wanted.options(session, (pool, target), &nothing, ERROR);
        let mut options = options.inspect_err(|failure| {
            if failure.status != EOPNOTSUPP {
                warn(session.program, "image creation failed");
            }
        })?;
        signals::catch_and_watch();
        let from = origin::Wanted::read(args, path);
        let origin = match source {
            Some(source) => from.open(source, ERROR)?,
            None => from.open_url(ERROR)?,
        };
        let grain_bytes = sparse_grain(args, GRAIN_BYTES);
        let steps = Steps { piece_bytes: 1 << options.order, grain_bytes };
        options.size_bytes = origin.size_bytes();
        let note = source.zip(origin.format());
        let note = note.and_then(|(source, format)| file_note(source, format, grain_bytes));
        let incoming = match note {
            Some(note) => pool.begin_or_continue(target.name(), &options, &note),
            None => pool.begin_image(target.name(), &options),
        };
        let incoming = incoming.map_err(|error| {
            warn(session.program, "image creation failed");
            failed(error)
        })?;
        match origin {
            Origin::Disk { disk, .. } => import_disk(disk.as_ref(), steps, incoming, progress)
                .map_err(|trouble| match trouble {
                    Trouble::Disk(why) => from.failed(ERROR, &why),
                    Trouble::Image(error) => failed(error),
                }),
            Origin::Stream(mut stream) => {
                import_stream(stream.as_mut(), steps, incoming, |why| from.failed(ERROR, &why))
            }
        }
    }
}

const ERROR: &str = "import failed";

/// A file that was changed so short ago may be changed again without another time of its last change, in seconds.
const SETTLED_S: i64 = 2;

/// A text that tells the state of a regular file, read in one format, from all others. `None` for anything else, and for
/// a file that was changed just now.
fn file_note(source: &Source, format: Format, grain_bytes: usize) -> Option<String> {
    let Source::File(file) = source else { return None };
    let (about, now_s) = (file.metadata().ok().filter(Metadata::is_file)?, time::now_s());
    let changed_s = about.mtime().max(about.ctime());
    (changed_s + SETTLED_S <= now_s).then(|| {
        let read_as = match format {
            Format::Raw => String::new(),
            other => format!(" {}", other.name()),
        };
        format!(
            "file {}:{} {} {}.{} {}.{} {grain_bytes}{read_as}",
            about.dev(),
            about.ino(),
            about.len(),
            about.mtime(),
            about.mtime_nsec(),
            about.ctime(),
            about.ctime_nsec()
        )
    })
}

/// The image to make. It is named after the file if the command line does not name it.
fn destination(args: &Args, cursor: &mut usize, path: &str) -> Outcome<Target> {
    let mut target = names::target(args, cursor, Wanted::DEST.optional())?;
    if target.pool.is_empty() {
        target.pool = args.text("pool").unwrap_or_default().to_string();
    }
    if target.image.is_empty() {
        target.image = args.text("image").unwrap_or_default().to_string();
    }
    if target.image.is_empty() {
        let name = Path::new(origin::path_of(path)).file_name().and_then(|name| name.to_str());
        target.image = name.unwrap_or_default().to_string();
    }
    if target.image.is_empty() {
        return Err(Failure::invalid("destination image name was not specified"));
    }
    Ok(target)
}

fn import_disk(
    disk: &dyn Disk,
    steps: Steps,
    mut incoming: Incoming,
    progress: &mut Progress,
) -> std::result::Result<(), Trouble> {
    let snapshots = disk.snapshots();
    let states = snapshots.iter().map(|snapshot| snapshot.size_bytes);
    let total = states.fold(disk.size_bytes(), u64::saturating_add);
    let mut report = |done| progress.pass_before_end(done, steps.piece_bytes, total);
    match snapshots {
        [] => incoming.take_disk(disk, steps, &mut report)?,
        _ => {
            let name = |index| origin::snapshot_name(snapshots, index);
            incoming.take_states(disk, steps, &name, &mut report)?;
        }
    }
    Ok(incoming.finish().map(drop)?)
}

fn import_stream(
    stream: &mut dyn Read,
    steps: Steps,
    mut incoming: Incoming,
    unreadable: impl Fn(marcot_foreign::Error) -> Failure,
) -> Outcome {
    let mut buffer = vec![0; usize::try_from(steps.piece_bytes).unwrap_or(0)];
    let mut offset = 0;
    loop {
        let filled = fill(stream, &mut buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => interrupted(),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => unreadable(error.into()),
            _ => Failure::io(ERROR, &error),
        })?;
        let end = offset + filled as u64;
        incoming.grow_to_hold(end).map_err(failed)?;
        incoming.write(offset, &buffer[..filled], steps.grain_bytes).map_err(failed)?;
        offset = end;
        if filled < buffer.len() {
            break;
        }
    }
    incoming.resize(offset).map_err(failed)?;
    incoming.finish().map(drop).map_err(failed)
}

fn failed(error: marcot::Error) -> Failure {
    if error.kind() == marcot::ErrorKind::Interrupted {
        return interrupted();
    }
    Failure::engine(ERROR, &error)
}

fn interrupted() -> Failure {
    Failure::new(signals::status(), format!("{ERROR}: interrupted"))
}

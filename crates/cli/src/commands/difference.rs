//! `export-diff`, `import-diff`, `merge-diff`: differences between states of an image, as streams.

use std::io;

use marcot::{Error, ErrorKind};
use marcot_client::Image;
use marcot_client::content::States;
use marcot_client::copy::GRAIN_BYTES;
use marcot_client::stream::import::{Difference, Left, Trouble};
use marcot_client::stream::merge::{self, Side};
use marcot_client::stream::records::{Unreadable, Why};
use marcot_client::stream::wire::{Part, Refusal};
use marcot_client::stream::{export, wire};

use super::files::{path_argument, sparse_grain};
use super::sink::Sink;
use super::source::Source;
use super::{IMAGE_SPEC, SOURCE_IMAGE_OR_SNAP_SPEC};
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{self, EBADMSG, EDOM, EEXIST, EINVAL, ENOSYS, EOPNOTSUPP};
use crate::failure::{Failure, Outcome};
use crate::layout::{LAYERING, NO_LAYERING, has_feature};
use crate::output::{err, line, warn};
use crate::session::{self, Session};
use crate::shown;
use crate::signals;

const DIFF: &[Opt] = &[
    Opt::new("from-snap", Kind::Text, "snapshot starting point"),
    Opt::new("whole-object", Kind::Flag, "compare whole object"),
];
const MERGED_PATH: &[Opt] =
    &[Opt::new("path", Kind::Text, "path to merged diff (or '-' for stdout)")];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["export-diff"], "Export incremental diff to file.", export_diff)
        .positionals(&[
            SOURCE_IMAGE_OR_SNAP_SPEC,
            Positional::one("path-name", "export file (or '-' for stdout)"),
        ])
        .options(&[options::SOURCE_SNAP, options::EXPORT_PATH, DIFF, options::NO_PROGRESS])
        .examples(&[
            ("export-diff --from-snap monday vm-1@tuesday tuesday.diff", "what changed since"),
            (
                "export-diff vm-1@monday - | ssh backup rbd import-diff - vm-1",
                "everything, by pipe",
            ),
        ]),
    CommandSpec::new(&["import-diff"], "Import an incremental diff.", import_diff)
        .positionals(&[Positional::one("path-name", "import file (or '-' for stdin)"), IMAGE_SPEC])
        .options(&[
            options::IMPORT_PATH,
            options::IMAGE,
            options::SPARSE_SIZE,
            options::NO_PROGRESS,
        ])
        .examples(&[(
            "import-diff tuesday.diff vm-1",
            "needs the snapshot that it begins with, and takes the one it ends with",
        )]),
    CommandSpec::new(&["merge-diff"], "Merge two diff exports together.", merge_diff)
        .positionals(&[
            Positional::one("diff1-path", "path to first diff (or '-' for stdin)"),
            Positional::one("diff2-path", "path to second diff"),
            Positional::one("path-name", "path to merged diff (or '-' for stdout)"),
        ])
        .options(&[MERGED_PATH, options::NO_PROGRESS])
        .examples(&[("merge-diff monday.diff tuesday.diff both.diff", "the second one counts")]),
];

// --- export-diff -----------------------------------------------------------------------------------

fn export_diff(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "export-diff error";
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
    let path = path_argument(args, &mut cursor)?;
    let image = session.find(&target)?;
    if !target.snap.is_empty() {
        session::snapshot(&image, &target.snap)?;
    }
    signals::catch_and_watch();
    let mut sink = Sink::open(&path, ERROR)?;
    let from = args.text("from-snap").filter(|name| !name.is_empty());
    let to = (!target.snap.is_empty()).then_some(&*target.snap);
    let mut progress = session.bytes("Exporting image");
    let mut begun = false;
    let outcome = image.export_difference(
        States { from, to },
        args.flag("whole-object"),
        &mut |bytes| sink.append(bytes).inspect(|()| begun = true),
        &mut |at, size_bytes| progress.update(at, size_bytes),
    );
    let outcome = outcome.and_then(|()| sink.finish_stream().map_err(export::Trouble::Sink));
    match outcome {
        // `rbd` shows progress only once the header is written.
        Err(trouble @ export::Trouble::Sink(_)) if !begun => Err(not_exported(ERROR, trouble)),
        outcome => progress.end(outcome.map_err(|trouble| not_exported(ERROR, trouble))),
    }
}

/// The failure of an export.
pub fn not_exported(error: &str, trouble: export::Trouble) -> Failure {
    match trouble {
        export::Trouble::Image(e) if is_interruption(&e) => interrupted(error),
        export::Trouble::Image(e) => Failure::engine(error, &e),
        export::Trouble::Sink(e) => failed_io(error, &e),
    }
}

fn is_interruption(error: &Error) -> bool {
    error.kind() == ErrorKind::Interrupted && signals::stop_asked()
}

/// The failure of a command that a signal has ended.
pub fn interrupted(error: &str) -> Failure {
    Failure::new(signals::status(), format!("{error}: interrupted"))
}

fn failed_io(error: &str, cause: &io::Error) -> Failure {
    match cause.kind() {
        io::ErrorKind::Interrupted => interrupted(error),
        _ => Failure::io(error, cause),
    }
}

// --- import-diff -----------------------------------------------------------------------------------

fn import_diff(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "import-diff failed";
    let mut cursor = 0;
    let path = path_argument(args, &mut cursor)?;
    let target = names::target(args, &mut cursor, Wanted::IMAGE)?;
    let image = session.find(&target)?;
    let source = Source::open(session, &path, ERROR)?;
    let file = source.regular_file();
    let file_bytes = match &source {
        Source::File(file) => file.metadata().map_or(0, |metadata| metadata.len()),
        Source::Stdin => 0,
    };
    signals::catch_and_watch();
    let mut progress = session.bytes("Importing image diff");
    let mut reader = source.reader();
    let difference = Difference {
        source: reader.as_mut(),
        file: file.as_ref().map(|(file, at)| (file, *at)),
        grain_bytes: sparse_grain(args, GRAIN_BYTES),
        may_protect: image.info().is_ok_and(|info| has_feature(&info, LAYERING)),
    };
    let mut place = 0;
    let outcome = image.import_difference(difference, &mut |position, at, size_bytes| {
        place = at.unwrap_or(place);
        match file_bytes {
            0 => progress.update(place, size_bytes),
            total => progress.update(position.min(total), total),
        }
    });
    let Err(failed) = outcome else {
        progress.finish();
        return Ok(());
    };
    // The last of the causes that `rbd` prints without a line of progress.
    let at_banner = matches!(&failed.trouble, Trouble::Stream(u) if u.part == Part::Banner);
    let mut failure = not_applied(session, ERROR, &failed.trouble, EBADMSG);
    if failed.left == Left::Partly {
        failure = failure.because(
            "the image has a part of the difference: import the whole of it, or roll back to the \
             snapshot that it begins with",
        );
    }
    if let Some(hint) = snapshots_hint(session, &image, &failed.trouble) {
        failure = failure.then_hint(hint);
    }
    if !at_banner {
        progress.fail();
    }
    Err(failure)
}

/// What can be done where the snapshots of the image do not fit those of a difference.
fn snapshots_hint(session: &Session, image: &Image, trouble: &Trouble) -> Option<String> {
    let spec = image.spec();
    match trouble {
        Trouble::NoStart(name) => {
            let has = shown::snapshots_of(&image.info().ok()?.snapshots);
            let has = has.map_or("no snapshots".to_string(), |names| format!("snapshots {names}"));
            Some(format!("{spec} has {has}: first import the difference that ends with '{name}'"))
        }
        Trouble::HasEnd(name) => Some(format!(
            "it may have been imported already; else '{} snap rename {} {}' keeps that snapshot under another name",
            session.program,
            image.spec().at(name),
            spec.at("OTHER"),
        )),
        _ => None,
    }
}

/// Prints why a difference was not applied, as `rbd` does, and returns the failure. `ended` is the number for a
/// stream that ends too early.
pub fn not_applied(session: &Session, error: &str, trouble: &Trouble, ended: i32) -> Failure {
    match trouble {
        Trouble::Stream(unreadable) => not_read(session, error, unreadable, ended),
        Trouble::NoStart(name) => {
            let message = "does not exist in the image, aborting";
            err(&line(&format!("start snapshot '{name}' {message}")));
            Failure::errno(error, EINVAL)
        }
        Trouble::HasEnd(name) => {
            err(&line(&format!("end snapshot '{name}' already exists, aborting")));
            Failure::errno(error, EEXIST)
        }
        Trouble::Protected(name) => {
            let cause = format!("snapshot '{name}' cannot be protected: {NO_LAYERING}");
            Failure::errno(error, ENOSYS).because(cause)
        }
        Trouble::Image(e) if is_interruption(e) => interrupted(error),
        Trouble::Image(e) => Failure::engine(error, e),
    }
}

/// Prints why a stream cannot be read, as `rbd` does, and returns the failure.
pub fn not_read(session: &Session, error: &str, unreadable: &Unreadable, ended: i32) -> Failure {
    let what = match unreadable.part {
        Part::Banner => "diff banner",
        Part::Tag => "tag",
        Part::Length => "tag length",
        Part::From => "start snap name",
        Part::To => "end snap name",
        Part::Protected => "snap protection status",
        Part::Size => "image size",
        Part::Extent => "IO length",
        Part::Data => "write data",
        Part::Property => "image option",
        Part::MetaKey => "metadata key",
        Part::MetaValue => "metadata value",
        Part::Skipped => "skipped tag data",
        Part::Count => "diff count",
    };
    let decode = || warn(session.program, &format!("failed to decode {what}"));
    match &unreadable.why {
        Why::Source(cause) if cause.kind() == io::ErrorKind::Interrupted => interrupted(error),
        Why::Source(cause) => {
            decode();
            Failure::io(error, cause)
        }
        Why::Ended => {
            decode();
            Failure::errno(error, ended)
        }
        Why::Refused(Refusal::Banner(_)) => {
            warn(session.program, "invalid or unexpected diff banner");
            Failure::errno(error, EINVAL)
        }
        Why::Refused(Refusal::Tag(tag)) => {
            err(&line(&format!("unrecognized tag byte {tag} in stream")));
            Failure::errno(error, EINVAL)
        }
        Why::Refused(Refusal::Length(_)) => {
            decode();
            let cause = "a record of the stream is not as long as it says";
            Failure::errno(error, EINVAL).because(cause)
        }
        Why::Refused(Refusal::TooLong | Refusal::NotText) => {
            decode();
            Failure::errno(error, EINVAL)
        }
    }
}

// --- merge-diff ------------------------------------------------------------------------------------

fn merge_diff(session: &Session, args: &Args) -> Outcome {
    let missing = |which: &str| Failure::invalid(format!("{which} diff was not specified"));
    let first = args.positional(0).ok_or_else(|| missing("first"))?;
    let second = args.positional(1).ok_or_else(|| missing("second"))?;
    let path = path_argument(args, &mut 2)?;
    signals::catch_and_watch();
    let mut progress = session.bytes("Merging image diff");
    let merged = merge_files(session, first, second, &path, &mut |done, total| {
        progress.update(done, total);
    });
    progress.end(merged)
}

fn merge_files(
    session: &Session,
    first: &str,
    second: &str,
    path: &str,
    progress: &mut dyn FnMut(u64, u64),
) -> Outcome {
    let first = Source::open(session, first, "").map_err(|f| not_merged(f.status))?;
    // Standard input can only be the first one.
    let second = Source::open_file(session, second, "").map_err(|f| not_merged(f.status))?;
    let mut sink = Sink::open(path, "").map_err(|failure| {
        warn(session.program, &format!("error create {path}"));
        not_merged(failure.status)
    })?;
    let outcome = merge::merge(
        first.reader(),
        second.reader(),
        &mut |bytes| sink.append(bytes),
        &mut |done, total| {
            progress(done, total);
            !signals::stop_asked()
        },
    );
    let piped = matches!(first, Source::Stdin);
    outcome.map_err(|trouble| tell_merge(session, &trouble, piped))?;
    sink.finish_stream().map_err(|e| not_merged(e.raw_os_error().unwrap_or(errno::EIO)))
}

/// `rbd` does not name the error number.
fn not_merged(status: i32) -> Failure {
    Failure::new(status, "merge-diff error")
}

/// Prints why differences are not merged, as `rbd` does. It passes over data in a file without looking whether
/// that is there, and then misses what should follow.
fn tell_merge(session: &Session, trouble: &merge::Trouble, piped: bool) -> Failure {
    use merge::Trouble as T;
    let of = |side: &Side| if *side == Side::First { "first" } else { "second" };
    let (message, status) = match trouble {
        T::Header(side, unreadable) => {
            if let Why::Refused(Refusal::Banner(found)) = &unreadable.why {
                let wanted = wire::What::Difference(wire::Form::One).banner();
                let (found, wanted) = (lossy(found), lossy(wanted));
                // The banner ends with a newline.
                err(&line(&format!("invalid banner '{found}', expected '{}", wanted.trim_end())));
                err(&line("'"));
            }
            (format!("failed to parse {} diff header", of(side)), status_of(unreadable))
        }
        T::NotConsecutive => {
            let message =
                "The first TO snapshot must be equal with the second FROM snapshot, aborting";
            err(&line(message));
            return not_merged(EINVAL);
        }
        T::Chunk(side, unreadable) => {
            (format!("failed to read {} diff data chunk header", of(side)), status_of(unreadable))
        }
        T::NoChunk(side) => {
            (format!("failed to read {} diff data chunk header", of(side)), EOPNOTSUPP)
        }
        T::OutOfOrder(side, last, next) => {
            (format!("out-of-order offset from {} diff ({last} > {next})", of(side)), EOPNOTSUPP)
        }
        T::Data(_, unreadable) => ("failed to merge diff chunk".to_owned(), status_of(unreadable)),
        T::Passed(unreadable) => {
            let message = match piped {
                true => "failed to skip first diff data",
                false => "failed to read first diff data chunk header",
            };
            (message.to_owned(), status_of(unreadable))
        }
        T::Sink(error) | T::SinkHeader(error) if error.kind() == io::ErrorKind::Interrupted => {
            return interrupted("merge-diff error");
        }
        T::SinkHeader(error) => {
            let status = error.raw_os_error().unwrap_or(errno::EIO);
            ("failed to write merged diff header".to_owned(), status)
        }
        T::Sink(error) => {
            let status = error.raw_os_error().unwrap_or(errno::EIO);
            ("failed to merge diff chunk".to_owned(), status)
        }
        T::Interrupted => return interrupted("merge-diff error"),
    };
    warn(session.program, &message);
    not_merged(status)
}

/// Bytes that should be text, for a message.
fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status_of(unreadable: &Unreadable) -> i32 {
    match &unreadable.why {
        Why::Ended => EDOM,
        Why::Source(error) => error.raw_os_error().unwrap_or(errno::EIO),
        Why::Refused(_) => EINVAL,
    }
}

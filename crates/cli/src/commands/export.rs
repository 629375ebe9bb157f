//! `export`: writes an image or snapshot to a file or a stream.

use std::io;

use marcot::ErrorKind;
use marcot_client::Image;
use marcot_client::content::{Content, walk_from};

use super::SOURCE_IMAGE_OR_SNAP_SPEC;
use super::files::{is_format_2, path_argument};
use super::qcow2::export_qcow2;
use super::sink::Sink;
use super::whole;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::failure::{Failure, Outcome};
use crate::output::warn;
use crate::progress::Progress;
use crate::session::{self, Session};
use crate::signals;
use crate::size;

const ERROR: &str = "export error";

/// As [`EXPORT_FORMAT`](super::files::EXPORT_FORMAT), and one that QEMU reads.
const FORMAT: &[Opt] =
    &[Opt::new("export-format", Kind::Choice(&["1", "2", "qcow2"]), "format of image file")];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["export"], "Export image to file.", export)
        .positionals(&[
            SOURCE_IMAGE_OR_SNAP_SPEC,
            Positional::one("path-name", "export file (or '-' for stdout)"),
        ])
        .options(&[options::SOURCE_SNAP, options::EXPORT_PATH, options::NO_PROGRESS, FORMAT])
        .examples(&[
            ("export --export-format 2 vm-1 vm-1.rbd", "with its snapshots and its metadata"),
            (
                "export --export-format qcow2 vm-1@backup vm-1.qcow2",
                "for QEMU; without the snapshots",
            ),
            ("export vm-1 vm-1.raw", "a sparse file; an existing one is never overwritten"),
            ("export vm-1@backup - | zstd > vm-1.zst", "to a pipe"),
            ("export vm-1@backup vm-1.raw", "again after an interruption: it goes on where it was"),
        ])];

fn export(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
    let path = path_argument(args, &mut cursor)?;
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    let snap = match target.snap.as_str() {
        "" => None,
        name => Some(session::snapshot(&image, name)?.id),
    };
    signals::catch_and_watch();
    if is_format_2(args) {
        return whole::export_whole(session, &image, &info, Sink::open(&path, ERROR)?);
    }
    if args.text("export-format") == Some("qcow2") {
        return export_as_qcow2(session, &image, &target.snap, Sink::open(&path, ERROR)?);
    }
    // Where the state cannot be told, reading it fails too.
    let state = image.state_note(snap).ok().flatten();
    let mut sink = match &state {
        Some(state) => Sink::open_or_continue(&path, ERROR, state)?,
        None => Sink::open(&path, ERROR)?,
    };
    if sink.done_bytes() > 0 {
        let done = size::show(sink.done_bytes());
        let size_bytes = info.size_bytes;
        let all = size::show(size_bytes);
        warn(session.program, &format!("going on with '{path}': {done} of {all} are there"));
    }
    let mut content = open(&image, &target.snap)?;
    let mut progress = session.bytes("Exporting image");
    let outcome =
        transfer(session.program, content.as_mut(), &mut sink, 1 << info.order, &mut progress)
            .and_then(|()| sink.finish(content.size_bytes()).map_err(|e| Failure::io(ERROR, &e)))
            .and_then(|()| content.close().map_err(failed));
    if outcome.as_ref().is_err_and(|failure| sink.keep_after(failure.status)) {
        warn(
            session.program,
            &format!("what is there of '{path}' is kept: the same command goes on with it"),
        );
    }
    progress.end(outcome)
}

/// The content of the image, or of a snapshot of it.
fn open(image: &Image, snap: &str) -> Outcome<Box<dyn Content>> {
    let content = match snap {
        "" => image.content(),
        snap => image.snapshot(snap).content(),
    };
    content.map_err(failed)
}

fn export_as_qcow2(session: &Session, image: &Image, snap: &str, mut sink: Sink) -> Outcome {
    let mut content = open(image, snap)?;
    let mut progress = session.bytes("Exporting image");
    let unwritable = |error: io::Error| match error.kind() {
        io::ErrorKind::Interrupted => interrupted(),
        _ => Failure::io(ERROR, &error),
    };
    let outcome = export_qcow2(content.as_mut(), &mut sink, &mut progress, &failed, &unwritable)
        .and_then(|()| content.close().map_err(failed));
    progress.end(outcome)
}

fn failed(error: marcot::Error) -> Failure {
    if error.kind() == ErrorKind::Interrupted && signals::stop_asked() {
        return interrupted();
    }
    Failure::engine(ERROR, &error)
}

fn interrupted() -> Failure {
    Failure::new(signals::status(), format!("{ERROR}: interrupted"))
}

/// Why a piece could not be exported.
enum Trouble {
    Source(marcot::Error),
    Sink(io::Error),
    Interrupted,
}

impl From<marcot::Error> for Trouble {
    fn from(error: marcot::Error) -> Self {
        Self::Source(error)
    }
}

fn transfer(
    program: &str,
    content: &mut dyn Content,
    sink: &mut Sink,
    piece_bytes: u64,
    progress: &mut Progress,
) -> Outcome {
    let (size_bytes, from) = (content.size_bytes(), sink.done_bytes());
    let mut at = from;
    walk_from(content, from, piece_bytes, |offset, length, data| {
        at = offset;
        let end = offset + length;
        while at < end {
            if signals::stop_asked() {
                return Err(Trouble::Interrupted);
            }
            let passed = match data {
                Some(data) => sink.write(at, data).map(|()| length),
                None => sink.skip(end - at),
            };
            at += passed.map_err(Trouble::Sink)?;
            sink.reached(at).map_err(Trouble::Sink)?;
            progress.pass_before_end(at, piece_bytes, size_bytes);
        }
        Ok(())
    })
    .map_err(|trouble| match trouble {
        Trouble::Source(error) => failed(error),
        Trouble::Sink(error) if error.kind() == io::ErrorKind::Interrupted => interrupted(),
        Trouble::Sink(error) => {
            warn(program, &format!("error writing to destination image at offset {at}"));
            Failure::io(ERROR, &error)
        }
        Trouble::Interrupted => interrupted(),
    })
}

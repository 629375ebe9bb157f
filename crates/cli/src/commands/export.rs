//! `export`: writes an image or snapshot to a file or a stream.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use marcot::ErrorKind;
use marcot_client::content::{Content, walk};
use marcot_client::copy::GRAIN_BYTES;
use marcot_client::sparse;

use super::import::{EXPORT_FORMAT, PIPE, path_argument, refuse_export_format};
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Positional, options};
use crate::errno::{EEXIST, ENOENT};
use crate::failure::{Failure, Outcome};
use crate::output::warn;
use crate::progress::Progress;
use crate::session::{self, Session};
use crate::signals::{self, HalfDone};
use crate::standard::Output;

const ERROR: &str = "export error";
/// The mode with which `rbd` creates the file. The umask applies.
const FILE_MODE: u32 = 0o644;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["export"], "Export image to file.", export)
        .positionals(&[
            Positional::one(
                "source-image-or-snap-spec",
                "source image or snapshot specification \
             (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
            ),
            Positional::one("path-name", "export file (or '-' for stdout)"),
        ])
        .options(&[options::SNAP, options::PATH, options::NO_PROGRESS, EXPORT_FORMAT])
        .examples(&[
            ("export vm-1 vm-1.raw", "a sparse file; an existing one is never overwritten"),
            ("export vm-1@backup - | zstd > vm-1.zst", "to a pipe"),
        ])];

fn export(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE_OR_SNAP)?;
    let path = path_argument(args, &mut cursor)?;
    refuse_export_format(args)?;
    let image = session.find(&target)?;
    let info = session::info(&image)?;
    if !target.snap.is_empty() {
        session::snapshot(&image, &target.snap)?;
    }
    signals::catch_and_watch();
    let mut sink = Sink::open(&path).map_err(|failure| match failure.status {
        EEXIST => failure.because(format!("'{path}' exists already; nothing is overwritten")),
        _ => failure.because(format!("cannot write to '{path}'")),
    })?;
    let content = match target.snap.as_str() {
        "" => image.content(),
        snap => image.snapshot(snap).content(),
    };
    let mut content = content.map_err(failed)?;
    let mut progress = session.bytes("Exporting image");
    let outcome =
        transfer(session.program, content.as_mut(), &mut sink, 1 << info.order, &mut progress)
            .and_then(|()| sink.finish(content.size_bytes()))
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
    let size_bytes = content.size_bytes();
    let mut at = 0;
    walk(content, piece_bytes, |offset, length, data| {
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

/// The destination of an export.
enum Sink {
    Stdout(Output),
    /// It has a temporary name until it is complete.
    File {
        file: File,
        partial: PathBuf,
        path: PathBuf,
        whole: bool,
        _half_done: HalfDone,
    },
}

impl Sink {
    fn open(path: &str) -> Outcome<Self> {
        if path == PIPE {
            let output = Output::open();
            let closed = |e| Failure::io(ERROR, &e).because("standard output is closed");
            return output.map(Self::Stdout).map_err(closed);
        }
        let path = PathBuf::from(path);
        if path.symlink_metadata().is_ok() {
            return Err(Failure::errno(ERROR, EEXIST));
        }
        let partial = partial_path(&path).ok_or_else(|| Failure::errno(ERROR, ENOENT))?;
        let half_done = HalfDone::file(&partial);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(&partial)
            .map_err(|error| Failure::io(ERROR, &error))?;
        Ok(Self::File { file, partial, path, whole: false, _half_done: half_done })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(output) => output.write(data),
            Self::File { file, .. } => {
                for run in sparse::data_runs(data, GRAIN_BYTES) {
                    file.write_all_at(&data[run.clone()], offset + run.start as u64)?;
                }
                Ok(())
            }
        }
    }

    /// Adds at most `length` zeros, and returns how many.
    fn skip(&mut self, length: u64) -> io::Result<u64> {
        match self {
            Self::Stdout(output) => output.skip(length),
            Self::File { .. } => Ok(length),
        }
    }

    fn finish(&mut self, size_bytes: u64) -> Outcome {
        let outcome = match self {
            Self::Stdout(_) => Ok(()),
            Self::File { file, partial, path, whole, .. } => file
                .set_len(size_bytes)
                .and_then(|()| file.sync_all())
                .and_then(|()| publish(partial, path))
                .inspect(|()| *whole = true),
        };
        outcome.map_err(|error| Failure::io(ERROR, &error))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::File { partial, whole: false, .. } = self {
            let _ = std::fs::remove_file(partial);
        }
    }
}

/// The temporary path. It is in the directory of the file, so that it can be renamed.
fn partial_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    let partial = format!(".{name}.marcot-partial.{}", std::process::id());
    Some(path.with_file_name(partial))
}

/// Gives the file its name, unless another file has that name.
fn publish(partial: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, partial, CWD, path, RenameFlags::NOREPLACE) {
        // For file systems without this kind of rename: a link does not replace a file either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::fs::hard_link(partial, path)?;
            std::fs::remove_file(partial)
        }
        outcome => Ok(outcome?),
    }
}

//! `import`: makes an image from a file or standard input.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use marcot_client::copy::GRAIN_BYTES;
use marcot_client::incoming::Incoming;
use rustix::fs::SeekFrom;

use super::DEST_IMAGE_SPEC;
use super::files::{EXPORT_FORMAT, is_format_2, path_argument, sparse_grain};
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
use crate::{signals, standard, time};

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
            OLD_NAMES,
        ])
        .notes(options::FEATURE_NOTES)
        .examples(&[
            ("import debian.raw templates/debian", "zeros take no space"),
            ("import --export-format 2 vm-1.rbd vm-1", "with its snapshots and its metadata"),
            ("import - vm-1 < disk.raw", "from a pipe"),
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
    let source = Source::open(session, &path, ERROR)?;
    let mut progress = session.bytes("Importing image");
    let outcome = source.size_bytes(session, ERROR).and_then(|size_bytes| {
        if is_format_2(args) {
            return import_whole(session, args, &pool, &target, &source, &mut progress);
        }
        let nothing = layout::Source::nothing();
        let options = wanted.options(session, (&pool, &target), &nothing, ERROR);
        let mut options = options.inspect_err(|failure| {
            if failure.status != EOPNOTSUPP {
                warn(session.program, "image creation failed");
            }
        })?;
        options.size_bytes = size_bytes.unwrap_or(0);
        signals::catch_and_watch();
        let note = file_note(&source, sparse_grain(args, GRAIN_BYTES));
        let incoming = match note {
            Some(note) => pool.begin_or_continue(target.name(), &options, &note),
            None => pool.begin_image(target.name(), &options),
        };
        let incoming = incoming.map_err(|error| {
            warn(session.program, "image creation failed");
            failed(error)
        })?;
        let plan =
            Plan { piece_bytes: 1 << options.order, grain_bytes: sparse_grain(args, GRAIN_BYTES) };
        match (source, size_bytes) {
            (Source::File(file), Some(size)) => plan.file(&file, size, incoming, &mut progress),
            _ => plan.stream(incoming),
        }
    });
    progress.end(outcome)
}

const ERROR: &str = "import failed";

/// A file that was changed so short ago may be changed again without another time of its last change, in seconds.
const SETTLED_S: i64 = 2;

/// A text that tells the state of a regular file from all others. `None` for anything else, and for a file that was
/// changed just now.
fn file_note(source: &Source, grain_bytes: usize) -> Option<String> {
    let Source::File(file) = source else { return None };
    let (about, now_s) = (file.metadata().ok().filter(Metadata::is_file)?, time::now_s());
    let changed_s = about.mtime().max(about.ctime());
    (changed_s + SETTLED_S <= now_s).then(|| {
        format!(
            "file {}:{} {} {}.{} {}.{} {grain_bytes}",
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
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        target.image = name.unwrap_or_default().to_string();
    }
    if target.image.is_empty() {
        return Err(Failure::invalid("destination image name was not specified"));
    }
    Ok(target)
}

struct Plan {
    /// How much is read, written and reported at a time.
    piece_bytes: u64,
    grain_bytes: usize,
}

impl Plan {
    fn file(
        &self,
        file: &File,
        size_bytes: u64,
        mut incoming: Incoming,
        progress: &mut Progress,
    ) -> Outcome {
        let mut buffer = Vec::new();
        let mut offset = incoming.done_bytes();
        while offset < size_bytes {
            offset = self.skip_holes(file, offset, size_bytes);
            let length = self.piece_bytes.min(size_bytes - offset);
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            file.read_exact_at(&mut buffer, offset).map_err(|e| Failure::io(ERROR, &e))?;
            let written = incoming.write(offset, &buffer, self.grain_bytes);
            if let Err(error) = written.and_then(|()| incoming.check_interrupted()) {
                incoming.give_up(&error);
                return Err(failed(error));
            }
            offset += length;
            progress.pass_before_end(offset, self.piece_bytes, size_bytes);
        }
        incoming.finish().map(drop).map_err(failed)
    }

    /// The start of the next piece with data, found in one step; `size_bytes` if there is none.
    fn skip_holes(&self, file: &File, offset: u64, size_bytes: u64) -> u64 {
        match next_data(file, offset, size_bytes) {
            data if data >= size_bytes => size_bytes,
            data => (data / self.piece_bytes * self.piece_bytes).max(offset),
        }
    }

    fn stream(&self, mut incoming: Incoming) -> Outcome {
        let mut buffer = vec![0; usize::try_from(self.piece_bytes).unwrap_or(0)];
        let mut offset = 0;
        loop {
            let filled = fill(&mut buffer).map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => interrupted(),
                _ => Failure::io(ERROR, &error),
            })?;
            let end = offset + filled as u64;
            incoming.grow_to_hold(end).map_err(failed)?;
            incoming.write(offset, &buffer[..filled], self.grain_bytes).map_err(failed)?;
            offset = end;
            if filled < buffer.len() {
                break;
            }
        }
        incoming.resize(offset).map_err(failed)?;
        incoming.finish().map(drop).map_err(failed)
    }
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

/// The start of the next data at or after `offset`; `offset` if the file system does not know.
fn next_data(file: &File, offset: u64, size_bytes: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(found) => found,
        Err(rustix::io::Errno::NXIO) => size_bytes,
        Err(_) => offset,
    }
}

/// Reads standard input until `buffer` is full or the input ends.
fn fill(buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match standard::read(&mut buffer[filled..])? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_a_file_are_skipped_in_one_step() {
        const SIZE: u64 = 1 << 40;
        const AT: u64 = SIZE / 2 + 5000;
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(&[1], AT).unwrap();
        let plan = Plan { piece_bytes: 4096, grain_bytes: 4096 };
        let (mut offset, mut pieces) = (0, 0);
        loop {
            offset = plan.skip_holes(&file, offset, SIZE);
            if offset == SIZE {
                break;
            }
            pieces += 1;
            assert!(offset <= AT + (1 << 20) && AT < offset + (1 << 20), "{offset}");
            offset += plan.piece_bytes;
        }
        // As many pieces as the file system allocates for one byte.
        assert!((1..=256).contains(&pieces), "{pieces}");
    }
}

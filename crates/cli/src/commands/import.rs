//! `import`: a file or standard input becomes an image.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::SeekFrom;

use super::DEST_IMAGE_SPEC;
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::failure::{EISDIR, ENOTTY, EOPNOTSUPP, Failure, Outcome};
use crate::incoming::Incoming;
use crate::layout;
use crate::output::warn;
use crate::progress::Progress;
use crate::session::Session;
use crate::signals::STATUS_INTERRUPTED;

/// Zeros shorter than this are stored: the size of a block.
pub const GRAIN_BYTES: u64 = 4096;
/// Standard input and output.
pub const PIPE: &str = "-";

const OLD_NAMES: &[Opt] = &[
    Opt::new("pool", Kind::Text, "deprecated: use --dest-pool").letter('p'),
    Opt::new("image", Kind::Text, "deprecated: use --dest"),
];
/// Only the plain form is understood.
pub const EXPORT_FORMAT: &[Opt] = &[Opt::new(
    "export-format",
    Kind::Choice(&["1", "2"]),
    "format of image file: 1, a plain file",
)];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec {
    words: &["import"],
    aliases: &[],
    about: "Import image from file.",
    positionals: &[Positional::one("path-name", "import file (or '-' for stdin)"), DEST_IMAGE_SPEC],
    options: &[
        options::PATH,
        options::DEST,
        options::CREATION,
        options::SPARSE_SIZE,
        options::NO_PROGRESS,
        EXPORT_FORMAT,
        OLD_NAMES,
    ],
    examples: &[
        ("import debian.raw templates/debian", "zeros take no space"),
        ("import - vm-1 < disk.raw", "from a pipe"),
    ],
    hidden: false,
    run: import,
}];

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
    refuse_export_format(args)?;
    let options = layout::create_options(args, 0, "import failed")?;
    let pool = session.pool_of(&target)?;
    let source = open_source(session, &path)?;
    let mut progress = session.bytes("Importing image");
    let outcome = source_size(session, &source).and_then(|size_bytes| {
        let options = marcot::CreateOptions { size_bytes: size_bytes.unwrap_or(0), ..options };
        let (namespace, name) = (target.namespace.as_str(), target.image.as_str());
        let incoming = Incoming::begin(session.store()?, &pool, namespace, name, &options)
            .map_err(|error| {
                warn(session.program, "image creation failed");
                failed(error)
            })?;
        let plan = Plan { piece_bytes: 1 << options.order, grain_bytes: grain(args) };
        match (source, size_bytes) {
            (Source::File(file), Some(size)) => plan.file(&file, size, incoming, &mut progress),
            _ => plan.stream(io::stdin().lock(), incoming),
        }
    });
    progress.end(outcome)
}

const ERROR: &str = "import failed";

/// `--path`, or the next argument.
pub fn path_argument(args: &Args, cursor: &mut usize) -> Outcome<String> {
    if let Some(path) = args.text("path").filter(|path| !path.is_empty()) {
        return Ok(path.to_string());
    }
    let path = args.positional(*cursor);
    *cursor += 1;
    path.map(str::to_string).ok_or_else(|| Failure::invalid("path was not specified"))
}

/// Only plain files can be read and written.
pub fn refuse_export_format(args: &Args) -> Outcome {
    match args.text("export-format") {
        Some("2") => Err(Failure::new(EOPNOTSUPP, "--export-format 2 is not available")),
        _ => Ok(()),
    }
}

/// The image to make: named after the file where the command line does not name it.
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

fn grain(args: &Args) -> usize {
    let bytes = args.bytes("sparse-size").unwrap_or(GRAIN_BYTES).max(GRAIN_BYTES);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

enum Source {
    File(File),
    Stdin,
}

/// `rbd` says what is wrong with the file on a line of its own, before the last progress line.
fn open_source(session: &Session, path: &str) -> Outcome<Source> {
    if path == PIPE {
        return Ok(Source::Stdin);
    }
    // Opening a FIFO must not wait for a writer.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
    opened.map(|fd| Source::File(File::from(fd))).map_err(|errno| {
        warn(session.program, &format!("error opening {path}"));
        Failure::errno(ERROR, errno.raw_os_error())
    })
}

/// The size in bytes, or `None` for standard input.
fn source_size(session: &Session, source: &Source) -> Outcome<Option<u64>> {
    let Source::File(file) = source else { return Ok(None) };
    let metadata = file.metadata().map_err(|error| Failure::io(ERROR, &error))?;
    if metadata.is_dir() {
        warn(session.program, "cannot import a directory");
        return Err(Failure::errno(ERROR, EISDIR));
    }
    let size_bytes = if metadata.file_type().is_block_device() {
        rustix::fs::seek(file, SeekFrom::End(0)).unwrap_or(0)
    } else {
        metadata.len()
    };
    if size_bytes == 0 {
        warn(session.program, "unable to get size of file/block device");
        return Err(Failure::errno(ERROR, ENOTTY));
    }
    Ok(Some(size_bytes))
}

struct Plan {
    /// Read, written and reported at a time.
    piece_bytes: u64,
    grain_bytes: usize,
}

impl Plan {
    fn file(
        &self,
        file: &File,
        size_bytes: u64,
        mut incoming: Incoming<'_>,
        progress: &mut Progress,
    ) -> Outcome {
        let mut buffer = Vec::new();
        let mut data_from = 0;
        let mut offset = 0;
        while offset < size_bytes {
            let length = self.piece_bytes.min(size_bytes - offset);
            if data_from < offset + length {
                data_from = next_data(file, offset, size_bytes);
            }
            if data_from < offset + length {
                buffer.resize(usize::try_from(length).unwrap_or(0), 0);
                file.read_exact_at(&mut buffer, offset).map_err(|e| Failure::io(ERROR, &e))?;
                incoming.write(offset, &buffer, self.grain_bytes).map_err(failed)?;
            }
            incoming.check_interrupted().map_err(failed)?;
            offset += length;
            progress.update_before_end(offset, size_bytes);
        }
        incoming.finish().map_err(failed)
    }

    fn stream(&self, mut input: impl Read, mut incoming: Incoming<'_>) -> Outcome {
        let mut buffer = vec![0; usize::try_from(self.piece_bytes).unwrap_or(0)];
        let mut offset = 0;
        loop {
            let filled = fill(&mut input, &mut buffer).map_err(|e| Failure::io(ERROR, &e))?;
            let end = offset + filled as u64;
            incoming.grow_to_hold(end).map_err(failed)?;
            incoming.write(offset, &buffer[..filled], self.grain_bytes).map_err(failed)?;
            offset = end;
            if filled < buffer.len() {
                break;
            }
        }
        incoming.resize(offset).map_err(failed)?;
        incoming.finish().map_err(failed)
    }
}

fn failed(error: marcot::Error) -> Failure {
    if error.kind() == marcot::ErrorKind::Interrupted {
        return Failure::new(STATUS_INTERRUPTED, format!("{ERROR}: interrupted"));
    }
    Failure::engine(ERROR, &error)
}

/// Where data begins at or after `offset`; `offset` where the file cannot tell.
fn next_data(file: &File, offset: u64, size_bytes: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(found) => found,
        Err(rustix::io::Errno::NXIO) => size_bytes,
        Err(_) => offset,
    }
}

/// Reads until `buffer` is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            // A signal: let the caller see it.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                if crate::signals::stop_asked() {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

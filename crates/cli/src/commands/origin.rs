//! What `import` reads: a disk that can be read at any place, or a stream of the bytes of one.
//!
//! The content of a file tells its format. Where the bytes are those of a disk already, as of a device or in a stream,
//! the user of that disk has written them, and nothing is concluded from them: they are taken as they are, unless
//! `--source-format` says something else.

use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;

use marcot_foreign::compressed::Packing;
use marcot_foreign::file::FileSource;
use marcot_foreign::http::{self, Opened};
use marcot_foreign::nbd::{self, NbdSource};
use marcot_foreign::open::{self, Directory, Files, Nobody, recognise, recognise_start};
use marcot_foreign::{ErrorKind, Format, Reader, Snapshot, spool};

use super::source::Source;
use crate::args::{Args, Kind, Opt};
use crate::errno::{EINVAL, EIO, EOPNOTSUPP};
use crate::failure::{Failure, Outcome};
use crate::signals;

/// Options that say what is imported.
pub const OPTIONS: &[Opt] = &[
    Opt::new(
        "source-format",
        Kind::Choice(&["auto", "raw", "qcow2", "vmdk", "vhd", "vpc", "vhdx"]),
        "format of the source; raw: its bytes as they are [default: auto for files that are not named *.raw, else raw]",
    )
    .own(),
    Opt::new(
        "backing-dir",
        Kind::Text,
        "directory in which backing files and data files of qcow2 may lie",
    )
    .own(),
];

/// Permission denied.
const EACCES: i32 = 13;
/// How many bytes of a stream tell what it is.
const MARK_BYTES: usize = 64;

/// What is read.
pub enum Origin<'a> {
    /// A disk.
    Disk {
        /// The disk.
        disk: Arc<dyn marcot_foreign::Source>,
        /// Its format, if one file has all of it.
        format: Option<Format>,
    },
    /// The bytes of a disk.
    Stream(Box<dyn Read + 'a>),
}

impl Origin<'_> {
    /// Size of the disk in bytes in its first state; 0 where it is not known.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Disk { disk, .. } => {
                disk.snapshots().first().map_or(disk.size_bytes(), |first| first.size_bytes)
            }
            Self::Stream(_) => 0,
        }
    }

    /// The format of the file, if an interrupted import of it can go on.
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::Disk { disk, format } => format.filter(|_| disk.snapshots().is_empty()),
            Self::Stream(_) => None,
        }
    }
}

/// The path of a URL, without its query, for the name of the image; a path as it is.
pub fn path_of(path: &str) -> &str {
    match is_url(path) {
        true => path.split(['?', '#']).next().unwrap_or_default(),
        false => path,
    }
}

/// True for a URL that `import` reads.
pub fn is_url(path: &str) -> bool {
    ["nbd://", "nbd+unix://", "http://", "https://"].iter().any(|scheme| path.starts_with(scheme))
}

/// The name for the snapshot with this index: its own, or its number where it has none or shares it.
pub fn snapshot_name(snapshots: &[Snapshot], index: usize) -> String {
    let Snapshot { name, id, .. } = &snapshots[index];
    let same = snapshots.iter().filter(|other| other.name == *name).count();
    match name.as_str() {
        "" => id.clone(),
        name if same > 1 => format!("{name}-{id}"),
        name => name.to_string(),
    }
}

/// What the command line says of the source.
pub struct Wanted<'a> {
    /// Its path, for messages, and to find files beside it.
    path: &'a str,
    format: Asked,
    backing_dir: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Auto,
    This(Format),
}

impl<'a> Wanted<'a> {
    /// Reads it.
    pub fn read(args: &'a Args, path: &'a str) -> Self {
        let format = match args.text("source-format") {
            None => Asked::Nothing,
            Some(name) => Format::named(name).map_or(Asked::Auto, Asked::This),
        };
        Self { path, format, backing_dir: args.text("backing-dir") }
    }

    /// Opens what is in `source`, which `error` names in failures.
    pub fn open<'s>(&self, source: &'s Source, error: &str) -> Outcome<Origin<'s>> {
        let opened = match source {
            Source::Stdin => self.of_stream(Box::new(source.reader()), ""),
            Source::File(file) => file
                .try_clone()
                .map_err(marcot_foreign::Error::from)
                .and_then(FileSource::new)
                .and_then(|file| {
                    let is_disk_already = source.regular_file().is_none();
                    self.of_source(Arc::new(file), self.path, is_disk_already)
                }),
        };
        opened.map_err(|why| self.failed(error, &why))
    }

    /// Opens what is at a URL.
    pub fn open_url(&self, error: &str) -> Outcome<Origin<'static>> {
        let opened = match self.path.starts_with("nbd") {
            true => self.of_nbd(),
            false => self.of_http(),
        };
        // It may be another one the next time.
        let opened = opened.map(|origin| match origin {
            Origin::Disk { disk, .. } => Origin::Disk { disk, format: None },
            stream => stream,
        });
        opened.map_err(|why| self.failed(error, &why))
    }

    fn of_nbd(&self) -> marcot_foreign::Result<Origin<'static>> {
        let (address, export) = nbd::parse(self.path)?;
        let export =
            Arc::new(NbdSource::connect(&address, &export, Arc::new(signals::stop_asked))?);
        match self.format {
            // An export is a disk already.
            Asked::Nothing => Ok(Origin::Disk { disk: export, format: None }),
            asked => self.open_disk(export, asked),
        }
    }

    fn of_http(&self) -> marcot_foreign::Result<Origin<'static>> {
        let shown = http::shown(self.path);
        match http::open(self.path, Arc::new(signals::stop_asked))? {
            Opened::Ranges(file) => self.of_source(file, &shown, false),
            Opened::Whole(body) => {
                let asked = match self.format {
                    Asked::Nothing if shown.ends_with(".raw") => Asked::This(Format::Raw),
                    Asked::Nothing => Asked::Auto,
                    asked => asked,
                };
                let name = file_stem(&shown).to_owned();
                Self { format: asked, ..*self }.of_stream(Box::new(body), &name)
            }
        }
    }

    /// The failure for a source that cannot be read.
    pub fn failed(&self, error: &str, why: &marcot_foreign::Error) -> Failure {
        let errno = match why.kind() {
            ErrorKind::Interrupted => {
                return Failure::new(signals::status(), format!("{error}: interrupted"));
            }
            ErrorKind::Damaged => EIO,
            ErrorKind::Unsupported => EOPNOTSUPP,
            ErrorKind::Refused => EACCES,
            ErrorKind::Invalid => EINVAL,
            _ => why.raw_os_error().unwrap_or(EIO),
        };
        let remedy = match (why.kind(), self.backing_dir) {
            (ErrorKind::Refused, None) => "; --backing-dir names a directory where they may lie",
            _ => "",
        };
        let path = match self.path.starts_with("http") {
            true => http::shown(self.path),
            false => self.path.to_string(),
        };
        Failure::errno(error, errno).because(format!("'{path}': {why}{remedy}"))
    }

    /// What is in a file at `path`. Of a disk that is one already nothing is concluded from its bytes.
    fn of_source<'s>(
        &self,
        file: Arc<dyn marcot_foreign::Source>,
        path: &str,
        is_disk_already: bool,
    ) -> marcot_foreign::Result<Origin<'s>> {
        let format = match self.format {
            Asked::Nothing if is_disk_already || path.ends_with(".raw") => Asked::This(Format::Raw),
            asked => asked,
        };
        if format == Asked::This(Format::Raw) {
            return Ok(Origin::Disk { disk: file, format: Some(Format::Raw) });
        }
        let mut mark = [0; Packing::MARK_BYTES];
        let has = file.size_bytes().min(mark.len() as u64) as usize;
        file.read_at(0, &mut mark[..has])?;
        if let Some(packing) = Packing::recognise(&mark[..has]) {
            return self.of_packed(packing, Box::new(Reader::new(file)), file_stem(path));
        }
        self.open_disk(file, format)
    }

    fn open_disk<'s>(
        &self,
        container: Arc<dyn marcot_foreign::Source>,
        asked: Asked,
    ) -> marcot_foreign::Result<Origin<'s>> {
        let format = match asked {
            Asked::This(format) => format,
            _ => recognise(container.as_ref())?,
        };
        let path = Path::new(self.path);
        // Relative names are relative to the directory of the image.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (mut nobody, mut directory) = (Nobody, None);
        if let Some(name) = self.backing_dir {
            directory = Some(Directory::open(Path::new(name)).map_err(|error| error.of(name))?);
        }
        let files: &mut dyn Files = match &mut directory {
            Some(directory) => directory,
            None => &mut nobody,
        };
        let disk = open::open_at(container, format, &path, files)?;
        let alone = directory.is_none_or(|directory| directory.opened() == 0);
        Ok(Origin::Disk { disk, format: alone.then_some(format) })
    }

    /// `name` is that of the file without the ending for its packing.
    fn of_packed<'s>(
        &self,
        packing: Packing,
        stream: Box<dyn Read + Send + 's>,
        name: &str,
    ) -> marcot_foreign::Result<Origin<'s>> {
        let unpacked = Told { packing, stream: packing.unpack(stream) };
        self.of_unpacked(Box::new(unpacked), name)
    }

    fn of_stream<'s>(
        &self,
        mut stream: Box<dyn Read + Send + 's>,
        name: &str,
    ) -> marcot_foreign::Result<Origin<'s>> {
        if matches!(self.format, Asked::Nothing | Asked::This(Format::Raw)) {
            return Ok(Origin::Stream(stream));
        }
        let mark = first_bytes(&mut stream, MARK_BYTES)?;
        let packing = Packing::recognise(&mark);
        let whole = Box::new(Cursor::new(mark).chain(stream));
        match packing {
            Some(packing) => self.of_packed(packing, whole, name),
            None => self.of_unpacked(whole, name),
        }
    }

    /// What has a map is kept in a temporary file, since it has to be read here and there.
    fn of_unpacked<'s>(
        &self,
        mut stream: Box<dyn Read + Send + 's>,
        name: &str,
    ) -> marcot_foreign::Result<Origin<'s>> {
        let mark = first_bytes(&mut stream, MARK_BYTES)?;
        // Of a fixed VHD only the end tells.
        let may_be_vhd = name.ends_with(".vhd") || name.ends_with(".vpc");
        let is_raw = recognise_start(&mark).is_none() && !may_be_vhd || name.ends_with(".raw");
        let mut whole = Cursor::new(mark).chain(stream);
        if !matches!(self.format, Asked::This(_)) && is_raw {
            return Ok(Origin::Stream(Box::new(whole)));
        }
        let file = spool::keep(&mut whole)?;
        let Origin::Disk { disk, .. } =
            self.open_disk(Arc::new(FileSource::new(file)?), self.format)?
        else {
            return Err(marcot_foreign::Error::invalid("it is no disk"));
        };
        Ok(Origin::Disk { disk, format: None })
    }
}

/// The name of a file without its last ending.
fn file_stem(path: &str) -> &str {
    Path::new(path).file_stem().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The first bytes of a stream; fewer only where it ends.
fn first_bytes(stream: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(count);
    stream.take(count as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A stream whose errors tell what was unpacked.
struct Told<'a> {
    packing: Packing,
    stream: Box<dyn Read + Send + 'a>,
}

impl Read for Told<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if signals::stop_asked() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.stream.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ if error.raw_os_error().is_some() => error,
            io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the stream of {} is cut off", self.packing.name()),
            ),
            kind => {
                let name = self.packing.name();
                io::Error::new(kind, format!("the stream of {name} is damaged: {error}"))
            }
        })
    }
}

//! Disks outside the store, as `migration prepare --import-only` describes them: a JSON object with a format and a stream.
//!
//! ```json
//! {"type":"qcow","stream":{"type":"file","file_path":"/images/vm.qcow2"}}
//! {"type":"raw","stream":{"type":"http","url":"https://example.org/vm.raw"},
//!  "snapshots":[{"type":"raw","name":"monday","stream":{"type":"file","file_path":"/images/monday.raw"}}]}
//! ```
//!
//! The form is that of RBD. Beyond what RBD 16.2.15 has, the formats `qcow2`, `vmdk`, `vhd` and `vhdx` are known, and a
//! stream `nbd` with a `uri`, as later versions of RBD have it.
//!
//! A source has a *state*, a text that tells the disk as it was when the migration began from what it may be later: the
//! size and the time of the last change of a file, what a server of HTTP says of it, the size of an export of NBD.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use marcot_foreign::file::FileSource;
use marcot_foreign::http::{self, Opened};
use marcot_foreign::nbd::{self, NbdSource};
use marcot_foreign::open::{self, Nobody};
use marcot_foreign::{Error, ErrorKind, Extent, Format, Interrupted, Result, Snapshot, Source};
use serde_json::{Map, Value};

/// Longest description, in bytes.
pub const SPEC_BYTES_MAX: usize = 64 << 10;
/// Most snapshots that a description lists.
const SNAPSHOTS_MAX: usize = 1000;

/// What is wrong with a description.
#[derive(Debug)]
#[non_exhaustive]
pub enum BadSpec {
    /// It is no JSON object.
    NotJson,
    /// Something is missing in it, or has no text: what.
    Missing(String),
    /// A type that is not known here: which.
    Unknown(String),
}

/// Why a source is not opened.
#[derive(Debug)]
pub enum Trouble {
    /// Its description.
    Spec(BadSpec),
    /// The disk.
    Disk(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Disk(error)
    }
}

impl From<BadSpec> for Trouble {
    fn from(bad: BadSpec) -> Self {
        Self::Spec(bad)
    }
}

/// A disk outside the store, open.
pub struct OpenSource {
    /// The disk, with the snapshots that it has.
    pub disk: Arc<dyn Source>,
    /// What tells its state from others.
    pub state: String,
}

/// A description.
#[derive(Debug, Clone)]
pub struct SourceSpec(Map<String, Value>);

impl SourceSpec {
    /// Reads a description. Paths of files in it become absolute: whoever reads the image later may be in another
    /// directory.
    ///
    /// # Errors
    /// [`BadSpec::NotJson`]. What else may be wrong, [`Self::open`] finds.
    pub fn parse(text: &str) -> std::result::Result<Self, BadSpec> {
        if text.len() > SPEC_BYTES_MAX {
            return Err(BadSpec::NotJson);
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(mut spec)) => {
                make_absolute(&mut spec);
                Ok(Self(spec))
            }
            _ => Err(BadSpec::NotJson),
        }
    }

    /// The description as RBD shows it: without blanks, the keys sorted.
    #[must_use]
    pub fn text(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// A stored description, for people: without the queries of URLs, which may be signatures that open a door.
    #[must_use]
    pub fn shown(stored: &str) -> String {
        let Ok(mut spec) = Self::parse(stored) else {
            return "a description that cannot be read".into();
        };
        cut_queries(&mut spec.0);
        spec.text()
    }

    /// True for an image of RBD or marcot, which is no disk outside the store.
    #[must_use]
    pub fn is_native(&self) -> bool {
        text(&self.0, "type") == Some("native")
    }

    /// Opens the disk.
    ///
    /// # Errors
    /// What is wrong with the description; those of [`marcot_foreign::open`], of files and of servers.
    pub fn open(&self, interrupted: &Interrupted) -> std::result::Result<OpenSource, Trouble> {
        let (disk, state) = open_disk(&self.0, interrupted)?;
        let listed = match self.0.get("snapshots") {
            None => return Ok(OpenSource { disk, state }),
            Some(Value::Array(listed)) if listed.len() <= SNAPSHOTS_MAX => listed,
            Some(_) => return Err(BadSpec::Missing("a list of snapshots".into()).into()),
        };
        let (mut states, mut snapshots, mut disks) = (vec![state], Vec::new(), Vec::new());
        for (index, listed) in listed.iter().enumerate() {
            let missing = || BadSpec::Missing(format!("snapshot {index}"));
            let spec = listed.as_object().ok_or_else(missing)?;
            let name = text(spec, "name").ok_or_else(missing)?.to_owned();
            let (disk, state) = open_disk(spec, interrupted)?;
            states.push(state);
            let (id, size_bytes) = (index.to_string(), disk.size_bytes());
            snapshots.push(Snapshot { name, id, size_bytes });
            disks.push(disk);
        }
        let disk: Arc<dyn Source> = Arc::new(WithSnapshots { disk, snapshots, disks });
        Ok(OpenSource { disk, state: states.join("\n") })
    }
}

/// A disk whose snapshots are other disks.
struct WithSnapshots {
    disk: Arc<dyn Source>,
    snapshots: Vec<Snapshot>,
    disks: Vec<Arc<dyn Source>>,
}

impl Source for WithSnapshots {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.disk.read_at(offset, buf)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.disk.extents(offset, length)
    }

    fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    fn at_snapshot(&self, index: usize) -> Result<Arc<dyn Source>> {
        let disk = self.disks.get(index).cloned();
        disk.ok_or_else(|| Error::invalid(format!("there is no snapshot {index}")))
    }
}

fn text<'a>(spec: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    spec.get(key).and_then(Value::as_str)
}

fn needed<'a>(spec: &'a Map<String, Value>, key: &str) -> std::result::Result<&'a str, BadSpec> {
    text(spec, key).ok_or_else(|| BadSpec::Missing(format!("'{key}'")))
}

fn stream_of(spec: &Map<String, Value>) -> Option<&Map<String, Value>> {
    spec.get("stream").and_then(Value::as_object)
}

fn make_absolute(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(stream)) = spec.get_mut("stream")
        && let Some(Value::String(path)) = stream.get_mut("file_path")
        && let Ok(absolute) = std::path::absolute(&*path)
        && let Some(absolute) = absolute.to_str()
    {
        *path = absolute.to_owned();
    }
    if let Some(Value::Array(snapshots)) = spec.get_mut("snapshots") {
        snapshots.iter_mut().filter_map(Value::as_object_mut).for_each(make_absolute);
    }
}

fn cut_queries(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(stream)) = spec.get_mut("stream")
        && let Some(Value::String(url)) = stream.get_mut("url")
        && let Some(query) = url.find(['?', '#'])
    {
        url.truncate(query);
    }
    if let Some(Value::Array(snapshots)) = spec.get_mut("snapshots") {
        snapshots.iter_mut().filter_map(Value::as_object_mut).for_each(cut_queries);
    }
}

/// Opens the disk of a description, without the snapshots that are listed there.
fn open_disk(
    spec: &Map<String, Value>,
    interrupted: &Interrupted,
) -> std::result::Result<(Arc<dyn Source>, String), Trouble> {
    let format = match needed(spec, "type")? {
        "qcow" => Format::Qcow2,
        name => Format::named(name).ok_or_else(|| BadSpec::Unknown(format!("format '{name}'")))?,
    };
    let missing = || BadSpec::Missing("'stream'".into());
    let stream = stream_of(spec).ok_or_else(missing)?;
    let (container, state, shown) = match needed(stream, "type")? {
        "file" => open_file(needed(stream, "file_path")?)?,
        "http" => open_http(needed(stream, "url")?, interrupted)?,
        "s3" => {
            let url = needed(stream, "url")?;
            if stream.contains_key("access_key") || stream.contains_key("secret_key") {
                let message = "keys are not kept in an image: use a URL that needs none, such as a signed one, with the stream 'http'";
                return Err(Error::unsupported(message).into());
            }
            open_http(url, interrupted)?
        }
        "nbd" => open_nbd(needed(stream, "uri")?, interrupted)?,
        name => return Err(BadSpec::Unknown(format!("stream '{name}'")).into()),
    };
    // Another file that this one names is not part of the description.
    let disk = open::open_at(container, format, Path::new(&shown), &mut Nobody);
    Ok((disk.map_err(|error| error.of(&shown))?, state))
}

type Container = (Arc<dyn Source>, String, String);

fn open_file(path: &str) -> Result<Container> {
    let file = Settled::open(path).map_err(|error| error.of(path))?;
    let state = file.state.clone();
    Ok((Arc::new(file), state, path.to_owned()))
}

fn open_http(url: &str, interrupted: &Interrupted) -> Result<Container> {
    let shown = http::shown(url);
    // RBD takes a host alone.
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    if http::has_password(&url) {
        let message = "a password is not kept in an image, whose record others may read: use a URL that needs none, or 'import'";
        return Err(Error::unsupported(message).of(&shown));
    }
    match http::open(&url, Arc::clone(interrupted)).map_err(|error| error.of(&shown))? {
        Opened::Ranges(file) => {
            let state = file.state();
            Ok((file, state, shown))
        }
        Opened::Whole(_) => {
            let message = "its server answers no requests for ranges: use 'import', which reads it from its start to its end";
            Err(Error::unsupported(message).of(&shown))
        }
    }
}

fn open_nbd(uri: &str, interrupted: &Interrupted) -> Result<Container> {
    let (address, export) = nbd::parse(uri).map_err(|error| error.of(uri))?;
    let export = NbdSource::connect(&address, &export, Arc::clone(interrupted));
    let export = export.map_err(|error| error.of(uri))?;
    let state = format!("nbd {}", export.size_bytes());
    Ok((Arc::new(export), state, uri.to_owned()))
}

/// A file or a block device that fails where it has changed since it was opened.
struct Settled {
    source: FileSource,
    file: File,
    state: String,
}

impl Settled {
    fn open(path: &str) -> Result<Self> {
        // A pipe would wait for its other end.
        let about = std::fs::metadata(path)?;
        if !about.is_file() && !about.file_type().is_block_device() {
            return Err(Error::invalid("it is neither a file nor a block device"));
        }
        let file = File::open(path)?;
        let source = FileSource::new(file.try_clone()?)?;
        let state = state_of(&file, source.size_bytes())?;
        Ok(Self { source, file, state })
    }

    fn check_same(&self) -> Result<()> {
        match state_of(&self.file, self.source.size_bytes())? == self.state {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Damaged, HAS_CHANGED)),
        }
    }
}

/// What is said of a source that is not as it was.
pub const HAS_CHANGED: &str = "it has changed since 'migration prepare'";

fn state_of(file: &File, size_bytes: u64) -> Result<String> {
    let about = file.metadata()?;
    if about.file_type().is_block_device() {
        return Ok(format!("device {size_bytes}"));
    }
    let (inode, seconds, nanos) = (about.ino(), about.mtime(), about.mtime_nsec());
    Ok(format!("file {inode} {} {seconds}.{nanos}", about.len()))
}

impl Source for Settled {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.source.read_at(offset, buf)?;
        self.check_same()
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let extents = self.source.extents(offset, length)?;
        self.check_same()?;
        Ok(extents)
    }
}

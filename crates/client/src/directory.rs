//! The images of a pool as the files of a mounted directory, as with RBD's `rbd-fuse`.
//!
//! [`mount`] mounts it in this process. [`DirectoryJob`] is the task of a process of its own that does so.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use marcot::{CreateOptions, Error, ErrorKind, Extent, ImageId, ImageInfo, Namespace, Result};
use marcot_serve::control::Place;
use marcot_serve::host::{HostOptions, ImageHost};
use marcot_serve::mapping::{self, Ready, Registry};

pub use marcot_serve::directory::{
    Access, DirectoryOptions, ImageEntry, MountedDirectory, NewImage, Users,
};
use marcot_serve::directory::{Images, Opened, Reader, Space};

use crate::content::{Content, Shared};
use crate::devices::server::Stop;
use crate::image::Image;
use crate::operation::Operation;
use crate::pool::Pool;

/// The number of the directory itself, as an inode. No image has it in practice: numbers are random.
const DIRECTORY_NUMBER: u64 = 1;
/// How often the process that serves looks whether it should end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The options of an image with these properties, if there can be one.
pub type ToOptions = fn(&NewImage) -> Result<CreateOptions>;

/// Which images are shown.
#[derive(Clone)]
pub struct Shown {
    /// Their pool.
    pub pool: Pool,
    /// Their namespace.
    pub namespace: Namespace,
    /// Only the image with this name.
    pub only: Option<String>,
    /// How new images are made.
    pub to_options: ToOptions,
}

/// Mounts images at `path`, served by this process.
///
/// # Errors
/// `NotFound` for the namespace; `NotFound`, `Busy` and others as the operating system says.
pub fn mount(shown: Shown, path: &Path, options: &DirectoryOptions) -> Result<MountedDirectory> {
    if !shown.pool.has_namespace(&shown.namespace)? {
        let message = format!("there is no namespace '{}'", shown.namespace);
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    MountedDirectory::mount(Arc::new(PoolImages { shown, path: path.to_owned() }), path, options)
}

/// Serves until it is unmounted, or until `stop` asks to end.
///
/// # Errors
/// Those of unmounting and of closing the images.
pub fn serve(mounted: MountedDirectory, stop: &dyn Stop) -> Result<()> {
    while !mounted.is_over() && !stop.asked() {
        std::thread::sleep(LOOK_INTERVAL);
    }
    mounted.end()
}

/// The task of a process that mounts a directory and serves it in the background.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct DirectoryJob {
    /// The store's directory.
    pub store: PathBuf,
    /// The pool of the images.
    pub pool: String,
    /// Their namespace; empty for the default one.
    pub namespace: String,
    /// Only the image with this name.
    pub only: Option<String>,
    /// Where to mount.
    pub path: PathBuf,
    /// How.
    pub options: DirectoryOptions,
    /// Its log. It is removed in the end if nothing is in it.
    pub log: PathBuf,
}

impl DirectoryJob {
    /// Starts this program again with the words `server`, which has to [`Self::read`] the job and to
    /// [`report`], and waits until the directory is mounted.
    ///
    /// # Errors
    /// Those of the process; `Io` if it cannot be started.
    pub fn start(mut self, server: &[&str]) -> Result<()> {
        let name = log_name(&self.path);
        let (log, path) = Registry::open()?.open_other_log(&name)?;
        self.log.clone_from(&path);
        let job = serde_json::to_vec(&self)
            .map_err(|_| Error::new(ErrorKind::Invalid, "the names cannot be passed on"))?;
        let ready = mapping::spawn(server, &job, log, &path);
        if !matches!(ready, Ok(Ready::Directory)) {
            self.forget_log();
        }
        match ready? {
            Ready::Directory => Ok(()),
            Ready::Failed { kind, message } => Err(Error::new(kind, message)),
            Ready::Device { .. } => Err(Error::new(ErrorKind::Io, "another program has answered")),
        }
    }

    /// Reads the job from `input`.
    ///
    /// # Errors
    /// `Invalid` for input that is no job; errors of the operating system.
    pub fn read(input: &mut dyn Read) -> Result<Self> {
        mapping::read_job(input, "directory")
    }

    /// Removes the log if it says nothing.
    pub fn forget_log(&self) {
        if std::fs::metadata(&self.log).is_ok_and(|log| log.len() == 0) {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// The log of a directory has its name.
fn log_name(path: &Path) -> String {
    /// Names of files are at most 255 bytes long, with `.log`.
    const CHARACTERS_MAX: usize = 60;
    let name = path.to_string_lossy();
    let name = name.trim_start_matches('/').chars().take(CHARACTERS_MAX);
    let name = name.map(|c| if c == '/' || c.is_control() { '-' } else { c });
    format!("directory-{}.log", name.collect::<String>())
}

/// Tells the process that has started this one whether the directory is mounted.
///
/// # Errors
/// Errors of the operating system.
pub fn report<T>(mounted: &Result<T>) -> Result<()> {
    match mounted {
        Ok(_) => mapping::report_ready(&Ready::Directory),
        Err(error) => mapping::report_failure(error),
    }
}

/// The images that are shown.
struct PoolImages {
    shown: Shown,
    path: PathBuf,
}

fn no_image() -> Error {
    Error::new(ErrorKind::NotFound, "there is no such image")
}

fn entry_of(info: &ImageInfo) -> ImageEntry {
    ImageEntry {
        number: info.id.0,
        size_bytes: info.size_bytes,
        order: info.order,
        created_s: info.created_s,
        modified_s: info.modified_s,
    }
}

impl PoolImages {
    fn shows(&self, name: &str) -> bool {
        self.shown.only.as_ref().is_none_or(|only| only == name)
    }

    /// Refuses to make images that would not be shown.
    fn require_shown(&self, name: &str) -> Result<()> {
        match self.shows(name) {
            true => Ok(()),
            false => {
                let only = self.shown.only.as_deref().unwrap_or_default();
                let message = format!("only the image '{only}' is shown here");
                Err(Error::new(ErrorKind::PermissionDenied, message))
            }
        }
    }

    fn named(&self, name: &str) -> Result<Image> {
        let hidden = marcot::is_partial_name(name)
            || marcot::number_in_trash_name(name).is_some()
            || !self.shows(name);
        if hidden {
            return Err(no_image());
        }
        let name = marcot::ImageName::new(name).in_namespace(&self.shown.namespace);
        let image = self.shown.pool.image(name)?;
        match image.id().0 {
            DIRECTORY_NUMBER => Err(no_image()),
            _ => Ok(image),
        }
    }

    /// The image with a number. What is known of its name may be old.
    fn numbered(&self, number: u64) -> Image {
        let name = marcot::ImageName::new("").in_namespace(&self.shown.namespace);
        self.shown.pool.known_image(name, ImageId(number))
    }
}

impl Images for PoolImages {
    fn list(&self) -> Result<Vec<(String, u64)>> {
        let images = self.shown.pool.images(&self.shown.namespace)?;
        let shown = |(name, id): (String, ImageId)| {
            (self.shows(&name) && id.0 != DIRECTORY_NUMBER).then_some((name, id.0))
        };
        Ok(images.into_iter().filter_map(shown).collect())
    }

    fn find(&self, name: &str) -> Result<ImageEntry> {
        Ok(entry_of(&self.named(name)?.info()?))
    }

    fn entry(&self, number: u64) -> Result<ImageEntry> {
        let info = self.numbered(number).info()?;
        match info.in_trash || info.namespace != self.shown.namespace {
            true => Err(no_image()),
            false => Ok(entry_of(&info)),
        }
    }

    fn open(&self, number: u64, writes: bool) -> Result<Opened> {
        let image = self.numbered(number);
        image.operate(Operation::OpenImage, || {
            let (pool, id) = (image.engine_pool(), image.id());
            let options = HostOptions {
                name: image.label(),
                usage: Some(format!("directory {}", self.path.display())),
                control: Some(Place::of(pool, id)),
                gives_way: true,
            };
            if pool.read_only() {
                let host = ImageHost::start(Box::new(pool.open_read_only(id)?), options)?;
                return Ok(Opened::Here { host, writable: false });
            }
            match image.for_itself_at_once(|| pool.open(id)?.unlocked()) {
                Ok(opened) => {
                    let host = ImageHost::start(Box::new(opened), options)?;
                    Ok(Opened::Here { host, writable: true })
                }
                Err(error) if !writes && is_of_another(&error) => {
                    Ok(Opened::Elsewhere(Box::new(OfOwner(image.shared_content()?))))
                }
                Err(error) => Err(error),
            }
        })
    }

    fn check_new(&self, new: &NewImage) -> Result<()> {
        (self.shown.to_options)(new).map(drop)
    }

    fn create(&self, name: &str, new: &NewImage) -> Result<ImageEntry> {
        self.require_shown(name)?;
        let options = (self.shown.to_options)(new)?;
        let name = marcot::ImageName::new(name).in_namespace(&self.shown.namespace);
        Ok(entry_of(&self.shown.pool.create(name, &options)?.info()?))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.named(name)?.remove(&mut |_, _| {})
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.require_shown(to)?;
        self.named(from)?.rename(to).map(drop)
    }

    fn resize(&self, number: u64, size_bytes: u64) -> Result<()> {
        self.numbered(number).resize(size_bytes, true, &mut |_, _| {})
    }

    fn space(&self) -> Result<Space> {
        let stats = self.shown.pool.namespace_stats(&self.shown.namespace)?;
        Ok(Space {
            total_bytes: stats.allocated_bytes + stats.free_bytes,
            free_bytes: stats.free_bytes,
            images: stats.named.images,
        })
    }
}

/// True where another process is the owner, or a lock keeps this one from writing.
fn is_of_another(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Owned | ErrorKind::Busy | ErrorKind::ReadOnly)
}

/// Content that is read through the image's owner.
struct OfOwner(Shared);

impl Reader for OfOwner {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(offset, buf)
    }

    fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.0.extents(offset, length)
    }
}

//! What every command needs: the program's name, the store, and the way from names to pools and
//! images, with `rbd`'s words where they do not exist.

use std::cell::OnceCell;
use std::path::PathBuf;

use marcot::{ErrorKind, ImageId, ImageInfo, Limits, Pool, SnapInfo, Store, World};
use marcot_serve::descriptors;

use crate::args::Args;
use crate::args::names::{DEFAULT_POOL, Target};
use crate::failure::{ENOENT, Failure, Outcome};
use crate::progress::{Measure, Progress};
use crate::{logging, spec};

/// Names a store directory where `--store` does not.
pub const STORE_VARIABLE: &str = "MARCOT_STORE";
/// The store of root.
const SYSTEM_STORE: &str = "/var/lib/marcot";
/// Less would drop pages faster than a batch of writes needs them.
const MAP_MEMORY_BYTES_MIN: u64 = 1 << 20;

/// One run of the program.
pub struct Session {
    /// `rbd` or `marcot`.
    pub program: &'static str,
    /// `--no-progress`.
    pub silent: bool,
    store_directory: Option<PathBuf>,
    store: OnceCell<Store>,
    limits: Limits,
}

/// An image in its pool.
pub struct Found {
    /// Its pool.
    pub pool: Pool,
    /// Its number.
    pub id: ImageId,
}

impl Session {
    /// A session; `store` is what `--store` says.
    pub fn new(program: &'static str, store: Option<&str>, silent: bool) -> Self {
        let store_directory = store.map(PathBuf::from).or_else(default_store);
        let limits = Limits::default();
        Self { program, silent, store_directory, store: OnceCell::new(), limits }
    }

    /// The same session with the limits for open images that the options give.
    pub fn limited(mut self, args: &Args) -> Outcome<Self> {
        if let Some(bytes) = args.bytes("map-memory") {
            if bytes < MAP_MEMORY_BYTES_MIN {
                return Err(Failure::invalid("--map-memory is at least 1M"));
            }
            self.limits.map_memory_bytes = bytes;
        }
        Ok(self)
    }

    /// Limits for open images.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The store, opened when first asked for.
    pub fn store(&self) -> Outcome<&Store> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        logging::start_brief(self.program);
        let directory = self.store_directory.as_ref().ok_or_else(|| {
            Failure::new(
                ENOENT,
                format!("no store: give --store or set {STORE_VARIABLE}, HOME or XDG_DATA_HOME"),
            )
        })?;
        let store = Store::open_with(World::system(), directory, self.limits).map_err(|error| {
            Failure::lowest(format!("error opening the store '{}'", directory.display()), &error)
                .remedy(format!("choose a store with --store or {STORE_VARIABLE}"))
        })?;
        // With many pools and segments a command has many files open, and the soft limit is low.
        let segment_files = descriptors::segment_files(descriptors::raise_limit());
        store.set_segment_files_max(usize::try_from(segment_files).unwrap_or(usize::MAX));
        Ok(self.store.get_or_init(|| store))
    }

    /// The pool of a name, and its existence.
    pub fn pool(&self, name: &str) -> Outcome<Pool> {
        let store = self.store()?;
        store.pool(name).map_err(|error| match error.kind() {
            ErrorKind::NotFound if name == DEFAULT_POOL => default_pool_missing(),
            ErrorKind::NotFound => Failure::errno(format!("error opening pool '{name}'"), ENOENT),
            ErrorKind::PermissionDenied => {
                let failure = Failure::engine(format!("error opening pool '{name}'"), &error);
                let store = store.directory().display();
                failure.remedy(format!("the store is {store}: run as its owner, or give --store"))
            }
            _ => Failure::engine(format!("error opening pool '{name}'"), &error),
        })
    }

    /// The pool of a target, after making sure that its namespace exists.
    pub fn pool_of(&self, target: &Target) -> Outcome<Pool> {
        let pool = self.pool(target.pool_or_default())?;
        require_namespace(&pool, &target.namespace)?;
        Ok(pool)
    }

    /// The image of a target.
    pub fn find(&self, target: &Target) -> Outcome<Found> {
        let pool = self.pool_of(target)?;
        let id = pool.find(&target.namespace, &target.image).map_err(|error| {
            Failure::engine(format!("error opening image {}", target.image), &error)
        })?;
        Ok(Found { pool, id })
    }

    /// The image of a target, or of `--image-id` where that is given.
    pub fn find_by(&self, target: &Target, image_id: Option<&str>) -> Outcome<Found> {
        let Some(wanted) = image_id else {
            return self.find(target);
        };
        let pool = self.pool_of(target)?;
        let missing = || Failure::errno(format!("error opening image with id {wanted}"), ENOENT);
        let number = u64::from_str_radix(wanted, 16).map(ImageId);
        let id = number.ok().filter(|id| id.to_string() == wanted).ok_or_else(missing)?;
        match pool.name_of_image(&target.namespace, id)? {
            Some(_) => Ok(Found { pool, id }),
            None => Err(missing()),
        }
    }

    /// Progress of short work.
    pub fn steps(&self, label: &'static str) -> Progress {
        Progress::new(label, Measure::Steps, self.silent)
    }

    /// Progress of long work that counts bytes.
    pub fn bytes(&self, label: &'static str) -> Progress {
        Progress::new(label, Measure::Bytes, self.silent)
    }

    /// Progress of long work that counts other things.
    pub fn parts(&self, label: &'static str) -> Progress {
        Progress::new(label, Measure::Parts, self.silent)
    }
}

impl Found {
    /// What is recorded about the image.
    pub fn info(&self) -> Outcome<ImageInfo> {
        self.pool.info(self.id).map_err(|error| {
            let name = self.pool.label_by_names(self.id);
            Failure::engine(format!("error opening image {name}"), &error)
        })
    }

    /// What is recorded about a snapshot of it.
    pub fn snapshot(&self, name: &str) -> Outcome<SnapInfo> {
        let info = self.info()?;
        let image = spec::show(self.pool.name(), &info.namespace, &info.name, "");
        let found = info.snapshots.into_iter().find(|s| s.name == name);
        found.ok_or_else(|| {
            no_such_snapshot().because(format!("image {image} has no snapshot '{name}'"))
        })
    }
}

/// `rbd`'s words for a snapshot that does not exist, where it sets a context first.
pub fn no_such_snapshot() -> Failure {
    let text = crate::failure::strerror(ENOENT);
    Failure::bare(ENOENT, format!("error setting snapshot context: ({ENOENT}) {text}"))
}

fn default_pool_missing() -> Failure {
    Failure::new(ENOENT, format!("error opening default pool '{DEFAULT_POOL}'")).then_bare(
        "Ensure that the default pool has been created or specify an alternate pool name.",
    )
}

/// Refuses a namespace that does not exist; the empty one always does.
pub fn require_namespace(pool: &Pool, namespace: &str) -> Outcome {
    if namespace.is_empty() || pool.namespaces()?.iter().any(|n| n == namespace) {
        return Ok(());
    }
    Err(Failure::new(ENOENT, format!("namespace '{namespace}' does not exist.")))
}

/// `MARCOT_STORE`, else the system's store for root, else the user's data directory.
fn default_store() -> Option<PathBuf> {
    let directory = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(store) = directory(STORE_VARIABLE) {
        return Some(store);
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(SYSTEM_STORE));
    }
    let data = directory("XDG_DATA_HOME").filter(|path| path.is_absolute());
    let data = data.or_else(|| Some(directory("HOME")?.join(".local/share")))?;
    Some(data.join("marcot"))
}

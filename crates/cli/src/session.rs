//! The context of every command: the program's name, the store, and the lookup of pools and
//! images by name, with `rbd`'s words for those that do not exist.

use std::cell::{Cell, OnceCell};
use std::path::PathBuf;

use marcot::{ErrorKind, ImageId, ImageInfo, Limits, Patience, SnapInfo};
use marcot_client::devices::{Devices, ProgramWords};
use marcot_client::{Client, DEFAULT_POOL, Image, ImageSpec, Interrupt, Namespace, Options, Pool};

use crate::args::Args;
use crate::args::names::Target;
use crate::environment::STORE_VARIABLE;
use crate::errno::ENOENT;
use crate::failure::{Failure, Outcome};
use crate::output::warn;
use crate::progress::{Measure, Progress};
use crate::shown::worded;
use crate::{logging, signals};

/// The default store of root.
const SYSTEM_STORE: &str = "/var/lib/marcot";
/// With less, pages would be dropped before a batch of writes has used them.
const MAP_MEMORY_BYTES_MIN: u64 = 1 << 20;
/// The words with which this program starts itself for devices.
const DEVICE_WORDS: ProgramWords =
    ProgramWords { server: &["device", "server"], quiesce: &["device", "quiesce"] };

/// One run of the program.
pub struct Session {
    /// `rbd` or `marcot`.
    pub program: &'static str,
    /// `--no-progress`.
    pub silent: bool,
    store_directory: Option<PathBuf>,
    client: OnceCell<Client>,
    limits: Cell<Limits>,
}

impl Session {
    /// A session. `store` is the value of `--store`.
    pub fn new(program: &'static str, store: Option<&str>, silent: bool) -> Self {
        let store_directory = store.map(PathBuf::from).or_else(default_store);
        let limits = Cell::default();
        Self { program, silent, store_directory, client: OnceCell::new(), limits }
    }

    /// The same session with the limits for open images from the options.
    pub fn limited(self, args: &Args) -> Outcome<Self> {
        if let Some(bytes) = args.bytes("map-memory") {
            if bytes < MAP_MEMORY_BYTES_MIN {
                return Err(Failure::invalid("--map-memory is at least 1M"));
            }
            self.limits.set(Limits { map_memory_bytes: bytes, ..self.limits.get() });
        }
        Ok(self)
    }

    /// Says who waits for the services of pools in buckets. To be called before the client is used.
    pub fn set_patience(&self, patience: Patience) {
        self.limits.set(Limits { patience, ..self.limits.get() });
    }

    /// The options of the client: signals interrupt it, and its warnings are printed.
    fn options(&self) -> Options {
        let program = self.program;
        Options::new()
            .limits(self.limits.get())
            .interrupt(Interrupt::when(signals::stop_asked))
            .on_warning(move |warning| warn(program, &worded(program, warning)))
    }

    /// The client of the store. It is opened by the first call.
    pub fn client(&self) -> Outcome<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        logging::start_brief(self.program);
        let directory = self.store_directory.as_ref().ok_or_else(|| {
            Failure::new(
                ENOENT,
                format!("no store: give --store or set {STORE_VARIABLE}, HOME or XDG_DATA_HOME"),
            )
        })?;
        let client = Client::open(directory, self.options()).map_err(|error| {
            Failure::lowest(format!("error opening the store '{}'", directory.display()), &error)
                .remedy(format!("choose a store with --store or {STORE_VARIABLE}"))
        })?;
        // With many pools and segments, a command opens many files, and the default soft limit is low.
        client.use_all_descriptors();
        Ok(self.client.get_or_init(|| client))
    }

    /// The client of a store that exists already, without a word about anything. For completion.
    pub fn quiet_client(&self) -> Option<&Client> {
        if self.client.get().is_none() {
            let directory = self.store_directory.as_ref().filter(|path| path.is_dir())?;
            let client = Client::open(directory, Options::new()).ok()?;
            return Some(self.client.get_or_init(|| client));
        }
        self.client.get()
    }

    /// The mapped devices of this machine. They need no store.
    pub fn devices(&self) -> Outcome<Devices> {
        Ok(Devices::open(self.options(), DEVICE_WORDS)?)
    }

    /// The pool with a name.
    pub fn pool(&self, name: &str) -> Outcome<Pool> {
        let client = self.client()?;
        client.pool(name).map_err(|error| match error.kind() {
            ErrorKind::NotFound if name == DEFAULT_POOL => default_pool_missing(),
            ErrorKind::NotFound => Failure::errno(format!("error opening pool '{name}'"), ENOENT),
            ErrorKind::PermissionDenied => {
                let failure = Failure::engine(format!("error opening pool '{name}'"), &error);
                let store = client.directory().display();
                failure.remedy(format!("the store is {store}: run as its owner, or give --store"))
            }
            _ => Failure::engine(format!("error opening pool '{name}'"), &error),
        })
    }

    /// The pool of a target, after making sure that its namespace exists.
    pub fn pool_of(&self, target: &Target) -> Outcome<Pool> {
        let pool = self.pool(target.pool_or_default())?;
        require_namespace(&pool, &target.namespace())?;
        Ok(pool)
    }

    /// The image of a target.
    pub fn find(&self, target: &Target) -> Outcome<Image> {
        let pool = self.pool_of(target)?;
        pool.image(target.name()).map_err(|error| {
            Failure::engine(format!("error opening image {}", target.image), &error)
        })
    }

    /// The image of a target, or of `--image-id` if that is given. The caller has checked that not both are
    /// ([`refuse_name_and_id`]).
    pub fn find_by(&self, target: &Target, image_id: Option<&str>) -> Outcome<Image> {
        let Some(wanted) = image_id else {
            return self.find(target);
        };
        let pool = self.pool_of(target)?;
        let missing = || Failure::errno(format!("error opening image with id {wanted}"), ENOENT);
        let id = parse_image_id(wanted).ok_or_else(missing)?;
        match pool.image_by_id(&target.namespace(), id) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(missing()),
            found => Ok(found?),
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

    /// Progress of long work that counts other parts.
    pub fn parts(&self, label: &'static str) -> Progress {
        Progress::new(label, Measure::Parts, self.silent)
    }
}

/// Refuses a command line with an image's name and `--image-id`.
///
/// # Errors
/// `rbd`'s line, which has a blank at its end.
pub fn refuse_name_and_id(target: &Target, image_id: Option<&str>) -> Outcome {
    match image_id {
        Some(_) if !target.image.is_empty() => {
            Err(Failure::invalid("trying to access image using both name and id. "))
        }
        _ => Ok(()),
    }
}

/// The number of an image, as it is shown.
pub fn parse_image_id(text: &str) -> Option<ImageId> {
    let id = ImageId(u64::from_str_radix(text, 16).ok()?);
    (id.to_string() == text).then_some(id)
}

/// The record of an image.
pub fn info(image: &Image) -> Outcome<ImageInfo> {
    image.info().map_err(|error| opening_failed(image, &error))
}

/// `rbd`'s words for an image that was found but cannot be opened.
pub fn opening_failed(image: &Image, error: &marcot::Error) -> Failure {
    Failure::engine(format!("error opening image {}", image.label()), error)
}

/// The record of a snapshot.
pub fn snapshot(image: &Image, name: &str) -> Outcome<SnapInfo> {
    let info = info(image)?;
    let found = info.snapshots.iter().find(|s| s.name == name && s.group.is_none());
    found.cloned().ok_or_else(|| {
        let image = ImageSpec::new(image.pool().name(), info.name).in_namespace(info.namespace);
        no_such_snapshot().because(format!("image {image} has no snapshot '{name}'"))
    })
}

/// `rbd`'s words for a snapshot that does not exist, in commands that set a context first.
pub fn no_such_snapshot() -> Failure {
    let text = crate::failure::strerror(ENOENT);
    Failure::bare(ENOENT, format!("error setting snapshot context: ({ENOENT}) {text}"))
}

fn default_pool_missing() -> Failure {
    Failure::new(ENOENT, format!("error opening default pool '{DEFAULT_POOL}'")).then_bare(
        "Ensure that the default pool has been created or specify an alternate pool name.",
    )
}

/// Refuses a namespace that does not exist.
pub fn require_namespace(pool: &Pool, namespace: &Namespace) -> Outcome {
    if pool.has_namespace(namespace)? {
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

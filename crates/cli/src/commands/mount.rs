//! `mount`: the images of a pool as files of a directory. Called as `rbd-fuse`, the program does only this.

use std::path::{Path, PathBuf};

use marcot::{CreateOptions, Error, ErrorKind, Patience};
use marcot_client::Namespace;
use marcot_client::directory::{
    self, DirectoryJob, DirectoryOptions, MountedDirectory, NewImage, Shown, Users,
};

use super::device::Signals;
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::failure::{Failure, Outcome, STATUS_USAGE};
use crate::session::{self, Session};
use crate::{layout, logging, signals};

/// The words with which this program starts itself to serve a directory.
const SERVER_WORDS: &[&str] = &["directory", "server"];
/// log2 of the smallest and of the largest object.
const ORDER_MIN: u64 = 12;
const ORDER_MAX: u64 = 25;
/// Every feature bit that an image can be created with.
const FEATURES_ALL: u64 = 0b11_1101;

const MOUNT: &[Opt] = &[
    Opt::new("foreground", Kind::Flag, "serve in this process, and log to standard error")
        .letter('f'),
    Opt::new("debug", Kind::Flag, "the same").letter('d'),
    Opt::new(
        "options",
        Kind::Text,
        "mount options, comma separated: ro, allow_other, allow_root, default_permissions, nonempty, \
         uid=N, gid=N, umask=M and those of mount; libfuse's for speed are accepted",
    )
    .letter('o'),
];

/// `mount` itself.
pub const DIRECTORY: CommandSpec =
    CommandSpec::new(&["mount"], "Mount a directory in which each image is a file.", mount)
        .own()
        .positionals(&[Positional::one("mountpoint", "an empty directory")])
        .options(&[options::IMAGE, MOUNT, &[options::MAP_MEMORY]])
        .examples(&[
            (
                "mount --pool rbd /mnt/images",
                "then cp, dd, qemu-img and the like read and write images",
            ),
            ("mount -o ro,allow_other /mnt/images", "for all users, for reading only"),
        ]);

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    DIRECTORY,
    CommandSpec::new(SERVER_WORDS, "Serve a directory; started by 'mount'.", serve).hidden(),
];

fn mount(session: &Session, args: &Args) -> Outcome {
    let asked = MountOptions::read(args.texts("options"))?;
    let point = args.positional(0).ok_or_else(|| Failure::usage("missing mountpoint parameter"))?;
    if let Some(other) = args.positionals().get(1) {
        return Err(Failure::usage(format!("invalid argument '{other}'")));
    }
    let path = mount_point(point, asked.over_files)?;
    let foreground = args.flag("foreground") || args.flag("debug");
    if foreground {
        logging::start();
        session.set_patience(Patience::Guests { io_timeout: None });
    }
    let pool_name = args.text("pool").unwrap_or(marcot_client::DEFAULT_POOL);
    let pool = session.pool(pool_name)?;
    let namespace = Namespace::named(args.text("namespace").unwrap_or_default());
    session::require_namespace(&pool, &namespace)?;
    let options = DirectoryOptions {
        source: asked.source.unwrap_or_else(|| session.program.to_owned()),
        kind: asked.kind.unwrap_or_else(|| session.program.to_owned()),
        ..asked.directory
    };
    let only = args.text("image").filter(|name| !name.is_empty()).map(str::to_owned);
    let failed = |error: &Error| Failure::engine("mount failed", error);
    if foreground {
        let shown = Shown { pool, namespace, only, to_options };
        signals::catch();
        let mounted = directory::mount(shown, &path, &options).map_err(|e| failed(&e))?;
        return serve_until_asked(mounted);
    }
    let store = session.client()?.directory();
    let store = std::path::absolute(store).unwrap_or_else(|_| store.to_owned());
    let namespace = namespace.to_string();
    let pool = pool_name.to_owned();
    let job = DirectoryJob { store, pool, namespace, only, path, options, log: PathBuf::new() };
    job.start(SERVER_WORDS).map_err(|error| failed(&error))
}

/// The process that serves a directory. It reads its job, reports, and serves until SIGTERM or until the directory is
/// unmounted.
fn serve(session: &Session, _args: &Args) -> Outcome {
    logging::start();
    let job = DirectoryJob::read(&mut std::io::stdin()).map_err(|error| match error.kind() {
        ErrorKind::Invalid => Failure::usage("'directory server' is started by 'mount'"),
        _ => Failure::engine("directory server", &error),
    })?;
    signals::catch();
    let served = Session::new(session.program, job.store.to_str(), true);
    served.set_patience(Patience::Guests { io_timeout: None });
    let mounted = mount_job(&served, &job);
    directory::report(&mounted)?;
    let outcome = mounted.map_err(Failure::from).and_then(serve_until_asked);
    job.forget_log();
    outcome
}

fn mount_job(session: &Session, job: &DirectoryJob) -> marcot::Result<MountedDirectory> {
    let opened = session.client();
    let client = opened.map_err(|failure| Error::new(ErrorKind::Io, failure.sentence()))?;
    let pool = client.pool(&job.pool)?;
    let namespace = Namespace::named(&*job.namespace);
    let shown = Shown { pool, namespace, only: job.only.clone(), to_options };
    directory::mount(shown, &job.path, &job.options)
}

fn serve_until_asked(mounted: MountedDirectory) -> Outcome {
    directory::serve(mounted, &Signals)
        .map_err(|error| Failure::engine("the directory ended", &error))
}

/// The options of an image with these properties.
fn to_options(new: &NewImage) -> marcot::Result<CreateOptions> {
    let refused = |why: &str| Err(Error::new(ErrorKind::Invalid, why));
    if !(ORDER_MIN..=ORDER_MAX).contains(&new.order) {
        return refused("the order of objects is 12 to 25");
    }
    if new.features & !FEATURES_ALL != 0 {
        return refused("these are not bits of features that an image can have");
    }
    let options = CreateOptions::sized(new.size_bytes).order(new.order as u32);
    Ok(options.features(layout::features_of_bits(new.features)))
}

/// The directory to mount at, with its full name.
fn mount_point(text: &str, over_files: bool) -> Outcome<PathBuf> {
    let bad = |why: &str| Failure::new(STATUS_USAGE, format!("bad mount point '{text}': {why}"));
    let metadata = std::fs::metadata(text).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => bad("the process that served it has died; unmount it first"),
        _ => bad(&crate::failure::strerror(error.raw_os_error().unwrap_or(libc::EIO))),
    })?;
    if !metadata.is_dir() {
        return Err(bad("it is no directory"));
    }
    let empty = || std::fs::read_dir(text).is_ok_and(|mut entries| entries.next().is_none());
    if !over_files && !empty() {
        return Err(bad("it is not empty; if this is safe, use the mount option 'nonempty'"));
    }
    std::fs::canonicalize(Path::new(text)).map_err(|e| bad(&e.to_string()))
}

/// The values of `-o`.
#[derive(Debug, Default, PartialEq, Eq)]
struct MountOptions {
    directory: DirectoryOptions,
    source: Option<String>,
    kind: Option<String>,
    over_files: bool,
}

/// Options of mount(8) that are passed on, and those that say how it is anyway.
const FLAGS: &[&str] = &[
    "noexec", "noatime", "dirsync", "sync", "exec", "atime", "async", "dev", "nodev", "suid",
    "nosuid",
];
/// libfuse's options that only make it faster, or that say how it is anyway. With a value those that end with `=`.
const ACCEPTED: &[&str] = &[
    "ac_attr_timeout=",
    "async_read",
    "atomic_o_trunc",
    "attr_timeout=",
    "auto_cache",
    "auto_unmount",
    "big_writes",
    "congestion_threshold=",
    "debug",
    "direct_io",
    "entry_timeout=",
    "hard_remove",
    "intr",
    "intr_signal=",
    "kernel_cache",
    "large_read",
    "max_background=",
    "max_read=",
    "max_readahead=",
    "max_write=",
    "negative_timeout=",
    "no_remote_flock",
    "no_remote_lock",
    "no_remote_posix_lock",
    "noauto_cache",
    "noforget",
    "nopath",
    "readdir_ino",
    "remember=",
    "rw",
    "sync_read",
    "use_ino",
];

impl MountOptions {
    fn read<'a>(texts: impl Iterator<Item = &'a str>) -> Outcome<Self> {
        let mut options = Self::default();
        for option in texts.flat_map(|text| text.split(',')).filter(|option| !option.is_empty()) {
            options.add(option)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> Outcome {
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        let number = |radix| {
            let number = value.and_then(|value| u32::from_str_radix(value, radix).ok());
            number.ok_or_else(|| Failure::usage(format!("mount option '{option}' needs a number")))
        };
        let directory = &mut self.directory;
        match (name, value) {
            ("ro", None) => directory.read_only = true,
            ("allow_other", None) => directory.users = Users::All,
            ("allow_root", None) => directory.users = Users::OwnerAndRoot,
            ("default_permissions", None) => directory.default_permissions = true,
            ("nonempty", None) => self.over_files = true,
            ("fsname", Some(value)) => self.source = Some(value.to_owned()),
            ("subtype", Some(value)) => self.kind = Some(value.to_owned()),
            ("uid", Some(_)) => directory.access.uid = Some(number(10)?),
            ("gid", Some(_)) => directory.access.gid = Some(number(10)?),
            ("umask", Some(_)) => directory.access.umask = (number(8)? & 0o777) as u16,
            (_, None) if FLAGS.contains(&name) => directory.flags.push(name.to_owned()),
            (_, None) if ACCEPTED.contains(&name) => {}
            (_, Some(_)) if ACCEPTED.contains(&&*format!("{name}=")) => {}
            _ => return Err(Failure::usage(format!("unknown option '{option}'"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Outcome<MountOptions> {
        MountOptions::read(std::iter::once(text))
    }

    #[test]
    fn mount_options_are_read_as_libfuse_does() {
        let options =
            read("ro,allow_other,umask=077,uid=7,noatime,max_read=4096,big_writes").unwrap();
        let access = marcot_client::directory::Access { uid: Some(7), gid: None, umask: 0o077 };
        let expected = DirectoryOptions {
            read_only: true,
            users: Users::All,
            access,
            flags: vec!["noatime".into()],
            ..DirectoryOptions::default()
        };
        assert_eq!(options.directory, expected);
        assert_eq!(read("").unwrap(), MountOptions::default());
        for bad in ["bogus", "ro=1", "max_read", "big_writes=1", "umask=9", "uid=root", "fsname"] {
            let refused = read(bad).unwrap_err();
            assert_eq!(refused.status, STATUS_USAGE, "{bad}");
        }
    }

    #[test]
    fn new_images_have_only_what_images_can_have() {
        assert!(to_options(&NewImage::default()).is_ok());
        assert_eq!(
            to_options(&NewImage { features: 61, ..NewImage::default() }).unwrap().features,
            "layering,exclusive-lock,object-map,fast-diff,deep-flatten"
        );
        assert!(to_options(&NewImage { order: 11, ..NewImage::default() }).is_err());
        assert!(to_options(&NewImage { order: 26, ..NewImage::default() }).is_err());
        assert!(to_options(&NewImage { features: 64, ..NewImage::default() }).is_err());
    }
}

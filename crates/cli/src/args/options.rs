//! Options that several commands share.

use super::{Kind, Opt};

/// Accepted by every command. Ceph's options for reaching a cluster have no effect here. They are accepted so
/// that scripts run unchanged.
pub const GLOBAL: &[Opt] = &[
    Opt::new("store", Kind::Text, "store directory [default: MARCOT_STORE, else per user]").own(),
    Opt::new("conf", Kind::Text, "path to cluster configuration").letter('c'),
    Opt::new("cluster", Kind::Text, "cluster name"),
    Opt::new("id", Kind::Text, "client id (without 'client.' prefix)"),
    Opt::new("name", Kind::Text, "client name").letter('n'),
    Opt::new("mon-host", Kind::Text, "monitor host").letter('m'),
    Opt::new("keyfile", Kind::Text, "path to secret key").letter('K'),
    Opt::new("keyring", Kind::Text, "path to keyring").letter('k'),
    Opt::new("help", Kind::Flag, "show help").letter('h').own(),
    Opt::new("version", Kind::Flag, "show the version").letter('v').own(),
];

/// `--pool`.
pub const POOL: Opt = Opt::new("pool", Kind::Text, "pool name").letter('p');
/// `--namespace`.
pub const NAMESPACE: Opt = Opt::new("namespace", Kind::Text, "namespace name");
const IMAGE_NAME: Opt = Opt::new("image", Kind::Text, "image name");
const SNAP_NAME: Opt = Opt::new("snap", Kind::Text, "snapshot name");
/// `--image-id`.
pub const IMAGE_ID: Opt = Opt::new("image-id", Kind::Text, "image id");
/// `--snap-id`.
pub const SNAP_ID: Opt = Opt::new("snap-id", Kind::Integer, "snapshot id");
/// `--dest-snap`.
pub const DEST_SNAP: Opt = Opt::new("dest-snap", Kind::Text, "destination snapshot name");

/// Options that name a pool.
pub const ONE_POOL: &[Opt] = &[POOL];
/// Options that name a pool and a namespace.
pub const POOL_AND_NAMESPACE: &[Opt] = &[POOL, NAMESPACE];
/// Names an image.
pub const IMAGE: &[Opt] = &[POOL, NAMESPACE, IMAGE_NAME];
/// Options that name an image or a snapshot.
pub const SNAP: &[Opt] = &[POOL, NAMESPACE, IMAGE_NAME, SNAP_NAME];
/// Options that name an image or a snapshot to be copied.
pub const SOURCE_SNAP: &[Opt] = &[
    Opt::new("pool", Kind::Text, "source pool name").letter('p'),
    Opt::new("namespace", Kind::Text, "source namespace name"),
    Opt::new("image", Kind::Text, "source image name"),
    Opt::new("snap", Kind::Text, "source snapshot name"),
];
/// Options that name an image that gets another name.
pub const SOURCE: &[Opt] = &[SOURCE_SNAP[0], SOURCE_SNAP[1], SOURCE_SNAP[2]];
/// What the help says after these options.
pub const FEATURE_NOTES: &str = "Image Features:
  (*) supports enabling/disabling on existing images
  (-) supports disabling-only on existing images
  (+) enabled by default for new images if features not specified
";
/// Options that name a destination image.
pub const DEST: &[Opt] = &[
    Opt::new("dest-pool", Kind::Text, "destination pool name"),
    Opt::new("dest-namespace", Kind::Text, "destination namespace name"),
    Opt::new("dest", Kind::Text, "destination image name"),
];
/// Options for the output format.
pub const FORMAT: &[Opt] = &[
    Opt::new(
        "format",
        Kind::Choice(&["plain", "json", "xml"]),
        "output format (plain, json, or xml) [default: plain]",
    ),
    Opt::new("pretty-format", Kind::Flag, "pretty formatting (json and xml)"),
];
/// The option against progress output.
pub const NO_PROGRESS: &[Opt] = &[Opt::new("no-progress", Kind::Flag, "disable progress output")];
/// A size in MiB.
pub const SIZE: &[Opt] =
    &[Opt::new("size", Kind::SizeMib, "image size (in M/G/T) [default: M]").letter('s').required()];
/// Options for the format of an image.
pub const IMAGE_FORMAT: &[Opt] = &[
    Opt::new("image-format", Kind::Choice(&["1", "2"]), "image format [default: 2]"),
    Opt::new("new-format", Kind::Flag, "use image format 2 (deprecated)").deprecated(),
];
/// Options for the layout of an image.
pub const LAYOUT: &[Opt] = &[
    Opt::new("order", Kind::Range(12, 25), "object order [12 <= order <= 25]").deprecated(),
    Opt::new("object-size", Kind::Bytes, "object size in B/K/M [4K <= object size <= 32M]"),
    Opt::new(
        "image-feature",
        Kind::Text,
        "image features\n[layering(+), exclusive-lock(+*), object-map(+*), deep-flatten(+-), \
         journaling(*)]",
    ),
    Opt::new("image-shared", Kind::Flag, "shared image"),
    Opt::new("stripe-unit", Kind::Bytes, "stripe unit in B/K/M"),
    Opt::new("stripe-count", Kind::Integer, "stripe count"),
    Opt::new("data-pool", Kind::Text, "data pool"),
    Opt::new(
        "mirror-image-mode",
        Kind::Choice(&["journal", "snapshot"]),
        "mirror image mode [journal or snapshot]",
    ),
    JOURNAL[0],
    JOURNAL[1],
    JOURNAL[2],
];
/// Options for a journal. They have no effect.
pub const JOURNAL: &[Opt] = &[
    Opt::new("journal-splay-width", Kind::Integer, "number of active journal objects"),
    Opt::new(
        "journal-object-size",
        Kind::BytesWithin(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX),
        "size of journal objects [4K <= size <= 64M]",
    ),
    Opt::new("journal-pool", Kind::Text, "pool for journal objects"),
];
/// Least and greatest size of an object of a journal, in bytes.
const JOURNAL_BYTES_MIN: u64 = 4 << 10;
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// The size from which runs of zeros are left out of a copy.
pub const SPARSE_SIZE: &[Opt] =
    &[Opt::new("sparse-size", Kind::Bytes, "sparse size in B/K/M [default: 4K]")];
/// Memory for the maps of images that stay open.
pub const MAP_MEMORY: Opt = Opt::new(
    "map-memory",
    Kind::Bytes,
    "memory for the map of each open image in B/K/M/G, at least 1M [default: 64M]",
)
.own();
/// How long clients wait for the service of a pool in a bucket.
pub const IO_TIMEOUT: Opt = Opt::new(
    "io-timeout",
    Kind::Integer,
    "seconds after which requests fail while the service of a pool in a bucket does not work [default: 0, they wait as long as it takes]",
)
.own();
/// A file to write.
pub const EXPORT_PATH: &[Opt] = &[Opt::new("path", Kind::Text, "export file (or '-' for stdout)")];
/// A file to read.
pub const IMPORT_PATH: &[Opt] = &[Opt::new("path", Kind::Text, "import file (or '-' for stdin)")];

//! Options that several commands share.

use super::{Kind, Opt};

/// Accepted by every command. Ceph's options for reaching a cluster have no effect here. They are accepted so
/// that scripts run unchanged.
pub const GLOBAL: &[Opt] = &[
    Opt::new("store", Kind::Text, "store directory [default: MARCOT_STORE, else per user]"),
    Opt::new("conf", Kind::Text, "accepted and ignored (Ceph configuration)").letter('c'),
    Opt::new("cluster", Kind::Text, "accepted and ignored (Ceph cluster name)"),
    Opt::new("id", Kind::Text, "accepted and ignored (Ceph client id), also --user"),
    Opt::new("name", Kind::Text, "accepted and ignored (Ceph client name)").letter('n'),
    Opt::new("mon-host", Kind::Text, "accepted and ignored (Ceph monitor host)").letter('m'),
    Opt::new("keyfile", Kind::Text, "accepted and ignored (Ceph secret key)").letter('K'),
    Opt::new("keyring", Kind::Text, "accepted and ignored (Ceph keyring)").letter('k'),
    Opt::new("help", Kind::Flag, "show help").letter('h'),
    Opt::new("version", Kind::Flag, "show the version").letter('v'),
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
    &[Opt::new("size", Kind::SizeMib, "image size (in M/G/T) [default: M]").letter('s')];
/// Options for the layout of an image.
pub const CREATION: &[Opt] = &[
    Opt::new("image-format", Kind::Choice(&["1", "2"]), "image format [default: 2]"),
    Opt::new("new-format", Kind::Flag, "use image format 2 (deprecated)"),
    Opt::new("order", Kind::Range(12, 25), "object order [12 <= order <= 25]"),
    Opt::new("object-size", Kind::Bytes, "object size in B/K/M [4K <= object size <= 32M]"),
    Opt::new("image-feature", Kind::Text, "image features"),
    Opt::new("image-shared", Kind::Flag, "shared image"),
    Opt::new("stripe-unit", Kind::Bytes, "stripe unit in B/K/M"),
    Opt::new("stripe-count", Kind::Integer, "stripe count"),
    Opt::new("data-pool", Kind::Text, "data pool"),
    Opt::new("mirror-image-mode", Kind::Text, "mirror image mode [journal or snapshot]"),
    Opt::new("journal-splay-width", Kind::Integer, "number of active journal objects"),
    Opt::new("journal-object-size", Kind::Bytes, "size of journal objects"),
    Opt::new("journal-pool", Kind::Text, "pool for journal objects"),
];
/// The size from which runs of zeros are left out of a copy.
pub const SPARSE_SIZE: &[Opt] =
    &[Opt::new("sparse-size", Kind::Bytes, "sparse size in B/K/M [default: 4K]")];
/// Memory for the maps of images that stay open.
pub const MAP_MEMORY: Opt = Opt::new(
    "map-memory",
    Kind::Bytes,
    "memory for the map of each open image in B/K/M/G, at least 1M [default: 64M]",
);
/// How long clients wait for the service of a pool in a bucket.
pub const IO_TIMEOUT: Opt = Opt::new(
    "io-timeout",
    Kind::Integer,
    "seconds after which requests fail while the service of a pool in a bucket does not work [default: 0, they wait as long as it takes]",
);
/// A file to write.
pub const EXPORT_PATH: &[Opt] = &[Opt::new("path", Kind::Text, "export file (or '-' for stdout)")];
/// A file to read.
pub const IMPORT_PATH: &[Opt] = &[Opt::new("path", Kind::Text, "import file (or '-' for stdin)")];

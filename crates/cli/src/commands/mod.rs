//! The commands. Each family has a file.

mod absent;
mod bench;
mod check;
mod config;
mod copy;
pub mod device;
mod diff;
mod difference;
mod export;
mod feature;
mod files;
mod group;
mod image;
mod image_meta;
mod import;
mod import_only;
mod info;
mod layer;
mod list;
mod lock;
mod migration;
pub mod mount;
mod namespace;
mod object_map;
mod origin;
mod perf;
mod pool;
mod qcow2;
mod resume;
mod serve;
mod shell;
mod sink;
mod snap;
mod snap_limit;
mod source;
mod sparsify;
mod status;
mod tail;
mod trash;
mod trash_schedule;
mod tree;
mod usage;
mod watch;
mod whole;

pub use layer::tell_bad_clone_format;
pub use lock::locker;

use crate::args::CommandSpec;

/// Every command.
pub const ALL: &[&[CommandSpec]] = &[
    absent::COMMANDS,
    bench::COMMANDS,
    check::COMMANDS,
    config::COMMANDS,
    copy::COMMANDS,
    device::COMMANDS,
    diff::COMMANDS,
    difference::COMMANDS,
    export::COMMANDS,
    feature::COMMANDS,
    group::COMMANDS,
    image::COMMANDS,
    image_meta::COMMANDS,
    import::COMMANDS,
    info::COMMANDS,
    layer::COMMANDS,
    list::COMMANDS,
    lock::COMMANDS,
    migration::COMMANDS,
    mount::COMMANDS,
    namespace::COMMANDS,
    object_map::COMMANDS,
    perf::COMMANDS,
    pool::COMMANDS,
    serve::COMMANDS,
    shell::COMMANDS,
    snap::COMMANDS,
    snap_limit::COMMANDS,
    sparsify::COMMANDS,
    status::COMMANDS,
    tail::COMMANDS,
    trash::COMMANDS,
    trash_schedule::COMMANDS,
    tree::COMMANDS,
    usage::COMMANDS,
    watch::COMMANDS,
];

/// The argument that names an image.
const IMAGE_SPEC: crate::args::Positional = crate::args::Positional::one(
    "image-spec",
    "image specification (example: [<pool-name>/[<namespace>/]]<image-name>)",
);
/// The argument that names an image or a snapshot.
const IMAGE_OR_SNAP_SPEC: crate::args::Positional = crate::args::Positional::one(
    "image-or-snap-spec",
    "image or snapshot specification \
     (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
);
/// The argument that names an image or a snapshot to export.
const SOURCE_IMAGE_OR_SNAP_SPEC: crate::args::Positional = crate::args::Positional::one(
    "source-image-or-snap-spec",
    "source image or snapshot specification \
     (example: [<pool-name>/[<namespace>/]]<image-name>[@<snap-name>])",
);
/// The argument that names a snapshot.
const SNAP_SPEC: crate::args::Positional = crate::args::Positional::one(
    "snap-spec",
    "snapshot specification (example: [<pool-name>/[<namespace>/]]<image-name>@<snap-name>)",
);
/// The argument that names an image to create.
const DEST_IMAGE_SPEC: crate::args::Positional = crate::args::Positional::one(
    "dest-image-spec",
    "destination image specification (example: [<pool-name>/[<namespace>/]]<image-name>)",
);
/// The argument that names a pool.
const POOL_NAME: crate::args::Positional = crate::args::Positional::one("pool-name", "pool name");
/// The argument that names a pool and perhaps a namespace.
const POOL_SPEC: crate::args::Positional = crate::args::Positional::one(
    "pool-spec",
    "pool specification (example: <pool-name>[/<namespace>]",
);

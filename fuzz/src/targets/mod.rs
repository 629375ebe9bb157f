//! The targets, one file a family, and the memory that each decoder may take.
//!
//! A target's own copies of the input count too: they are the small factors.

mod command_line;
mod control;
mod disk_image;
mod format;
mod nbd;
mod pool;
mod stream;

use std::mem::size_of;

use marcot_format::record::{HEAD_SNAPSHOTS_MAX, SnapshotRecord};

use crate::Target;

const KIB: usize = 1 << 10;

/// Memory for looking at a pool in every way: records of 16 MiB, buffers, the map of an image.
const HOSTILE_POOL_BYTES_MAX: usize = 160 << 20;

/// Every target.
pub const ALL: &[Target] = &[
    Target {
        name: "hostile_pool",
        body: pool::hostile_pool,
        // The pool of an input is not longer for a longer input; its log and its pages are bounded.
        bytes_per_byte: 0,
        bytes_besides: HOSTILE_POOL_BYTES_MAX,
    },
    Target {
        name: "record",
        body: format::record,
        // An empty piece of metadata has two bytes, and takes 48 in a vector that doubles.
        bytes_per_byte: 100,
        // As many snapshots as there may be, in a vector that doubles.
        bytes_besides: 3 * HEAD_SNAPSHOTS_MAX * size_of::<SnapshotRecord>(),
    },
    Target { name: "map_page", body: format::map_page, bytes_per_byte: 2, bytes_besides: 24 * KIB },
    Target {
        name: "table_page",
        body: format::table_page,
        bytes_per_byte: 2,
        bytes_besides: 24 * KIB,
    },
    Target {
        name: "group_header",
        body: format::group_header,
        bytes_per_byte: 6,
        bytes_besides: 4 * KIB,
    },
    Target {
        name: "segment_header",
        body: format::segment_header,
        bytes_per_byte: 2,
        bytes_besides: 8 * KIB,
    },
    Target {
        name: "nbd_negotiation",
        body: nbd::negotiation,
        // An option of 16 bytes may be answered by some 150, kept by both ways of feeding it.
        bytes_per_byte: 60,
        bytes_besides: 64 * KIB,
    },
    Target { name: "nbd_request", body: nbd::requests, bytes_per_byte: 0, bytes_besides: KIB },
    Target {
        name: "control_command",
        body: control::command,
        // A JSON array of digits becomes a vector of values.
        bytes_per_byte: 130,
        bytes_besides: 4 * KIB,
    },
    Target {
        name: "control_answer",
        body: control::answer,
        bytes_per_byte: 130,
        bytes_besides: 4 * KIB,
    },
    Target { name: "size", body: command_line::size, bytes_per_byte: 4, bytes_besides: KIB },
    Target { name: "spec", body: command_line::spec, bytes_per_byte: 8, bytes_besides: KIB },
    Target {
        name: "command_line",
        body: command_line::arguments,
        // An empty argument is one byte, and a string, and a piece of the line.
        bytes_per_byte: 400,
        bytes_besides: 64 * KIB,
    },
    Target {
        name: "stream",
        body: stream::stream,
        // What was decoded is encoded again, twice.
        bytes_per_byte: 20,
        // A name of 4 KiB, a piece of metadata of 64 KiB, and what a reader grows to.
        bytes_besides: 512 * KIB,
    },
    Target {
        name: "disk_image",
        body: disk_image::disk_image,
        bytes_per_byte: 4,
        // The tables that are kept, a cluster and what it is unpacked from, and a window of zstd.
        bytes_besides: 40 << 20,
    },
    Target {
        name: "packed_stream",
        body: disk_image::packed_stream,
        bytes_per_byte: 4,
        // What xz may take.
        bytes_besides: 320 << 20,
    },
    Target {
        name: "sparse_runs",
        body: command_line::sparse_runs,
        bytes_per_byte: 50,
        bytes_besides: KIB,
    },
];

//! The format as bytes. The structures of `docs/format.md` stand here as literals, with checksums computed
//! by another program. So code that encodes and decodes with the same mistake does not pass.

mod address;
mod bucket;
mod bytes;
mod example;
mod example_bucket;
mod frame;
mod group;
mod limits;
mod messages;
mod page;
mod segment;
mod table;

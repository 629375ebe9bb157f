//! The format as bytes. The structures of `docs/format.md` stand here as literals, with checksums that
//! another program has computed: what encodes and decodes in the same wrong way does not pass.

mod address;
mod bytes;
mod example;
mod frame;
mod group;
mod limits;
mod messages;
mod page;
mod segment;
mod table;

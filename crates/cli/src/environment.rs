//! Variables of the environment that the command line reads.

/// Where the store lies, unless `--store` says so.
pub const STORE_VARIABLE: &str = "MARCOT_STORE";

//! Variables of the environment that the command line reads.

/// Names the store directory if `--store` does not.
pub const STORE_VARIABLE: &str = "MARCOT_STORE";

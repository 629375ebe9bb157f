//! One target under libFuzzer, named by `MARCOT_FUZZ_TARGET`. Run it with `scripts/fuzz`.
#![no_main]

use std::sync::OnceLock;

use marcot_fuzz::{Target, find};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("MARCOT_FUZZ_TARGET").unwrap_or_default();
        find(&name).unwrap_or_else(|| panic!("MARCOT_FUZZ_TARGET names no target: '{name}'"))
    });
    target.run(data);
});

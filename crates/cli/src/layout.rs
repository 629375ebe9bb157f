//! The options for the layout of a new image.
//!
//! marcot stores all images in the same way, so most of them only affect the output of `info`: the object size
//! and the feature names. Options that promise something that marcot does not do are refused.

use marcot::CreateOptions;

use crate::args::{Args, parse};
use crate::errno::{EDOM, EINVAL, EOPNOTSUPP};
use crate::failure::{Failure, Outcome};

/// The default object order: objects of 4 MiB.
pub use marcot::ORDER_DEFAULT;
const OBJECT_BYTES_MIN: u64 = 4 << 10;
const OBJECT_BYTES_MAX: u64 = 32 << 20;

/// Features in the order in which `rbd` lists them.
const FEATURES: [&str; 6] =
    ["layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"];
/// The same features as bits in streams, in the same order.
const FEATURE_BITS: [u64; 6] = [1, 2, 4, 8, 16, 32];
/// Features of `rbd` that marcot does not have.
const FEATURES_REFUSED: [&str; 4] = ["journaling", "data-pool", "operations", "migrating"];
const FEATURES_DEFAULT: &str = "layering,exclusive-lock,object-map,fast-diff,deep-flatten";
const FEATURES_SHARED: &str = "layering,deep-flatten";

/// The options of a new image of `size_bytes`. `error` is `rbd`'s name for the failure, such as `create
/// error`.
pub fn create_options(args: &Args, size_bytes: u64, error: &str) -> Outcome<CreateOptions> {
    if args.text("image-format") == Some("1") {
        let failure = Failure::new(EINVAL, "image format 1 is deprecated");
        return Err(failure.then(format!("{error}: (22) Invalid argument")));
    }
    refuse_what_would_lie(args)?;
    let order = order(args, error)?.unwrap_or(ORDER_DEFAULT);
    Ok(CreateOptions::sized(size_bytes).order(order).features(features(args, error)?))
}

/// Refuses options that promise something that marcot does not do.
pub fn refuse_what_would_lie(args: &Args) -> Outcome {
    let refused = [
        ("data-pool", "an image keeps its data in its own pool"),
        ("mirror-image-mode", "images are not mirrored"),
        ("journal-pool", "images have no separate journal"),
    ];
    for (option, reason) in refused {
        if args.flag(option) {
            let message = format!("--{option} is not available: {reason}");
            return Err(Failure::new(EOPNOTSUPP, message));
        }
    }
    Ok(())
}

/// The order from `--object-size` or `--order`.
pub fn order(args: &Args, error: &str) -> Outcome<Option<u32>> {
    if let Some(bytes) = args.bytes("object-size") {
        if !(OBJECT_BYTES_MIN..=OBJECT_BYTES_MAX).contains(&bytes) {
            let cause = "the object size must be between 4 KiB and 32 MiB";
            return Err(Failure::errno(error, EDOM).because(cause));
        }
        return Ok(Some(bytes.next_power_of_two().trailing_zeros()));
    }
    Ok(args.integer("order").and_then(|order| u32::try_from(order).ok()))
}

/// An order that a stream gives.
pub fn known_order(order: u64, error: &str) -> Outcome<u32> {
    let bytes = u32::try_from(order).ok().and_then(|order| 1u64.checked_shl(order));
    match bytes {
        Some(bytes) if (OBJECT_BYTES_MIN..=OBJECT_BYTES_MAX).contains(&bytes) => {
            Ok(bytes.trailing_zeros())
        }
        _ => {
            let cause = "the object size must be between 4 KiB and 32 MiB";
            Err(Failure::errno(error, EDOM).because(cause))
        }
    }
}

/// The bits of features that are given by name.
pub fn feature_bits(names: &str) -> u64 {
    let has = |name: &str| names.split(',').any(|known| known == name);
    let known = FEATURES.iter().zip(FEATURE_BITS);
    known.filter(|(name, _)| has(name)).map(|(_, bit)| bit).sum()
}

/// The names of features that are given as bits, without those that marcot does not have.
pub fn features_of_bits(bits: u64) -> String {
    let known = FEATURES.iter().zip(FEATURE_BITS);
    let names: Vec<&str> =
        known.filter(|(_, bit)| bits & bit != 0).map(|(name, _)| *name).collect();
    names.join(",")
}

/// The requested features, comma separated, in `rbd`'s order.
pub fn features(args: &Args, error: &str) -> Outcome<String> {
    let asked: Vec<&str> =
        args.texts("image-feature").flat_map(|t| t.split(',')).filter(|t| !t.is_empty()).collect();
    if let Some(refused) = asked.iter().find(|name| FEATURES_REFUSED.contains(name)) {
        return Err(Failure::new(EOPNOTSUPP, format!("feature '{refused}' is not available")));
    }
    if let Some(unknown) = asked.iter().find(|name| !FEATURES.contains(name)) {
        let cause = format!("'{unknown}' is none of the features {}", FEATURES.join(", "));
        return Err(parse::invalid_argument("image-feature").because(cause));
    }
    if asked.is_empty() {
        let shared = args.flag("image-shared");
        return Ok(if shared { FEATURES_SHARED } else { FEATURES_DEFAULT }.to_string());
    }
    let has = |name: &str| asked.contains(&name);
    let maps_objects = has("object-map") || has("fast-diff");
    if maps_objects && !has("exclusive-lock") {
        let cause = "cannot use object map without exclusive lock";
        return Err(Failure::errno(error, EINVAL).because(cause));
    }
    let chosen = FEATURES.into_iter().filter(|name| match *name {
        "object-map" | "fast-diff" => maps_objects,
        name => has(name),
    });
    Ok(chosen.collect::<Vec<_>>().join(","))
}

//! The options for the layout of a new image.
//!
//! marcot stores all images in the same way, so most of them only affect the output of `info`: the object size,
//! the stripes, the data pool, and the feature names. They are checked as `rbd` checks them.

use marcot::{CreateOptions, ImageInfo};
use marcot_client::Pool;

use crate::args::names::Target;
use crate::args::{Args, parse};
use crate::errno::{EDOM, EEXIST, EINVAL, ENOENT, EOPNOTSUPP};
use crate::failure::{Failure, Outcome};
use crate::output::warn;
use crate::session::Session;

/// The default object order: objects of 4 MiB.
pub use marcot::ORDER_DEFAULT;
const OBJECT_BYTES_MIN: u64 = 4 << 10;
const OBJECT_BYTES_MAX: u64 = 32 << 20;

/// Features in the order in which `rbd` lists them.
const FEATURES: [&str; 6] =
    ["layering", "striping", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"];
/// The same features as bits in streams, in the same order.
const FEATURE_BITS: [u64; 6] = [1, 2, 4, 8, 16, 32];
/// Features that `rbd` accepts by name and sets by other options, or by itself.
const FEATURES_IMPLIED: [&str; 4] = ["striping", "data-pool", "operations", "migrating"];
/// A feature of `rbd` that marcot does not have.
pub const JOURNALING: &str = "journaling";
/// The feature that clones and protected snapshots need.
pub const LAYERING: &str = "layering";
/// What is said where it is missing.
pub const NO_LAYERING: &str = "the image does not have the feature layering";
/// What is said of [`JOURNALING`].
pub const NO_JOURNALING: &str = "feature 'journaling' is not available: images are not mirrored";
const MAP_WITHOUT_LOCK: &str = "cannot use object map without exclusive lock";
const FEATURES_DEFAULT: &str = "layering,exclusive-lock,object-map,fast-diff,deep-flatten";
/// Features that one client at a time can use.
const FEATURES_EXCLUSIVE: [&str; 3] = ["exclusive-lock", "object-map", "fast-diff"];

/// Features that can be taken from an image.
pub const DISABLED_LATER: [&str; 4] = ["exclusive-lock", "object-map", "fast-diff", "deep-flatten"];

/// True for the name of a feature of `rbd`.
pub fn is_feature(name: &str) -> bool {
    FEATURES.contains(&name) || FEATURES_IMPLIED.contains(&name) || name == JOURNALING
}

/// True if an image has a feature.
pub fn has_feature(image: &ImageInfo, name: &str) -> bool {
    shown_features(image).iter().any(|feature| feature == name)
}

/// True if a list of features, comma separated, has this one.
pub fn names_feature(features: &str, name: &str) -> bool {
    features.split(',').any(|feature| feature.trim() == name)
}

/// The features that `info` shows, in `rbd`'s order.
pub fn shown_features(image: &ImageInfo) -> Vec<String> {
    let striped = stripe(image).is_striped();
    let has = |name: &str| names_feature(&image.features, name);
    let known = FEATURES.into_iter().filter(|name| match *name {
        "striping" => striped,
        name => has(name),
    });
    let data_pool = (!image.data_pool.is_empty()).then_some("data-pool");
    known.chain(data_pool).map(str::to_string).collect()
}

/// How RBD would spread an image over objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripe {
    /// log2 of the object size.
    pub order: u32,
    /// Bytes that follow each other in an object.
    pub unit_bytes: u64,
    /// Objects that take turns.
    pub count: u64,
}

/// The stripe of an image.
pub fn stripe(image: &ImageInfo) -> Stripe {
    let object_bytes = 1 << image.order;
    let set = |value: u64, default: u64| if value == 0 { default } else { value };
    let unit_bytes = set(image.stripe_unit_bytes, object_bytes);
    Stripe { order: image.order, unit_bytes, count: set(image.stripe_count, 1) }
}

impl Stripe {
    fn object_bytes(self) -> u64 {
        1 << self.order
    }

    /// False where the objects follow each other.
    pub fn is_striped(self) -> bool {
        self.unit_bytes != self.object_bytes() || self.count != 1
    }

    /// How many objects RBD would have for so many bytes.
    pub fn objects(self, size_bytes: u64) -> u64 {
        let period_bytes = self.count.saturating_mul(self.object_bytes()).max(1);
        let periods = size_bytes.div_ceil(period_bytes);
        let rest_bytes = size_bytes % period_bytes;
        let units = rest_bytes.div_ceil(self.unit_bytes.max(1));
        let missing = if rest_bytes > 0 { self.count.saturating_sub(units) } else { 0 };
        periods * self.count - missing
    }
}

/// What the command line says about the layout of a new image. Values that cannot be right are refused before
/// anything is looked up; the rest is checked with the pool at hand.
pub struct Wanted {
    order: Option<u32>,
    object_bytes: Option<u64>,
    unit_bytes: Option<u64>,
    count: Option<u64>,
    features: Option<Vec<String>>,
    shared: bool,
    data_pool: Option<String>,
    first_format: bool,
}

impl Wanted {
    /// Reads the command line.
    pub fn read(args: &Args) -> Outcome<Self> {
        refuse_what_would_lie(args)?;
        let names = args.texts("image-feature").flat_map(|text| text.split(','));
        let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
        if let Some(unknown) = names.iter().find(|name| !is_feature(name)) {
            let cause = format!("'{unknown}' is none of the features {}", FEATURES.join(", "));
            return Err(parse::invalid_argument("image-feature").because(cause));
        }
        let names: Vec<String> = names.into_iter().map(str::to_string).collect();
        Ok(Self {
            features: args.flag("image-feature").then_some(names),
            order: args.integer("order").and_then(|order| u32::try_from(order).ok()),
            object_bytes: args.bytes("object-size"),
            unit_bytes: args.bytes("stripe-unit"),
            count: args.integer("stripe-count"),
            shared: args.flag("image-shared"),
            data_pool: args.text("data-pool").map(str::to_string),
            first_format: args.text("image-format") == Some("1") && !args.flag("new-format"),
        })
    }

    /// True if features are given, and this one is not among them.
    pub fn leaves_out(&self, name: &str) -> bool {
        self.features.as_ref().is_some_and(|features| features.iter().all(|given| given != name))
    }

    /// The options of a new image, `target` in `pool`. What is not given is as in `source`. `error` is `rbd`'s
    /// name for the failure, such as `create error`.
    pub fn options(
        &self,
        session: &Session,
        (pool, target): (&Pool, &Target),
        source: &Source,
        error: &str,
    ) -> Outcome<CreateOptions> {
        let options = self.options_whatever_the_name(session, pool, source, error);
        options.map_err(|failure| match pool.image(target.name()) {
            // RBD looks for this first.
            Ok(_) => Failure::errno(error, EEXIST)
                .because(format!("rbd image {} already exists", target.image)),
            Err(_) => failure,
        })
    }

    /// The same, for commands that look last whether the name is taken.
    pub fn options_whatever_the_name(
        &self,
        session: &Session,
        pool: &Pool,
        source: &Source,
        error: &str,
    ) -> Outcome<CreateOptions> {
        if self.first_format {
            warn(session.program, "image format 1 is deprecated");
        }
        self.checked(session, pool, source, error)
    }

    fn checked(
        &self,
        session: &Session,
        pool: &Pool,
        source: &Source,
        error: &str,
    ) -> Outcome<CreateOptions> {
        let refused = |cause: &str| Failure::errno(error, EINVAL).because(cause);
        if self.first_format {
            return Err(refused("Format 1 image creation unsupported. "));
        }
        let order = self.order(error)?.unwrap_or(source.stripe.order);
        let features = self.features(&source.features, error)?;
        let stripe = self.stripe(order, source).map_err(refused)?;
        let data_pool = self.data_pool(session, pool, error)?;
        let options = CreateOptions::default().order(order).features(features).data_pool(data_pool);
        Ok(match stripe.is_striped() {
            true => options.stripe(stripe.unit_bytes, stripe.count),
            false => options,
        })
    }

    fn order(&self, error: &str) -> Outcome<Option<u32>> {
        if self.order.is_some() {
            return Ok(self.order);
        }
        let Some(bytes) = self.object_bytes else { return Ok(None) };
        let order = nearest_order(bytes);
        if !(OBJECT_BYTES_MIN..=OBJECT_BYTES_MAX).contains(&(1_u64.checked_shl(order).unwrap_or(0)))
        {
            let cause = "the object size must be between 4 KiB and 32 MiB";
            return Err(Failure::errno(error, EDOM).because(cause));
        }
        Ok(Some(order))
    }

    fn stripe(&self, order: u32, source: &Source) -> Result<Stripe, &'static str> {
        let object_bytes = 1 << order;
        // Stripes of RBD default to those of the source, whose unit may be a whole object.
        let inherits = source.inherited && self.unit_bytes.is_none() && self.count.is_none();
        let default = |given: Option<u64>, inherited: u64| match given {
            Some(given) => given,
            None if inherits => inherited,
            None => 0,
        };
        let unit_bytes = default(self.unit_bytes, source.stripe.unit_bytes);
        let count = default(self.count, source.stripe.count);
        if (unit_bytes == 0) != (count == 0) {
            return Err("must specify both (or neither) of stripe-unit and stripe-count");
        }
        if unit_bytes == 0 {
            return Ok(Stripe { order, unit_bytes: object_bytes, count: 1 });
        }
        if !object_bytes.is_multiple_of(unit_bytes) {
            return Err("stripe unit is not a factor of the object size");
        }
        Ok(Stripe { order, unit_bytes, count })
    }

    /// The requested features, comma separated, in `rbd`'s order.
    fn features(&self, inherited: &str, error: &str) -> Outcome<String> {
        let inherited: Vec<String> = inherited.split(',').map(str::to_string).collect();
        let asked = self.features.as_ref().unwrap_or(&inherited);
        let has = |name: &str| {
            asked.iter().any(|asked| asked == name)
                && !(self.shared && FEATURES_EXCLUSIVE.contains(&name))
        };
        let refused = |cause: &str| Failure::errno(error, EINVAL).because(cause);
        let exclusive = has("exclusive-lock");
        if has("object-map") && !exclusive {
            return Err(refused(MAP_WITHOUT_LOCK));
        }
        if has(JOURNALING) && !self.shared {
            return Err(match exclusive {
                true => Failure::new(EOPNOTSUPP, NO_JOURNALING),
                false => refused("cannot use journaling without exclusive lock"),
            });
        }
        let chosen = FEATURES.into_iter().filter(|name| match *name {
            "striping" => false,
            "fast-diff" => has("object-map"),
            name => has(name),
        });
        Ok(chosen.collect::<Vec<_>>().join(","))
    }

    /// The data pool, empty if it is the image's own pool.
    fn data_pool(&self, session: &Session, pool: &Pool, error: &str) -> Outcome<String> {
        let Some(name) = self.data_pool.as_deref().filter(|name| !["", pool.name()].contains(name))
        else {
            return Ok(String::new());
        };
        match session.client()?.pool(name) {
            Ok(_) => Ok(name.to_string()),
            Err(found) if found.kind() == marcot::ErrorKind::NotFound => {
                let cause = format!("data pool {name} does not exist");
                Err(Failure::errno(error, ENOENT).because(cause))
            }
            Err(found) => Err(Failure::engine(error, &found)),
        }
    }
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
    let has = |name: &str| names_feature(names, name);
    let known = FEATURES.iter().zip(FEATURE_BITS);
    known.filter(|(name, _)| has(name)).map(|(_, bit)| bit).sum()
}

/// Refuses features of a new image that need one that is missing.
pub fn check_features(features: &str, error: &str) -> Outcome {
    match names_feature(features, "object-map") && !names_feature(features, "exclusive-lock") {
        true => Err(Failure::errno(error, EINVAL).because(MAP_WITHOUT_LOCK)),
        false => Ok(()),
    }
}

/// The names of features that are given as bits, without those that marcot does not have. As with `rbd`, a new image
/// has `fast-diff` exactly where it has `object-map`.
pub fn features_of_bits(bits: u64) -> String {
    let has = |name: &str| bits & feature_bits(name) != 0;
    let known = FEATURES.into_iter().filter(|name| match *name {
        "fast-diff" => has("object-map"),
        name => has(name),
    });
    let names: Vec<&str> = known.collect();
    names.join(",")
}

/// What a new image inherits where the command line says nothing.
pub struct Source {
    stripe: Stripe,
    features: String,
    /// Stripes are inherited.
    inherited: bool,
}

impl Source {
    /// The defaults of `rbd`.
    pub fn nothing() -> Self {
        let stripe = Stripe { order: ORDER_DEFAULT, unit_bytes: 0, count: 0 };
        Self { stripe, features: FEATURES_DEFAULT.to_string(), inherited: false }
    }

    /// Another image.
    pub fn image(image: &ImageInfo) -> Self {
        let features = image.features.clone();
        Self { stripe: stripe(image), features, inherited: true }
    }
}

/// log2 of a number of bytes, rounded to the nearest, as RBD does it.
fn nearest_order(bytes: u64) -> u32 {
    let order = bytes.checked_ilog2().unwrap_or(0);
    let power = 1_u128 << order;
    // Beyond the power times the root of 2, the next one is nearer.
    let squared = u128::from(bytes) * u128::from(bytes);
    if squared >= 2 * power * power { order + 1 } else { order }
}

/// Refuses options that promise something that marcot does not do.
fn refuse_what_would_lie(args: &Args) -> Outcome {
    let refused = [("mirror-image-mode", "images are not mirrored")];
    for (option, reason) in refused {
        if args.flag(option) {
            let message = format!("--{option} is not available: {reason}");
            return Err(Failure::new(EOPNOTSUPP, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_sizes_are_rounded_to_the_nearest_power_of_two() {
        for (bytes, order) in
            [(4096, 12), (4095, 12), (2896, 11), (2897, 12), (5 << 20, 22), (33 << 20, 25), (0, 0)]
        {
            assert_eq!(nearest_order(bytes), order, "{bytes}");
        }
    }

    #[test]
    fn stripes_have_as_many_objects_as_with_rbd() {
        let stripe = |order, unit_bytes, count| Stripe { order, unit_bytes, count };
        for (stripe, size_bytes, objects) in [
            (stripe(22, 1 << 22, 1), 0, 0),
            (stripe(22, 1 << 22, 1), 1, 1),
            (stripe(22, 1 << 22, 1), 8 << 20, 2),
            (stripe(22, 64 << 10, 4), 8 << 20, 4),
            (stripe(22, 64 << 10, 4), 100_000, 2),
            (stripe(20, 64 << 10, 4), 8 << 20, 8),
            (stripe(22, 128 << 10, 2), 8 << 20, 2),
        ] {
            assert_eq!(stripe.objects(size_bytes), objects, "{stripe:?} {size_bytes}");
        }
    }
}

//! `export --export-format 2` and `import --export-format 2`: an image with its metadata and snapshots.

use marcot_client::stream::export;
use marcot_client::stream::records::Records;
use marcot_client::stream::whole::{Properties, WholeTrouble};
use marcot_client::stream::wire::{Item, What};
use marcot_client::{CreateOptions, Image, ImageInfo, Pool};

use super::difference::{interrupted, not_applied, not_exported, not_read};
use super::files::sparse_grain;
use super::sink::Sink;
use super::source::Source;
use crate::args::Args;
use crate::args::names::Target;
use crate::errno::{EDOM, EINVAL};
use crate::failure::{Failure, Outcome};
use crate::layout::{self, LAYERING, names_feature};
use crate::output::{err, line, warn};
use crate::progress::Progress;
use crate::session::Session;
use crate::signals;

const EXPORT_ERROR: &str = "export error";
const IMPORT_ERROR: &str = "import failed";

/// Writes an image with its metadata and snapshots.
pub fn export_whole(session: &Session, image: &Image, info: &ImageInfo, mut sink: Sink) -> Outcome {
    let mut progress = session.parts("Exporting image");
    let stripe = layout::stripe(info);
    let striping = if stripe.is_striped() { layout::feature_bits("striping") } else { 0 };
    let properties = [
        Item::Order(info.order.into()),
        Item::Features(layout::feature_bits(&info.features) | striping),
        Item::StripeUnit(stripe.unit_bytes),
        Item::StripeCount(stripe.count),
    ];
    let outcome =
        image.export_whole(&properties, &mut |bytes| sink.append(bytes), &mut |done, total| {
            progress.update(done, total)
        });
    let outcome = outcome.and_then(|()| sink.finish_stream().map_err(export::Trouble::Sink));
    progress.end(outcome.map_err(|trouble| not_exported(EXPORT_ERROR, trouble)))
}

/// Makes an image of a stream. It is hidden until it is complete.
pub fn import_whole(
    session: &Session,
    args: &Args,
    pool: &Pool,
    target: &Target,
    source: &Source,
    progress: &mut Progress,
) -> Outcome {
    let mut records = Records::new(source.reader(), What::Properties);
    let properties = Properties::read(&mut records).map_err(|unreadable| {
        let failure = not_read(session, IMPORT_ERROR, &unreadable, EDOM);
        warn(session.program, "import header failed.");
        failure
    })?;
    for tag in &properties.unknown {
        let tag = char::from(*tag);
        warn(session.program, &format!("invalid tag in image properties zone: {tag}Skip it."));
    }
    let options = create_options(session, args, (pool, target), &properties).inspect_err(|_| {
        warn(session.program, "image creation failed");
    })?;
    signals::catch_and_watch();
    let failed = |error: marcot::Error| match error.kind() {
        marcot::ErrorKind::Interrupted => interrupted(IMPORT_ERROR),
        _ => Failure::engine(IMPORT_ERROR, &error),
    };
    let mut incoming = pool.begin_image(target.name(), &options).map_err(|error| {
        warn(session.program, "image creation failed");
        failed(error)
    })?;
    for (key, value) in &properties.metadata {
        incoming.set_metadata(key, value).map_err(|error| {
            warn(session.program, "failed to import image-meta");
            failed(error)
        })?;
    }
    let grain_bytes = sparse_grain(args, marcot_client::copy::GRAIN_BYTES);
    let mut report = |done, total| progress.update(done, total);
    let may_protect = names_feature(&options.features, LAYERING);
    let taken = incoming.take_differences(&mut records, grain_bytes, may_protect, &mut report);
    taken.map_err(|trouble| not_taken(session, &trouble, progress))?;
    incoming.finish().map(drop).map_err(failed)
}

/// Prints why the content is not imported, as `rbd` does.
fn not_taken(session: &Session, trouble: &WholeTrouble, progress: &Progress) -> Failure {
    let failure = match trouble {
        WholeTrouble::Count(unreadable) => not_read(session, IMPORT_ERROR, unreadable, EDOM),
        WholeTrouble::Difference(trouble) => {
            let failure = not_applied(session, IMPORT_ERROR, trouble, EDOM);
            progress.tell_failed();
            let inner = not_applied_again(&failure);
            err(&line(&format!("{}: {inner}", session.program)));
            failure
        }
    };
    warn(session.program, "failed to import image");
    failure
}

/// `rbd` reports the same error for the difference and for the image.
fn not_applied_again(failure: &Failure) -> String {
    let status = failure.status;
    format!("import-diff failed: ({status}) {}", crate::failure::strerror(status))
}

/// The layout of the stream, where the command line does not give another one.
fn create_options(
    session: &Session,
    args: &Args,
    place: (&Pool, &Target),
    properties: &Properties,
) -> Outcome<CreateOptions> {
    let wanted = layout::Wanted::read(args)?;
    let mut given = wanted.options(session, place, &layout::Source::nothing(), IMPORT_ERROR)?;
    let order = match properties.order {
        Some(order) if !args.flag("object-size") && !args.flag("order") => {
            layout::known_order(order, IMPORT_ERROR)?
        }
        _ => given.order,
    };
    // A stripe is a part of an object.
    let unit = properties.stripe_unit.filter(|unit| *unit > 0);
    if unit.is_some_and(|unit| unit > 1 << order || (1 << order) % unit != 0) {
        let cause = "the stripe unit of the stream is not a part of an object";
        return Err(Failure::errno(IMPORT_ERROR, EINVAL).because(cause));
    }
    let features = match properties.features {
        Some(bits) if !args.flag("image-feature") && !args.flag("image-shared") => {
            layout::features_of_bits(bits)
        }
        _ => given.features,
    };
    layout::check_features(&features, IMPORT_ERROR)?;
    (given.order, given.features) = (order, features);
    let count = properties.stripe_count.filter(|count| *count > 0);
    if let (Some(unit), Some(count)) = (unit, count)
        && (unit, count) != (1 << order, 1)
        && !args.flag("stripe-unit")
        && !args.flag("stripe-count")
    {
        given = given.stripe(unit, count);
    }
    Ok(given)
}

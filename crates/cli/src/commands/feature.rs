//! `feature enable`, `feature disable`.

use super::IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Positional, options};
use crate::errno::EOPNOTSUPP;
use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::session::Session;

const FEATURES: Positional = Positional {
    name: "features",
    help: "image features\n[exclusive-lock, object-map, journaling]",
    many: true,
    optional: false,
};

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["feature", "disable"], "Disable the specified image feature.", disable)
        .positionals(&[IMAGE_SPEC, FEATURES])
        .options(&[options::IMAGE])
        .examples(&[("feature disable vm-1 object-map fast-diff", "for clients that lack them")]),
    CommandSpec::new(&["feature", "enable"], "Enable the specified image feature.", enable)
        .positionals(&[IMAGE_SPEC, FEATURES])
        .options(&[options::IMAGE, options::JOURNAL])
        .examples(&[("feature enable vm-1 exclusive-lock", "one writer at a time")]),
];

fn enable(session: &Session, args: &Args) -> Outcome {
    change(session, args, true)
}

fn disable(session: &Session, args: &Args) -> Outcome {
    change(session, args, false)
}

fn change(session: &Session, args: &Args, enable: bool) -> Outcome {
    let mut cursor = 0;
    let target = names::target(args, &mut cursor, Wanted::IMAGE)?;
    let words = args.positionals().get(cursor..).unwrap_or_default();
    if words.is_empty() {
        return Err(Failure::invalid("at least one feature name must be specified"));
    }
    let names: Vec<String> = words
        .iter()
        .flat_map(|word| word.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect();
    if let Some(unknown) = names.iter().find(|name| !layout::is_feature(name)) {
        let failure = Failure::usage("the argument for option is invalid");
        return Err(failure.because(format!("'{unknown}' is no feature")));
    }
    let image = session.find(&target)?;
    if enable && names.iter().any(|name| name == layout::JOURNALING) {
        return Err(Failure::new(EOPNOTSUPP, layout::NO_JOURNALING));
    }
    let changed = image.change_features(&names, enable);
    changed.map_err(|error| Failure::engine("failed to update image features", &error))
}

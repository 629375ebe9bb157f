//! `migration prepare --import-only`: the source lies outside the store, and stays as it is.

use std::io::Read;
use std::sync::Arc;

use marcot_client::Pool;
use marcot_client::copy::GRAIN_BYTES;
use marcot_client::external::told;
use marcot_client::foreign::{Steps, Trouble};
use marcot_client::source_spec::{self, BadSpec, OpenSource, SPEC_BYTES_MAX, SourceSpec};
use marcot_foreign::ErrorKind;

use super::origin::snapshot_name;
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, Kind, Opt};
use crate::errno::{self, EBADMSG, EINVAL, EIO, ENOSYS, EOPNOTSUPP};
use crate::failure::{Failure, Outcome};
use crate::session::Session;
use crate::{layout, signals};

/// The options that say what the source is.
pub const OPTIONS: &[Opt] = &[
    Opt::new("import-only", Kind::Flag, "only import data from source"),
    Opt::new("source-spec-path", Kind::Text, "source-spec file (or '-' for stdin)"),
    Opt::new("source-spec", Kind::Text, "source-spec"),
];

const ERROR: &str = "preparing import migration failed";
const NATIVE: &str = "an image of the store is no source here: 'deep copy' copies it with its snapshots, and 'migration prepare' without --import-only moves it";

/// True where the command line asks for this.
pub fn is_asked(args: &Args) -> bool {
    args.flag("import-only") || !spec_of(args, "source-spec").is_empty() || has_path(args)
}

fn spec_of<'a>(args: &'a Args, name: &str) -> &'a str {
    args.text(name).unwrap_or_default()
}

fn has_path(args: &Args) -> bool {
    !spec_of(args, "source-spec-path").is_empty()
}

/// Begins the migration.
pub fn prepare(session: &Session, args: &Args) -> Outcome {
    let text = match (spec_of(args, "source-spec"), has_path(args)) {
        ("", true) => read_spec(spec_of(args, "source-spec-path"))?,
        (_, true) => {
            return Err(Failure::invalid("cannot specify both source-spec and source-spec-path"));
        }
        (text, false) => text.to_owned(),
    };
    if text.is_empty() {
        return native(session, args);
    }
    if !args.flag("import-only") {
        return Err(Failure::invalid(
            "--import-only must be used in combination with source-spec/source-spec-path",
        ));
    }
    let target = names::target(args, &mut 0, Wanted { role: names::Role::Source, ..Wanted::DEST })?;
    let wanted = layout::Wanted::read(args)?;
    let pool = session.pool_of(&target)?;
    let options = wanted.options(session, (&pool, &target), &layout::Source::nothing(), ERROR)?;
    signals::catch_and_watch();
    let spec = SourceSpec::parse(&text).map_err(|bad| bad_spec(&bad))?;
    if spec.is_native() {
        return Err(Failure::errno(ERROR, EOPNOTSUPP).because(NATIVE));
    }
    let source = spec.open(&(Arc::new(signals::stop_asked) as _)).map_err(|why| match why {
        source_spec::Trouble::Spec(bad) => bad_spec(&bad),
        source_spec::Trouble::Disk(error) => unreadable(&error),
    })?;
    Job { pool: &pool, target: &target, options }.run(&spec, &source)
}

/// A snapshot of an image, as `rbd` takes it without a description.
fn native(session: &Session, args: &Args) -> Outcome {
    let mut cursor = 0;
    let source = names::target(args, &mut cursor, Wanted::SNAP)?;
    let dest = names::target(args, &mut cursor, Wanted::DEST.optional())?;
    if dest.image.is_empty() {
        return Err(Failure::invalid("destination image name must be provided"));
    }
    session.pool_of(&source)?;
    session.pool_of(&dest)?;
    Err(Failure::errno(ERROR, EOPNOTSUPP).because(NATIVE))
}

/// The description in a file.
fn read_spec(path: &str) -> Outcome<String> {
    let read = |stream: &mut dyn Read| {
        let mut text = String::new();
        stream.take(SPEC_BYTES_MAX as u64 + 1).read_to_string(&mut text).map(|_| text)
    };
    let text = match path {
        "-" => read(&mut std::io::stdin().lock()),
        path => std::fs::File::open(path).and_then(|mut file| read(&mut file)),
    };
    text.map_err(|error| match error.raw_os_error() {
        Some(errno) => Failure::new(errno, format!("error opening {path}")),
        None => Failure::new(EINVAL, format!("error reading {path}")).because(error),
    })
}

fn bad_spec(bad: &BadSpec) -> Failure {
    let errno = match bad {
        BadSpec::NotJson => EBADMSG,
        BadSpec::Unknown(_) => ENOSYS,
        _ => EINVAL,
    };
    Failure::errno(ERROR, errno).because(told(bad))
}

fn unreadable(why: &marcot_foreign::Error) -> Failure {
    let errno = match why.kind() {
        ErrorKind::Interrupted => {
            return Failure::new(signals::status(), format!("{ERROR}: interrupted"));
        }
        ErrorKind::Damaged => EIO,
        // As with `rbd`: a chain of backing files is refused.
        ErrorKind::Unsupported | ErrorKind::Refused => EOPNOTSUPP,
        ErrorKind::Invalid => EINVAL,
        _ => why.raw_os_error().unwrap_or(EIO),
    };
    Failure::errno(ERROR, errno).because(why)
}

struct Job<'a> {
    pool: &'a Pool,
    target: &'a Target,
    options: marcot_client::CreateOptions,
}

impl Job<'_> {
    fn run(mut self, spec: &SourceSpec, source: &OpenSource) -> Outcome {
        let failed = |error: marcot_client::Error| match error.kind() {
            marcot_client::ErrorKind::Interrupted => {
                Failure::new(signals::status(), format!("{ERROR}: interrupted"))
            }
            _ => Failure::errno(ERROR, errno::of(&error)).because(error.sentence()),
        };
        let snapshots = source.disk.snapshots();
        let first = snapshots.first().map(|first| first.size_bytes);
        self.options.size_bytes = first.unwrap_or_else(|| source.disk.size_bytes());
        let steps = Steps { piece_bytes: 1 << self.options.order, grain_bytes: GRAIN_BYTES };
        self.pool.engine().check_takes_sources().map_err(failed)?;
        let incoming = self.pool.begin_image(self.target.name(), &self.options);
        let mut incoming = incoming.map_err(failed)?;
        let name = |index| snapshot_name(snapshots, index);
        let described = (&*spec.text(), &*source.state);
        let disk = source.disk.as_ref();
        incoming.leave_to_source(disk, described, steps, &name, &mut |_| {}).map_err(
            |trouble| match trouble {
                Trouble::Disk(why) => unreadable(&why),
                Trouble::Image(error) => failed(error),
            },
        )?;
        incoming.finish().map(drop).map_err(failed)
    }
}

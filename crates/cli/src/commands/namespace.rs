//! `namespace create`, `list`, `remove`.

use marcot::ErrorKind;
use marcot_client::DEFAULT_POOL;

use super::{POOL_NAME, POOL_SPEC};
use crate::args::names::{self, Target};
use crate::args::{Args, CommandSpec, options};
use crate::errno::{EBUSY, ENOENT};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table};
use crate::session::Session;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["namespace", "create"], "Create an RBD image namespace.", create)
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE])
        .examples(&[("namespace create kubernetes/staging", "a part of a pool")]),
    CommandSpec::new(&["namespace", "list"], "List RBD image namespaces.", list)
        .aliases(&[&["namespace", "ls"]])
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, options::FORMAT])
        .examples(&[("namespace ls kubernetes", "")]),
    CommandSpec::new(&["namespace", "remove"], "Remove an RBD image namespace.", remove)
        .aliases(&[&["namespace", "rm"]])
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE])
        .examples(&[("namespace rm kubernetes/staging", "refused while it holds images")]),
];

fn named(args: &Args) -> Outcome<Target> {
    let target = names::pool_target(args)?;
    names::check_pool(&target.pool)?;
    if target.namespace.is_empty() {
        return Err(Failure::invalid("namespace name was not specified"));
    }
    Ok(target)
}

fn create(session: &Session, args: &Args) -> Outcome {
    let target = named(args)?;
    let pool = session.pool(target.pool_or_default())?;
    // The wording is rbd's, grammar included.
    pool.create_namespace(&target.namespace)
        .map_err(|error| Failure::engine("failed to created namespace", &error))
}

fn list(session: &Session, args: &Args) -> Outcome {
    let name = names::pool_word(args).unwrap_or(DEFAULT_POOL);
    names::check_pool(name)?;
    let format = args.format()?;
    let pool = session.pool(name)?;
    let namespaces = pool.namespaces()?;
    let plain = || {
        let mut table = Table::new().column("NAME", Align::Left);
        for name in &namespaces {
            table.row(vec![name.clone()]);
        }
        table.render()
    };
    let node = |name: &String| Node::Object(vec![("name", name.as_str().into())]);
    let document = || ("namespaces", Node::array("namespace", namespaces.iter().map(node)));
    format.print(plain, document)
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let target = named(args)?;
    let pool = session.pool(target.pool_or_default())?;
    pool.remove_namespace(&target.namespace).map_err(|error| match error.kind() {
        ErrorKind::NotEmpty | ErrorKind::Busy => {
            Failure::new(EBUSY, "namespace contains images which must be deleted first.")
        }
        ErrorKind::NotFound => Failure::new(ENOENT, "namespace does not exist."),
        _ => Failure::engine("failed to remove namespace", &error),
    })
}

//! `config global`, `config pool` and `config image`: `get`, `list`, `remove`, `set`.
//!
//! Keys, defaults and sources are RBD's. Most keys tune RBD's client, and have no effect here.

use std::collections::BTreeMap;

use marcot::ErrorKind;
use marcot_client::configuration::{self, ConfigKey, METADATA_PREFIX, Scope};

use super::image_meta::image_and;
use super::{IMAGE_SPEC, POOL_NAME};
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Positional, options};
use crate::errno::{self, ENOENT};
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{Align, Node, Table, line, out};
use crate::session::{self, Session};

const ENTITY: Positional =
    Positional::one("config-entity", "config entity (global, client, client.<id>)");
const KEY: Positional = Positional::one("key", "config key");
const VALUE: Positional = Positional::one("value", "config value");

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(
        &["config", "global", "get"],
        "Get a global-level configuration override.",
        global_get,
    )
    .positionals(&[ENTITY, KEY])
    .examples(&[("config global get client rbd_cache", "")]),
    CommandSpec::new(
        &["config", "global", "list"],
        "List global-level configuration overrides.",
        global_list,
    )
    .aliases(&[&["config", "global", "ls"]])
    .positionals(&[ENTITY])
    .options(&[options::FORMAT])
    .examples(&[("config global ls global", "what is set for all pools")]),
    CommandSpec::new(
        &["config", "global", "remove"],
        "Remove a global-level configuration override.",
        global_remove,
    )
    .aliases(&[&["config", "global", "rm"]])
    .positionals(&[ENTITY, KEY])
    .examples(&[("config global rm client rbd_cache", "")]),
    CommandSpec::new(
        &["config", "global", "set"],
        "Set a global-level configuration override.",
        global_set,
    )
    .positionals(&[ENTITY, KEY, VALUE])
    .examples(&[("config global set client rbd_cache false", "kept, without effect here")]),
    CommandSpec::new(
        &["config", "image", "get"],
        "Get an image-level configuration override.",
        image_get,
    )
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[options::IMAGE])
    .examples(&[("config image get vm-1 rbd_qos_iops_limit", "")]),
    CommandSpec::new(
        &["config", "image", "list"],
        "List image-level configuration overrides.",
        image_list,
    )
    .aliases(&[&["config", "image", "ls"]])
    .positionals(&[IMAGE_SPEC])
    .options(&[options::IMAGE, options::FORMAT])
    .examples(&[("config image ls vm-1", "all keys, their values, and where these are set")]),
    CommandSpec::new(
        &["config", "image", "remove"],
        "Remove an image-level configuration override.",
        image_remove,
    )
    .aliases(&[&["config", "image", "rm"]])
    .positionals(&[IMAGE_SPEC, KEY])
    .options(&[options::IMAGE])
    .examples(&[("config image rm vm-1 rbd_qos_iops_limit", "")]),
    CommandSpec::new(
        &["config", "image", "set"],
        "Set an image-level configuration override.",
        image_set,
    )
    .positionals(&[IMAGE_SPEC, KEY, VALUE])
    .options(&[options::IMAGE])
    .examples(&[("config image set vm-1 rbd_qos_iops_limit 500", "kept, without effect yet")]),
    CommandSpec::new(
        &["config", "pool", "get"],
        "Get a pool-level configuration override.",
        pool_get,
    )
    .positionals(&[POOL_NAME, KEY])
    .examples(&[("config pool get rbd rbd_default_features", "")]),
    CommandSpec::new(
        &["config", "pool", "list"],
        "List pool-level configuration overrides.",
        pool_list,
    )
    .aliases(&[&["config", "pool", "ls"]])
    .positionals(&[POOL_NAME])
    .options(&[options::FORMAT])
    .examples(&[("config pool ls rbd", "all keys, their values, and where these are set")]),
    CommandSpec::new(
        &["config", "pool", "remove"],
        "Remove a pool-level configuration override.",
        pool_remove,
    )
    .aliases(&[&["config", "pool", "rm"]])
    .positionals(&[POOL_NAME, KEY])
    .examples(&[("config pool rm rbd rbd_cache", "")]),
    CommandSpec::new(
        &["config", "pool", "set"],
        "Set a pool-level configuration override.",
        pool_set,
    )
    .positionals(&[POOL_NAME, KEY, VALUE])
    .examples(&[("config pool set rbd rbd_cache false", "kept, without effect here")]),
];

/// The entity whose configuration a command without `--id` uses.
const DEFAULT_ID: &str = "admin";

fn required<'a>(args: &'a Args, index: usize, what: &str) -> Outcome<&'a str> {
    let missing = || Failure::invalid(format!("{what} was not specified"));
    args.positional(index).ok_or_else(missing)
}

/// The key with a name, whatever it can be set for.
fn known(name: &str) -> Outcome<&'static ConfigKey> {
    if !name.starts_with("rbd_") {
        return Err(Failure::invalid(format!("not rbd option: {name}")));
    }
    ConfigKey::named(name).ok_or_else(|| Failure::invalid(format!("invalid config key: {name}")))
}

fn not_set(key: &str) -> Failure {
    Failure::new(ENOENT, format!("{key} is not set"))
}

fn failed(what: &str, key: &str, error: &marcot::Error) -> Failure {
    let status = errno::of(error);
    let failure =
        Failure::new(status, format!("failed to {what} {key}: ({status}) {}", strerror(status)));
    match error.kind() {
        ErrorKind::NotFound => failure,
        _ => failure.because(error.sentence()),
    }
}

fn entity(args: &Args) -> Outcome<&str> {
    let entity = args.positional(0).unwrap_or_default();
    if configuration::is_entity(entity) {
        return Ok(entity);
    }
    let form = "(must be global, client or client.<id>)";
    Err(Failure::invalid(format!("invalid config entity: {entity} {form}")))
}

fn global_get(session: &Session, args: &Args) -> Outcome {
    let entity = entity(args)?;
    let name = required(args, 1, "config key")?;
    known(name)?;
    let entries = session.client()?.configuration()?;
    let found = entries.iter().find(|e| e.entity == entity && e.key == name);
    out(&line(&found.ok_or_else(|| not_set(name))?.value))
}

/// The entities whose configuration holds for `entity`, the most special one last.
fn above(entity: &str) -> Vec<&str> {
    match entity {
        configuration::EVERYBODY => vec![entity],
        configuration::CLIENTS => vec![configuration::EVERYBODY, entity],
        entity => vec![configuration::EVERYBODY, configuration::CLIENTS, entity],
    }
}

/// By key: the value that holds for `entity`, and the entity that it is set for.
fn holding(session: &Session, entity: &str) -> Outcome<BTreeMap<String, (String, String)>> {
    let entries = session.client()?.configuration()?;
    let mut holding = BTreeMap::new();
    for level in above(entity) {
        for entry in entries.iter().filter(|entry| entry.entity == level) {
            let value = (entry.value.clone(), entry.entity.clone());
            holding.insert(entry.key.clone(), value);
        }
    }
    Ok(holding)
}

fn global_list(session: &Session, args: &Args) -> Outcome {
    let entity = entity(args)?;
    let format = args.format()?;
    let rows: Vec<_> = holding(session, entity)?
        .into_iter()
        .map(|(name, (value, section))| [name, value, section])
        .collect();
    format.print(|| table("Section", &rows), || document("section", &rows))
}

fn global_remove(session: &Session, args: &Args) -> Outcome {
    let entity = entity(args)?;
    let name = required(args, 1, "config key")?;
    known(name)?;
    Ok(session.client()?.configure(entity, name, None)?)
}

fn global_set(session: &Session, args: &Args) -> Outcome {
    let entity = entity(args)?;
    let name = required(args, 1, "config key")?;
    let key = known(name)?;
    let value = args.positional(2).unwrap_or_default();
    let refused =
        |why| Failure::invalid(format!("error setting {name}: error parsing value: {why}"));
    key.kind.normal(value).map_err(refused)?;
    Ok(session.client()?.configure(entity, name, Some(value))?)
}

fn pool_get(session: &Session, args: &Args) -> Outcome {
    let (pool, name) = (required(args, 0, "pool name")?, required(args, 1, "config key")?);
    known(name)?;
    let values = session.pool(pool)?.configuration()?;
    let found = values.iter().find(|(key, _)| key == name);
    out(&line(&found.ok_or_else(|| not_set(name))?.1))
}

fn pool_remove(session: &Session, args: &Args) -> Outcome {
    let (pool, name) = (required(args, 0, "pool name")?, required(args, 1, "config key")?);
    known(name)?;
    let pool = session.pool(pool)?;
    pool.configure(name, None).map_err(|error| failed("remove", name, &error))
}

fn pool_set(session: &Session, args: &Args) -> Outcome {
    let (pool, name) = (required(args, 0, "pool name")?, required(args, 1, "config key")?);
    known(name)?;
    // As with RBD, a missing value is refused like an empty one.
    let value = args.positional(2).unwrap_or_default();
    let pool = session.pool(pool)?;
    pool.configure(name, Some(value)).map_err(|error| failed("set", name, &error))
}

/// Values by key, and where each is set.
type Overrides = Vec<(String, String, &'static str)>;

/// Rows of all keys of a scope: the last of `overrides` counts, then the configuration for all pools and the
/// command line, then the default.
fn rows(
    session: &Session,
    args: &Args,
    scope: Scope,
    overrides: &Overrides,
) -> Outcome<Vec<[String; 3]>> {
    let id = args.text("id").unwrap_or(DEFAULT_ID);
    let global = holding(session, &format!("{}.{id}", configuration::CLIENTS))?;
    let row = |key: &ConfigKey| {
        let name = key.name();
        if let Some((_, value, source)) = overrides.iter().rev().find(|(key, ..)| *key == name) {
            return [name, value.clone(), (*source).to_string()];
        }
        let given = args.config(&name).and_then(|value| key.kind.normal(value).ok());
        let set = global.get(&name).map(|(value, _)| value.clone());
        let value = given.or(set).unwrap_or_else(|| key.default.to_string());
        [name, value, "config".to_string()]
    };
    Ok(ConfigKey::all(scope).map(row).collect())
}

fn of_pool(pool: &marcot_client::Pool) -> Outcome<Overrides> {
    let values = pool.configuration()?;
    Ok(values.into_iter().map(|(key, value)| (key, value, "pool")).collect())
}

fn pool_list(session: &Session, args: &Args) -> Outcome {
    let name = required(args, 0, "pool name")?;
    let format = args.format()?;
    let pool = session.pool(name)?;
    let rows = rows(session, args, Scope::Pool, &of_pool(&pool)?)?;
    format.print(|| table("Source", &rows), || document("source", &rows))
}

fn image_get(session: &Session, args: &Args) -> Outcome {
    let (target, [name]) = image_and(args, ["config key"])?;
    known(name)?;
    let image = session.find(&target)?;
    let metadata = session::info(&image)?.metadata;
    let wanted = format!("{METADATA_PREFIX}{name}");
    let found = metadata.iter().find(|(key, _)| *key == wanted);
    out(&line(&found.ok_or_else(|| not_set(name))?.1))
}

fn image_list(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let format = args.format()?;
    let image = session.find(&target)?;
    let mut overrides = of_pool(image.pool())?;
    for (key, value) in session::info(&image)?.metadata {
        if let Some(name) = key.strip_prefix(METADATA_PREFIX) {
            overrides.push((name.to_string(), value, "image"));
        }
    }
    let rows = rows(session, args, Scope::Image, &overrides)?;
    let plain = || format!("There are {} values:\n", rows.len()) + &table("Source", &rows);
    format.print(plain, || document("source", &rows))
}

fn image_remove(session: &Session, args: &Args) -> Outcome {
    let (target, [name]) = image_and(args, ["config key"])?;
    known(name)?;
    let image = session.find(&target)?;
    image.configure(name, None).map_err(|error| failed("remove", name, &error))
}

fn image_set(session: &Session, args: &Args) -> Outcome {
    let (target, [name, value]) = image_and(args, ["config key", "image config value"])?;
    known(name)?;
    let image = session.find(&target)?;
    image.configure(name, Some(value)).map_err(|error| failed("set", name, &error))
}

fn table(last: &'static str, rows: &[[String; 3]]) -> String {
    let columns = Table::new().column("Name", Align::Left).column("Value", Align::Left);
    let mut table = columns.column(last, Align::Left);
    for row in rows {
        table.row(row.to_vec());
    }
    table.render()
}

fn document(last: &'static str, rows: &[[String; 3]]) -> (&'static str, Node) {
    let node = |[name, value, origin]: &[String; 3]| {
        let (name, value) = (name.as_str().into(), value.as_str().into());
        Node::Object(vec![("name", name), ("value", value), (last, origin.as_str().into())])
    };
    ("config", Node::array("option", rows.iter().map(node)))
}

//! `tail ls`, `export`, `rm`: writes that this host has acknowledged for an image with `--flush local`, and that are no
//! part of it, because another host took the image over before they were uploaded.

use marcot::TailInfo;
use marcot_client::Pool;
use marcot_client::stream::export::Trouble;

use super::POOL_NAME;
use super::difference::not_exported;
use super::files::path_argument;
use super::sink::Sink;
use crate::args::{Args, CommandSpec, Positional, options};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table};
use crate::session::Session;
use crate::signals;
use crate::{size, time};

const TAIL_ID: Positional = Positional::one("tail-id", "what 'tail ls' calls it");

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["tail", "list"], "List writes that were put aside on this host.", list)
        .own()
        .aliases(&[&["tail", "ls"]])
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, options::FORMAT])
        .examples(&[(
            "tail ls gold",
            "acknowledged here with '--flush local', before another host took the image over",
        )]),
    CommandSpec::new(&["tail", "export"], "Export writes that were put aside as a diff.", export)
        .own()
        .positionals(&[
            POOL_NAME,
            TAIL_ID,
            Positional::one("path-name", "export file (or '-' for stdout)"),
        ])
        .options(&[options::ONE_POOL])
        .examples(&[(
            "tail export gold 00000000000004d2.0000000000000003 tail.diff",
            "'import-diff' it into a clone, to see what the guest had written",
        )]),
    CommandSpec::new(&["tail", "remove"], "Remove writes that were put aside.", remove)
        .own()
        .aliases(&[&["tail", "rm"]])
        .positionals(&[POOL_NAME, TAIL_ID])
        .options(&[options::ONE_POOL])
        .examples(&[("tail rm gold 00000000000004d2.0000000000000003", "they are lost then")]),
];

/// The pool, and the arguments behind it.
fn pool(session: &Session, args: &Args) -> Outcome<(Pool, usize)> {
    let (name, cursor) = match args.text("pool").filter(|name| !name.is_empty()) {
        Some(name) => (name, 0),
        None => (args.positional(0).unwrap_or_default(), 1),
    };
    if name.is_empty() {
        return Err(Failure::invalid("pool name was not specified"));
    }
    let pool = session.client()?.pool(name);
    let pool =
        pool.map_err(|error| Failure::engine(format!("error opening pool '{name}'"), &error))?;
    Ok((pool, cursor))
}

fn tail_id(args: &Args, cursor: usize) -> Outcome<&str> {
    let id = args.positional(cursor).filter(|id| !id.is_empty());
    id.ok_or_else(|| Failure::invalid("tail id was not specified"))
}

fn list(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let (pool, _) = pool(session, args)?;
    let tails = pool.tails().map_err(|error| Failure::engine("listing failed", &error))?;
    format.print(|| plain(&tails), || ("tails", Node::array("tail", tails.iter().map(node))))
}

fn plain(tails: &[TailInfo]) -> String {
    let columns = Table::new().column("ID", Align::Left).column("IMAGE", Align::Left);
    let columns = columns.column("SIZE", Align::Left).column("PUT ASIDE", Align::Left);
    let mut table = columns;
    for tail in tails {
        let image = tail.image_name.clone().unwrap_or_else(|| "(removed)".to_owned());
        let (bytes, since) = (size::show(tail.bytes), time::ctime(tail.since_s));
        table.row(vec![tail.name.clone(), image, bytes, since]);
    }
    if tails.is_empty() { String::new() } else { table.render() }
}

fn node(tail: &TailInfo) -> Node {
    let mut members = vec![("id", tail.name.as_str().into())];
    members.push(("image_id", tail.image.to_string().into()));
    members.extend(tail.image_name.as_deref().map(|name| ("image", name.into())));
    members.push(("size", tail.bytes.into()));
    members.push(("put_aside_at", time::ctime(tail.since_s).into()));
    Node::Object(members)
}

fn export(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "export error";
    let (pool, cursor) = pool(session, args)?;
    let id = tail_id(args, cursor)?;
    let path = path_argument(args, &mut (cursor + 1))?;
    let tail = pool.tail(id).map_err(|error| Failure::engine(ERROR, &error))?;
    signals::catch_and_watch();
    let mut sink = Sink::open(&path, ERROR)?;
    let exported = pool.export_tail(&tail, &mut |bytes| sink.append(bytes));
    let finished = exported.and_then(|()| sink.finish_stream().map_err(Trouble::Sink));
    finished.map_err(|trouble| not_exported(ERROR, trouble))
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let (pool, cursor) = pool(session, args)?;
    let id = tail_id(args, cursor)?;
    pool.remove_tail(id).map_err(|error| Failure::engine("removing failed", &error))
}

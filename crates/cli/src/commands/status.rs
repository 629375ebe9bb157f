//! `status`: who has an image open.

use marcot_client::inspect::Watcher;

use super::IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, options};
use crate::failure::Outcome;
use crate::output::{Node, line};
use crate::session::{Session, opening_failed};

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["status"], "Show the status of this image.", status)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::FORMAT])
        .examples(&[("status vm-1", "the process that has the image open, and what for")])];

fn status(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let image = session.find(&target)?;
    let watchers = image.status().map_err(|error| opening_failed(&image, &error))?;
    format.print(|| plain(&watchers), || ("status", document(&watchers)))
}

/// Stands in the place of a network address, since the watcher is on this host.
fn address(watcher: &Watcher) -> String {
    format!("127.0.0.1:0/{}", watcher.pid)
}

fn plain(watchers: &[Watcher]) -> String {
    if watchers.is_empty() {
        return "Watchers: none\n".to_string();
    }
    let mut text = "Watchers:\n".to_string();
    for watcher in watchers {
        let (address, pid) = (address(watcher), watcher.pid);
        let usage = match watcher.usage.as_str() {
            "" => String::new(),
            usage => format!(" ({usage})"),
        };
        let watcher = format!("watcher={address} client.{pid} cookie={pid}{usage}");
        text.push_str(&format!("\t{}", line(&watcher)));
    }
    text
}

fn document(watchers: &[Watcher]) -> Node {
    let node = |watcher: &Watcher| {
        let pid = u64::from(watcher.pid);
        let mut members: Vec<(&'static str, Node)> = vec![
            ("address", address(watcher).into()),
            ("client", pid.into()),
            ("cookie", pid.into()),
        ];
        if !watcher.usage.is_empty() {
            members.push(("usage", watcher.usage.as_str().into()));
        }
        Node::Object(members)
    };
    Node::Object(vec![("watchers", Node::array("watcher", watchers.iter().map(node)))])
}

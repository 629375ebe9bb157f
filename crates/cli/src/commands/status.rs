//! `status`: who has an image open.

use marcot::{ImageInfo, MigratingImage, MigrationState, OwnerInfo, OwnerState};
use marcot_client::inspect::Watcher;
use marcot_client::source_spec::SourceSpec;
use marcot_client::{Image, spec};

use super::IMAGE_SPEC;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, options};
use crate::failure::Outcome;
use crate::output::{Node, line};
use crate::session::{self, Session, opening_failed};
use crate::time;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] =
    &[CommandSpec::new(&["status"], "Show the status of this image.", status)
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::FORMAT])
        .examples(&[("status vm-1", "the process that has the image open, and what for")])];

fn status(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let format = args.format()?;
    let image = session.find(&target)?;
    let watchers = image.status().map_err(|error| opening_failed(&image, &error))?;
    let info = session::info(&image)?;
    let migration = Moving::of(&image, &info);
    let owner = info.owner.filter(|owner| owner.state != OwnerState::Closed);
    let watchers: Vec<Shown<'_>> = match &owner {
        Some(owner) if owner.state == OwnerState::Elsewhere => vec![Shown::elsewhere(owner)],
        _ => watchers.iter().map(Shown::here).collect(),
    };
    let owner = owner.as_ref();
    format.print(
        || plain(&watchers, owner) + &migration.as_ref().map_or_else(String::new, Moving::plain),
        || ("status", document(&watchers, owner, migration.as_ref())),
    )
}

/// The migration that an image is in.
struct Moving {
    source: MigratingImage,
    /// How the source is opened, where it lies outside the store; without the queries of URLs.
    source_spec: Option<String>,
    dest: MigratingImage,
    state: &'static str,
}

impl Moving {
    fn of(image: &Image, info: &ImageInfo) -> Option<Self> {
        let migration = info.migration.as_ref()?;
        let own = MigratingImage {
            pool: image.pool().name().to_string(),
            pool_id: image.pool().id(),
            namespace: info.namespace.clone(),
            image: info.name.clone(),
            image_id: info.id,
        };
        let other = migration.other.clone();
        let (source, dest) = if migration.is_source { (own, other) } else { (other, own) };
        let state = match migration.state {
            MigrationState::Prepared => "prepared",
            MigrationState::Executing => "executing",
            MigrationState::Executed => "executed",
            _ => "aborting",
        };
        let source_spec = migration.source_spec.as_deref().map(SourceSpec::shown);
        Some(Self { source, source_spec, dest, state })
    }

    fn plain(&self) -> String {
        let show = |image: &MigratingImage| {
            let place = spec::show(&image.pool, &image.namespace, &image.image, "");
            format!("{place} ({})", image.image_id)
        };
        let lines = [
            ("source", self.source_spec.clone().unwrap_or_else(|| show(&self.source))),
            ("destination", show(&self.dest)),
            ("state", self.state.to_string()),
        ];
        let lines = lines.map(|(name, value)| format!("\t{}", line(&format!("{name}: {value}"))));
        format!("Migration:\n{}", lines.concat())
    }

    fn node(&self) -> Node {
        let text = |text: &dyn ToString| Node::from(text.to_string());
        let Self { source, source_spec, dest, state } = self;
        let mut members = match source_spec {
            Some(spec) => vec![("source_spec", text(spec))],
            None => vec![
                ("source_pool_name", text(&source.pool)),
                ("source_pool_namespace", text(&source.namespace)),
                ("source_image_name", text(&source.image)),
                ("source_image_id", text(&source.image_id)),
            ],
        };
        members.extend([
            ("dest_pool_name", text(&dest.pool)),
            ("dest_pool_namespace", text(&dest.namespace)),
            ("dest_image_name", text(&dest.image)),
            ("dest_image_id", text(&dest.image_id)),
            ("state", text(state)),
            ("state_description", text(&"")),
        ]);
        Node::Object(members)
    }
}

/// A process that has the image open.
struct Shown<'a> {
    host: &'a str,
    pid: u32,
    usage: &'a str,
}

impl<'a> Shown<'a> {
    fn here(watcher: &'a Watcher) -> Self {
        Self { host: "127.0.0.1", pid: watcher.pid, usage: &watcher.usage }
    }

    fn elsewhere(owner: &'a OwnerInfo) -> Self {
        Self { host: &owner.host, pid: owner.process_id, usage: "" }
    }

    /// Stands in the place of a network address.
    fn address(&self) -> String {
        format!("{}:0/{}", self.host, self.pid)
    }
}

/// Who has an image in a bucket open, for `status` and `info`.
pub fn show_owner(owner: &OwnerInfo) -> String {
    let state = match owner.state {
        OwnerState::Elsewhere => {
            "; if that host is gone for good, 'device map --force' takes the image over"
        }
        OwnerState::Ended => {
            "; it has ended without closing the image, and the next owner goes on with its log"
        }
        _ => "",
    };
    let since = time::ctime(owner.since_s);
    format!("host {}, process {}, since {since}{state}", owner.host, owner.process_id)
}

/// The same as a document.
pub fn owner_node(owner: &OwnerInfo) -> Node {
    let state = match owner.state {
        OwnerState::Here => "here",
        OwnerState::Elsewhere => "elsewhere",
        OwnerState::Ended => "ended",
        _ => "closed",
    };
    Node::Object(vec![
        ("host", owner.host.as_str().into()),
        ("pid", u64::from(owner.process_id).into()),
        ("since", time::ctime(owner.since_s).into()),
        ("state", state.into()),
    ])
}

fn plain(watchers: &[Shown<'_>], owner: Option<&OwnerInfo>) -> String {
    let mut text = match watchers.is_empty() {
        true => "Watchers: none\n".to_string(),
        false => "Watchers:\n".to_string(),
    };
    for watcher in watchers {
        let (address, pid) = (watcher.address(), watcher.pid);
        let usage = match watcher.usage {
            "" => String::new(),
            usage => format!(" ({usage})"),
        };
        let watcher = format!("watcher={address} client.{pid} cookie={pid}{usage}");
        text.push_str(&format!("\t{}", line(&watcher)));
    }
    if let Some(owner) = owner {
        text.push_str(&line(&format!("Owner: {}", show_owner(owner))));
    }
    text
}

fn document(watchers: &[Shown<'_>], owner: Option<&OwnerInfo>, migration: Option<&Moving>) -> Node {
    let node = |watcher: &Shown<'_>| {
        let pid = u64::from(watcher.pid);
        let mut members: Vec<(&'static str, Node)> = vec![
            ("address", watcher.address().into()),
            ("client", pid.into()),
            ("cookie", pid.into()),
        ];
        if !watcher.usage.is_empty() {
            members.push(("usage", watcher.usage.into()));
        }
        Node::Object(members)
    };
    let mut members = vec![("watchers", Node::array("watcher", watchers.iter().map(node)))];
    members.extend(owner.map(|owner| ("owner", owner_node(owner))));
    members.extend(migration.map(|migration| ("migration", migration.node())));
    Node::Object(members)
}

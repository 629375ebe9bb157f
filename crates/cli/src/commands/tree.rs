//! `tree`: the families of templates, snapshots and clones.

use std::collections::{BTreeMap, HashMap, HashSet};

use marcot::{ErrorKind, ImageId, ImageInfo, OwnerState, ParentInfo, PoolId, SnapId, SnapInfo};
use marcot_client::{ImageName, ImageSpec, Namespace, Pool};

use super::list::{Unread, tell_unread};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::failure::Outcome;
use crate::output::{Align, Node, Table};
use crate::session::Session;
use crate::{size, time};

const QUICK: &[Opt] =
    &[Opt::new("quick", Kind::Flag, "leave out what has to be counted: the column USED")];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[CommandSpec::new(
    &["tree"],
    "Show which images and snapshots come from which.",
    tree,
)
.own()
.positionals(&[Positional::one("pool-name", "pool name [default: all pools]")])
.options(&[options::ONE_POOL, QUICK, options::FORMAT])
.examples(&[
    ("tree", "all families of the store, also over several pools"),
    ("tree templates", "the images of a pool, and what was cloned from them in any pool"),
])
.notes(
    "USED is what a state holds and the state before it, or its parent, does not: what a snapshot\n\
             keeps on the medium.",
)];

/// An image of the store: its pool and its number.
type Key = (PoolId, ImageId);

struct Member {
    pool: Pool,
    info: ImageInfo,
}

/// All images of the store, and who was cloned from what.
#[derive(Default)]
struct Families {
    members: BTreeMap<Key, Member>,
    /// By snapshot, in the order of their names.
    children: HashMap<(Key, SnapId), Vec<Key>>,
    unread: Unread,
}

/// A line of the tree.
struct Row {
    /// Whether the line of each depth goes on below this row; the last one is the row's own.
    rails: Vec<bool>,
    name: String,
    member: Key,
    snap: Option<SnapId>,
}

/// What is still to be shown. A stack and no recursion: chains may have any length.
enum Next {
    Image(Key),
    Snapshot(Key, SnapId),
}

fn tree(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let named = args.positionals().first().cloned().or_else(|| args.text("pool").map(String::from));
    let only = named.as_deref().map(|name| session.pool(name)).transpose()?;
    let families = Families::read(session)?;
    let rows = families.rows(only.as_ref().map(Pool::id));
    let mut facts = Facts::default();
    for key in rows.iter().map(|row| row.member) {
        facts.note(&families, key, args.flag("quick"));
    }
    format.print(
        || plain(&families, &rows, &facts, args.flag("quick")),
        || ("tree", document(&families, &rows, &facts)),
    )?;
    tell_unread(session, families.unread)
}

impl Families {
    fn read(session: &Session) -> Outcome<Self> {
        let mut families = Self::default();
        let client = session.client()?;
        for name in client.pools()? {
            let pool = session.pool(&name)?;
            let mut namespaces = vec![Namespace::DEFAULT];
            namespaces.extend(pool.namespaces()?.into_iter().map(Namespace::named));
            for namespace in namespaces {
                families.read_namespace(&pool, &namespace)?;
            }
        }
        let Self { members, children, .. } = &mut families;
        for (key, member) in &*members {
            if let Some(parent) = &member.info.parent {
                children.entry((key_of(parent), parent.snap_id)).or_default().push(*key);
            }
        }
        for keys in children.values_mut() {
            keys.sort_by_key(|key| members.get(key).map(|member| member.label()));
        }
        Ok(families)
    }

    fn read_namespace(&mut self, pool: &Pool, namespace: &Namespace) -> Outcome {
        let mut reader = pool.info_reader();
        for (name, id) in pool.images(namespace)? {
            match reader.info_of(&name, id) {
                Ok(info) => {
                    self.members.insert((pool.id(), id), Member { pool: pool.clone(), info });
                }
                // Removed since the names were read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.unread.push((format!("{}/{name}", pool.name()), error.into())),
            }
        }
        Ok(())
    }

    /// The lines, in order. `only`: the pool whose images begin a tree.
    fn rows(&self, only: Option<PoolId>) -> Vec<Row> {
        let is_root = |key: &Key, member: &Member| {
            let parent = member.info.parent.as_ref().map(key_of);
            let shown = |parent: &Key| {
                self.members.contains_key(parent) && only.is_none_or(|pool| parent.0 == pool)
            };
            only.is_none_or(|pool| key.0 == pool) && !parent.as_ref().is_some_and(shown)
        };
        let mut roots: Vec<Key> = self
            .members
            .iter()
            .filter(|(key, member)| is_root(key, member))
            .map(|(key, _)| *key)
            .collect();
        roots.sort_by_key(|key| self.members.get(key).map(Member::label));
        let mut rows = Vec::new();
        // What others have written may lead in circles. Each image is shown once.
        let mut seen = HashSet::new();
        for root in roots {
            self.add(root, &mut seen, &mut rows);
        }
        rows
    }

    fn add(&self, root: Key, seen: &mut HashSet<Key>, rows: &mut Vec<Row>) {
        let mut stack = vec![(Next::Image(root), Vec::new())];
        while let Some((next, rails)) = stack.pop() {
            let (key, snap) = match next {
                Next::Image(key) => (key, None),
                Next::Snapshot(key, snap) => (key, Some(snap)),
            };
            let Some(member) = self.members.get(&key) else { continue };
            if snap.is_none() && !seen.insert(key) {
                continue;
            }
            let below: Vec<Next> = match snap {
                None => {
                    self.shown_snapshots(key, member).map(|s| Next::Snapshot(key, s.id)).collect()
                }
                Some(snap) => {
                    let children = self.children.get(&(key, snap)).into_iter().flatten();
                    children.map(|child| Next::Image(*child)).collect()
                }
            };
            let count = below.len();
            for (at, next) in below.into_iter().enumerate().rev() {
                let mut rails: Vec<bool> = rails.clone();
                rails.push(at + 1 < count);
                stack.push((next, rails));
            }
            let name = match snap.and_then(|snap| member.snapshot(snap)) {
                None => member.label(),
                Some(snapshot) if snapshot.trashed => {
                    format!("@{} (removed)", snapshot.original_name)
                }
                Some(snapshot) => format!("@{}", snapshot.name),
            };
            rows.push(Row { rails, name, member: key, snap });
        }
    }

    /// The snapshots that users know, and those that children still need.
    fn shown_snapshots<'a>(
        &'a self,
        key: Key,
        member: &'a Member,
    ) -> impl Iterator<Item = &'a SnapInfo> {
        let needed = move |snap: &&SnapInfo| {
            snap.is_of_users() || self.children.contains_key(&(key, snap.id))
        };
        member.info.snapshots.iter().filter(needed)
    }
}

fn key_of(parent: &ParentInfo) -> Key {
    (parent.pool_id, parent.image_id)
}

impl Member {
    fn label(&self) -> String {
        let spec = ImageSpec::new(self.pool.name(), &*self.info.name);
        spec.in_namespace(&self.info.namespace).to_string()
    }

    fn snapshot(&self, id: SnapId) -> Option<&SnapInfo> {
        self.info.snapshots.iter().find(|snap| snap.id == id)
    }

    fn image(&self) -> marcot_client::Image {
        let name = ImageName::new(&*self.info.name).in_namespace(self.info.namespace.clone());
        self.pool.known_image(name, self.info.id)
    }

    /// Who has it open.
    fn opened_by(&self) -> Option<String> {
        if let Some(owner) = &self.info.owner
            && owner.state == OwnerState::Elsewhere
        {
            return Some(format!("host {}, process {}", owner.host, owner.process_id));
        }
        let pid = self.info.owned_by?;
        let watchers = self.image().status().unwrap_or_default();
        let usage = watchers.into_iter().find(|watcher| watcher.pid == pid);
        let usage = usage.map(|watcher| watcher.usage).filter(|usage| !usage.is_empty());
        Some(usage.map_or(format!("process {pid}"), |usage| format!("process {pid}: {usage}")))
    }
}

/// What is found out of each image.
#[derive(Default)]
struct Facts {
    opened_by: HashMap<Key, Option<String>>,
    /// Bytes by image and snapshot; none where they could not be counted.
    used: HashMap<(Key, Option<SnapId>), u64>,
}

impl Facts {
    fn note(&mut self, families: &Families, key: Key, quick: bool) {
        let Some(member) = families.members.get(&key) else { return };
        if self.opened_by.contains_key(&key) {
            return;
        }
        self.opened_by.insert(key, member.opened_by());
        if quick {
            return;
        }
        for row in member.image().usage().unwrap_or_default() {
            let snap = row.snapshot.map(|_| row.snapshot_id);
            self.used.insert((key, snap), row.used_bytes);
        }
    }

    fn used_bytes(&self, row: &Row) -> Option<u64> {
        self.used.get(&(row.member, row.snap)).copied()
    }

    fn opened_by(&self, row: &Row) -> Option<&str> {
        self.opened_by.get(&row.member)?.as_deref().filter(|_| row.snap.is_none())
    }
}

/// What the lines say of a row.
struct Shown<'a> {
    size_bytes: u64,
    created_s: i64,
    protected: bool,
    /// The parent of an image that begins a tree.
    parent: Option<&'a ParentInfo>,
}

impl<'a> Shown<'a> {
    fn of(families: &'a Families, row: &Row) -> Option<Self> {
        let member = families.members.get(&row.member)?;
        let info = &member.info;
        Some(match row.snap.and_then(|id| member.snapshot(id)) {
            None => Self {
                size_bytes: info.size_bytes,
                created_s: info.created_s,
                protected: false,
                parent: info.parent.as_ref().filter(|_| row.rails.is_empty()),
            },
            Some(snap) => Self {
                size_bytes: snap.size_bytes,
                created_s: snap.created_s,
                protected: snap.protected,
                parent: None,
            },
        })
    }
}

/// The branches before a name.
fn branches(rails: &[bool]) -> String {
    let Some((last, before)) = rails.split_last() else { return String::new() };
    let mut text: String = before.iter().map(|on| if *on { "│  " } else { "   " }).collect();
    text.push_str(if *last { "├─ " } else { "└─ " });
    text
}

/// A time span in one unit, as people say it.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86_400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

fn plain(families: &Families, rows: &[Row], facts: &Facts, quick: bool) -> String {
    let now_s = time::now_s();
    let table = Table::new().by_characters();
    let mut table = table.column("NAME", Align::Left).column("SIZE", Align::Right);
    if !quick {
        table = table.column("USED", Align::Right);
    }
    let mut table = table.column("AGE", Align::Right).column("NOTES", Align::Left);
    for row in rows {
        let Some(shown) = Shown::of(families, row) else { continue };
        let mut notes = Vec::new();
        if shown.protected {
            notes.push("protected".to_owned());
        }
        if let Some(parent) = shown.parent {
            notes.push(format!("parent {}", super::list::show_parent(parent)));
        }
        notes.extend(facts.opened_by(row).map(|by| format!("open by {by}")));
        let mut cells =
            vec![format!("{}{}", branches(&row.rails), row.name), size::show(shown.size_bytes)];
        if !quick {
            cells.push(facts.used_bytes(row).map_or("?".to_owned(), size::show));
        }
        cells.extend([age(now_s - shown.created_s), notes.join(", ")]);
        table.row(cells);
    }
    table.render()
}

fn document(families: &Families, rows: &[Row], facts: &Facts) -> Node {
    Node::array(
        "row",
        rows.iter().filter_map(|row| {
            let (shown, member) = (Shown::of(families, row)?, families.members.get(&row.member)?);
            let mut node: Vec<(&'static str, Node)> = vec![
                ("depth", (row.rails.len() as u64).into()),
                ("pool", member.pool.name().into()),
                ("namespace", member.info.namespace.to_string().into()),
                ("image", member.info.name.as_str().into()),
                ("id", member.info.id.to_string().into()),
            ];
            if let Some(snap) = row.snap.and_then(|id| member.snapshot(id)) {
                let name = if snap.trashed { &snap.original_name } else { &snap.name };
                node.push(("snapshot", name.as_str().into()));
                node.push(("protected", Node::Bool(snap.protected)));
                node.push(("removed", Node::Bool(snap.trashed)));
            } else if let Some(parent) = &member.info.parent {
                node.push(("parent", super::list::show_parent(parent).into()));
            }
            node.push(("size", shown.size_bytes.into()));
            node.extend(facts.used_bytes(row).map(|bytes| ("used", Node::from(bytes))));
            node.push(("created_s", u64::try_from(shown.created_s).unwrap_or_default().into()));
            node.extend(facts.opened_by(row).map(|by| ("opened_by", Node::from(by))));
            Some(Node::Object(node))
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_join_what_belongs_together() {
        assert_eq!(branches(&[]), "");
        assert_eq!(branches(&[true]), "├─ ");
        assert_eq!(branches(&[false]), "└─ ");
        assert_eq!(branches(&[true, false, false]), "│     └─ ");
    }

    #[test]
    fn an_age_is_told_in_one_unit() {
        let spans = [-5, 0, 59, 60, 3599, 3600, 86_399, 86_400, 400 * 86_400].map(age);
        assert_eq!(spans, ["0s", "0s", "59s", "1m", "59m", "1h", "23h", "1d", "400d"]);
    }
}

//! `ceph osd pool`: the store's pools, in the words of a cluster. A pool here keeps one copy of its data and has
//! no placement groups, so those settings are accepted and change nothing.

use marcot::{ErrorKind, PoolOptions};

use super::ceph_output::{self, End, FORMAT};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional};
use crate::errno::{self, EBUSY, EEXIST, EINVAL, ENOENT, EOPNOTSUPP, EPERM};
use crate::failure::{Failure, Outcome};
use crate::output::{Node, err, line};
use crate::session::Session;

/// Placement groups that a pool says it has: Ceph's own default.
pub const PLACEMENT_GROUPS: u64 = 32;
/// Settings that are numbers or words of a cluster and have no effect here.
const SETTINGS: &[&str] = &[
    "size",
    "min_size",
    "pg_num",
    "pgp_num",
    "pg_num_min",
    "pg_num_max",
    "crush_rule",
    "nodelete",
    "nopgchange",
    "nosizechange",
    "noscrub",
    "nodeep-scrub",
    "pg_autoscale_mode",
    "target_size_bytes",
    "target_size_ratio",
    "compression_mode",
    "compression_algorithm",
    "compression_required_ratio",
    "bulk",
];

const REALLY: &[Opt] = &[
    Opt::new("yes-i-really-really-mean-it", Kind::Flag, "remove it for good"),
    Opt::new("yes-i-really-really-mean-it-not-faking", Kind::Flag, "the same"),
];
const REALLY_SET: &[Opt] = &[Opt::new("yes-i-really-mean-it", Kind::Flag, "accepted")];
const CREATION: &[Opt] = &[
    Opt::new("size", Kind::Integer, "accepted: a pool keeps one copy"),
    Opt::new("bulk", Kind::Flag, "accepted"),
];
const POOL: Positional = Positional::one("pool", "pool name");
const REST: Positional = Positional {
    name: "placement",
    help: "accepted: numbers of placement groups and the like",
    many: true,
    optional: false,
};

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["osd", "pool", "create"], "Create a pool.", create)
        .positionals(&[POOL, REST])
        .options(&[CREATION, FORMAT])
        .examples(&[("osd pool create vms 32", "the same as 'marcot pool create vms'")]),
    CommandSpec::new(&["osd", "pool", "rm"], "Remove an empty pool.", remove)
        .aliases(&[&["osd", "pool", "delete"]])
        .positionals(&[POOL, Positional::one("again", "the pool's name again")])
        .options(&[REALLY, FORMAT])
        .examples(&[(
            "osd pool rm vms vms --yes-i-really-really-mean-it",
            "refused while the pool holds images",
        )]),
    CommandSpec::new(&["osd", "pool", "ls"], "List pools.", list)
        .positionals(&[Positional::one("detail", "'detail' for numbers and settings too")])
        .options(&[FORMAT])
        .examples(&[("osd pool ls", "one name a line")]),
    CommandSpec::new(&["osd", "lspools"], "List pools with their numbers.", list_numbers)
        .options(&[FORMAT])
        .examples(&[("osd lspools", "number and name")]),
    CommandSpec::new(&["osd", "pool", "get"], "Show a setting of a pool.", get)
        .positionals(&[POOL, Positional::one("key", "setting, or 'all'")])
        .options(&[FORMAT])
        .examples(&[("osd pool get vms size", "always 1: a pool keeps one copy")]),
    CommandSpec::new(&["osd", "pool", "set"], "Accept a setting of a pool.", set)
        .positionals(&[
            POOL,
            Positional::one("key", "setting"),
            Positional::one("value", "its value"),
        ])
        .options(&[REALLY_SET, FORMAT])
        .examples(&[("osd pool set vms size 3", "accepted; a pool keeps one copy all the same")]),
    CommandSpec::new(&["osd", "pool", "rename"], "Rename a pool.", rename)
        .positionals(&[POOL, Positional::one("to", "new name")])
        .options(&[FORMAT]),
    CommandSpec::new(
        &["osd", "pool", "application", "enable"],
        "Accept the application of a pool, which is rbd.",
        enable_application,
    )
    .positionals(&[POOL, Positional::one("application", "application")])
    .options(&[REALLY_SET, FORMAT]),
    CommandSpec::new(
        &["osd", "pool", "application", "get"],
        "Show the application of a pool.",
        get_application,
    )
    .positionals(&[POOL])
    .options(&[FORMAT]),
];

/// What a pool holds.
pub struct PoolUse {
    /// Its name.
    pub name: String,
    /// A number for it, which stays the same for its life.
    pub number: u64,
    /// Images, those in the trash included.
    pub images: u64,
    /// Bytes on its medium.
    pub used_bytes: u64,
    /// Bytes free on its medium.
    pub free_bytes: u64,
}

/// The medium of all pools together.
pub struct Room {
    /// Bytes of all pools.
    pub used_bytes: u64,
    /// Bytes that are free for the pool that has most of them: several pools may share one medium.
    pub free_bytes: u64,
}

/// What every pool of the store holds, in the order of their names.
pub fn all(session: &Session) -> Outcome<Vec<PoolUse>> {
    let client = session.client()?;
    let usage = |name: String| -> Outcome<PoolUse> {
        let pool = session.pool(&name)?;
        let stats = pool.stats()?;
        Ok(PoolUse {
            name,
            number: number(pool.id().0),
            images: stats.named.images + stats.trash.images,
            used_bytes: stats.allocated_bytes,
            free_bytes: stats.free_bytes,
        })
    };
    client.pools()?.into_iter().map(usage).collect()
}

/// The medium of these pools.
pub fn room(pools: &[PoolUse]) -> Room {
    Room {
        used_bytes: pools.iter().map(|pool| pool.used_bytes).sum(),
        free_bytes: pools.iter().map(|pool| pool.free_bytes).max().unwrap_or(0),
    }
}

/// The number that stands for a pool's id. Programs that read `ceph` expect one of 31 bits that is not 0.
fn number(id: u64) -> u64 {
    (id & 0x7fff_ffff).max(1)
}

/// `Error ENAME: sentence`.
pub fn error(status: i32, sentence: impl std::fmt::Display) -> Failure {
    Failure::bare(status, format!("Error {}: {sentence}", errno::name(status)))
}

/// `Error EINVAL: invalid command` after the sentence that says why.
pub fn invalid_command(why: &str) -> Failure {
    Failure::bare(EINVAL, format!("Invalid command: {why}"))
        .then_bare("Error EINVAL: invalid command")
}

fn required<'a>(args: &'a Args, index: usize, name: &str) -> Outcome<&'a str> {
    let missing = || invalid_command(&format!("missing required parameter {name}"));
    args.positional(index).ok_or_else(missing)
}

/// The pool that a command names first; it must exist.
fn existing<'a>(session: &Session, args: &'a Args) -> Outcome<(&'a str, u64)> {
    let name = required(args, 0, "pool(<poolname>)")?;
    match session.client()?.pool(name) {
        Ok(pool) => Ok((name, number(pool.id().0))),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(error(ENOENT, format!("unrecognized pool '{name}'")))
        }
        Err(e) => Err(error(errno::of(&e), e.sentence())),
    }
}

/// A change was made.
fn done(args: &Args, text: &str) -> Outcome {
    ceph_output::print_nothing(args)?;
    tell(text)
}

fn tell(text: &str) -> Outcome {
    err(&line(text));
    Ok(())
}

fn create(session: &Session, args: &Args) -> Outcome {
    let name = required(args, 0, "pool(<poolname>)")?;
    if args.positionals().iter().any(|word| word == "erasure") {
        return Err(error(EOPNOTSUPP, "a pool here keeps one copy and has no erasure code"));
    }
    match session.client()?.create_pool(name, &PoolOptions::default()) {
        Ok(_) => done(args, &format!("pool '{name}' created")),
        Err(e) if e.kind() == ErrorKind::Exists => {
            done(args, &format!("pool '{name}' already exists"))
        }
        Err(e) => Err(error(errno::of(&e), e.sentence())),
    }
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let name = required(args, 0, "pool(<poolname>)")?;
    let client = session.client()?;
    if !client.pools()?.iter().any(|have| have == name) {
        return done(args, &format!("pool '{name}' does not exist"));
    }
    let sure = REALLY.iter().any(|option| args.flag(option.long));
    if args.positional(1) != Some(name) || !sure {
        return Err(error(
            EPERM,
            format!(
                "WARNING: this will *PERMANENTLY DESTROY* all data stored in pool {name}.  If you are *ABSOLUTELY CERTAIN* that is what you want, pass the pool name *twice*, followed by --yes-i-really-really-mean-it."
            ),
        ));
    }
    match client.remove_pool(name) {
        Ok(()) => done(args, &format!("pool '{name}' removed")),
        Err(e) if matches!(e.kind(), ErrorKind::NotEmpty | ErrorKind::Busy) => {
            Err(error(EBUSY, format!("{}; remove its images first ('rbd rm')", e.sentence())))
        }
        Err(e) => Err(error(errno::of(&e), e.sentence())),
    }
}

fn list(session: &Session, args: &Args) -> Outcome {
    match args.positional(0) {
        None => {}
        Some("detail") => return list_detail(session, args),
        Some(word) => return Err(invalid_command(&format!("{word} not in detail"))),
    }
    let names = session.client()?.pools()?;
    let plain = || names.iter().map(|name| line(name)).collect();
    let nodes = || Node::array("pool_name", names.iter().map(|name| name.as_str().into()));
    ceph_output::print(args, End::Bare, plain, || ("pools", nodes()))
}

fn numbered(session: &Session) -> Outcome<Vec<(String, u64)>> {
    let client = session.client()?;
    let numbered = |name: String| -> Outcome<(String, u64)> {
        let id = session.pool(&name)?.id().0;
        Ok((name, number(id)))
    };
    client.pools()?.into_iter().map(numbered).collect()
}

fn list_detail(session: &Session, args: &Args) -> Outcome {
    let pools = numbered(session)?;
    let plain = || {
        let row = |(name, number): &(String, u64)| {
            line(&format!(
                "pool {number} '{name}' replicated size 1 min_size 1 crush_rule 0 object_hash rjenkins pg_num {PLACEMENT_GROUPS} pgp_num {PLACEMENT_GROUPS} autoscale_mode off last_change 1 flags hashpspool,selfmanaged_snaps stripe_width 0 application rbd"
            ))
        };
        format!("{}\n", pools.iter().map(row).collect::<String>())
    };
    let node = |(name, number): &(String, u64)| {
        Node::Object(vec![
            ("pool_id", (*number).into()),
            ("pool_name", name.as_str().into()),
            ("size", Node::Number(1)),
            ("min_size", Node::Number(1)),
            ("pg_num", PLACEMENT_GROUPS.into()),
            ("pg_placement_num", PLACEMENT_GROUPS.into()),
            ("application_metadata", Node::Object(vec![("rbd", Node::Object(Vec::new()))])),
        ])
    };
    ceph_output::print(args, End::Newline, plain, || {
        ("pools", Node::array("pool", pools.iter().map(node)))
    })
}

fn list_numbers(session: &Session, args: &Args) -> Outcome {
    let pools = numbered(session)?;
    let plain = || pools.iter().map(|(name, number)| line(&format!("{number} {name}"))).collect();
    let node = |(name, number): &(String, u64)| {
        Node::Object(vec![("poolnum", (*number).into()), ("poolname", name.as_str().into())])
    };
    ceph_output::print(args, End::Newline, plain, || {
        ("pools", Node::array("pool", pools.iter().map(node)))
    })
}

/// Every setting that `osd pool get P all` shows, with its value.
fn settings() -> Vec<(&'static str, Node)> {
    let no = Node::Bool(false);
    vec![
        ("size", Node::Number(1)),
        ("min_size", Node::Number(1)),
        ("pg_num", PLACEMENT_GROUPS.into()),
        ("pgp_num", PLACEMENT_GROUPS.into()),
        ("crush_rule", "replicated_rule".into()),
        ("hashpspool", Node::Bool(true)),
        ("nodelete", no.clone()),
        ("nopgchange", no.clone()),
        ("nosizechange", no.clone()),
        ("write_fadvise_dontneed", no.clone()),
        ("noscrub", no.clone()),
        ("nodeep-scrub", no.clone()),
        ("use_gmt_hitset", Node::Bool(true)),
        ("fast_read", Node::Number(0)),
        ("pg_autoscale_mode", "off".into()),
        ("bulk", no),
    ]
}

fn get(session: &Session, args: &Args) -> Outcome {
    let (name, number) = existing(session, args)?;
    let key = required(args, 1, "var")?;
    let mut shown = settings();
    if key != "all" {
        shown.retain(|(setting, _)| *setting == key);
    }
    if shown.is_empty() && SETTINGS.contains(&key) {
        return Err(error(ENOENT, format!("option '{key}' is not set on pool '{name}'")));
    }
    if shown.is_empty() {
        return Err(invalid_command(&format!("{key} is no setting of a pool")));
    }
    // `ceph` prints this one as a number to people, and as a truth value to programs.
    let value = |key: &str, node: &Node| match key {
        "use_gmt_hitset" => "1".to_owned(),
        _ => node.to_json(false).trim_end().trim_matches('"').to_owned(),
    };
    let plain =
        || shown.iter().map(|(key, node)| line(&format!("{key}: {}", value(key, node)))).collect();
    let document = || {
        let mut members = vec![("pool", Node::from(name)), ("pool_id", number.into())];
        members.extend(shown.iter().cloned());
        ("pool", Node::Object(members))
    };
    ceph_output::print(args, End::Bare, plain, document)
}

fn set(session: &Session, args: &Args) -> Outcome {
    let (_, number) = existing(session, args)?;
    let key = required(args, 1, "var")?;
    let value = required(args, 2, "val")?;
    if !SETTINGS.contains(&key) {
        return Err(invalid_command(&format!("{key} is no setting of a pool")));
    }
    done(args, &format!("set pool {number} {key} to {value}"))?;
    tell(&format!(
        "note: '{key}' has no effect here: a pool keeps one copy, on the medium below it"
    ))
}

fn rename(session: &Session, args: &Args) -> Outcome {
    let (name, _) = existing(session, args)?;
    let to = required(args, 1, "destpool(<poolname>)")?;
    if session.client()?.pools()?.iter().any(|have| have == to) {
        return Err(error(EEXIST, format!("pool '{to}' already exists")));
    }
    Err(error(
        EOPNOTSUPP,
        format!("pool '{name}' keeps its name; make '{to}' and copy the images ('rbd cp')"),
    ))
}

fn enable_application(session: &Session, args: &Args) -> Outcome {
    let (name, _) = existing(session, args)?;
    match required(args, 1, "app")? {
        "rbd" => done(args, &format!("enabled application 'rbd' on pool '{name}'")),
        other => Err(error(
            EOPNOTSUPP,
            format!("pool '{name}' is for rbd; there is no application '{other}' here"),
        )),
    }
}

fn get_application(session: &Session, args: &Args) -> Outcome {
    existing(session, args)?;
    let node = || Node::Object(vec![("rbd", Node::Object(Vec::new()))]);
    let plain = || "{\n    \"rbd\": {}\n}\n".to_owned();
    ceph_output::print(args, End::Bare, plain, || ("rbd", node()))
}

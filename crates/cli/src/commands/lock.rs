//! `lock add`, `list`, `remove`.

use marcot::{ErrorKind, LockInfo};
use marcot_client::settings::address_of;

use super::IMAGE_SPEC;
use super::image_meta::image_and;
use crate::args::names::{self, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::EBUSY;
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table, line};
use crate::session::{self, Session};

const LOCK_ID: Positional = Positional::one("lock-id", "unique lock id");
const LOCKER: Positional = Positional::one("locker", "locker client");
const SHARED: &[Opt] = &[Opt::new("shared", Kind::Text, "shared lock tag")];
/// What names of lockers begin with.
const CLIENT: &str = "client.";

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["lock", "add"], "Take a lock on an image.", add)
        .positionals(&[IMAGE_SPEC, LOCK_ID])
        .options(&[options::IMAGE, SHARED])
        .examples(&[
            ("lock add vm-1 backup", "nobody writes the image until the lock is removed"),
            ("lock add vm-1 host-a --shared readers", "others may add locks with the same tag"),
        ]),
    CommandSpec::new(&["lock", "list"], "Show locks held on an image.", list)
        .aliases(&[&["lock", "ls"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, options::FORMAT])
        .examples(&[("lock ls vm-1", "")]),
    CommandSpec::new(&["lock", "remove"], "Release a lock on an image.", remove)
        .aliases(&[&["lock", "rm"]])
        .positionals(&[IMAGE_SPEC, LOCK_ID, LOCKER])
        .options(&[options::IMAGE])
        .examples(&[("lock rm vm-1 backup client.4711", "the names are those of 'lock ls'")]),
];

fn add(session: &Session, args: &Args) -> Outcome {
    let (target, [cookie]) = image_and(args, ["lock id"])?;
    let tag = args.text("shared");
    let image = session.find(&target)?;
    let pid = std::process::id();
    let lock = LockInfo {
        client: u64::from(pid),
        cookie: cookie.to_string(),
        address: address_of(pid),
        shared: tag.is_some(),
        tag: tag.unwrap_or_default().to_string(),
    };
    image.add_lock(&lock).map_err(|error| match error.kind() {
        ErrorKind::Busy | ErrorKind::Owned | ErrorKind::Exists => {
            let message = match tag {
                Some(_) => "lock is already held by someone else with a different tag",
                None => "lock is already held by someone else",
            };
            Failure::new(EBUSY, message).because(error.sentence())
        }
        _ => Failure::engine("taking lock failed", &error),
    })
}

fn list(session: &Session, args: &Args) -> Outcome {
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let format = args.format()?;
    let image = session.find(&target)?;
    let locks = image.locks().map_err(|error| session::opening_failed(&image, &error))?;
    let document = || ("locks", Node::array("lock", locks.iter().map(node)));
    format.print(|| plain(&locks), document)
}

/// How a locker is called.
pub fn locker(lock: &LockInfo) -> String {
    format!("{CLIENT}{}", lock.client)
}

fn plain(locks: &[LockInfo]) -> String {
    let Some(first) = locks.first() else { return String::new() };
    let kind = if first.shared { "shared" } else { "exclusive" };
    let mut text = match locks.len() {
        1 => format!("There is 1 {kind} lock on this image.\n"),
        count => format!("There are {count} {kind} locks on this image.\n"),
    };
    if first.shared {
        text.push_str(&line(&format!("Lock tag: {}", first.tag)));
    }
    let columns = Table::new().column("Locker", Align::Left).column("ID", Align::Left);
    let mut table = columns.column("Address", Align::Left);
    for lock in locks {
        table.row(vec![locker(lock), lock.cookie.clone(), lock.address.clone()]);
    }
    text + &table.render()
}

fn node(lock: &LockInfo) -> Node {
    Node::Object(vec![
        ("id", lock.cookie.as_str().into()),
        ("locker", locker(lock).into()),
        ("address", lock.address.as_str().into()),
    ])
}

fn remove(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "releasing lock failed";
    let (target, [cookie, locker]) = image_and(args, ["lock id", "locker"])?;
    let image = session.find(&target)?;
    let client = locker.strip_prefix(CLIENT).and_then(|number| number.parse().ok());
    let client = client.ok_or_else(|| {
        let failure = Failure::errno(ERROR, crate::errno::EINVAL);
        failure.because(format!("Unable to parse client '{locker}'"))
    })?;
    image.remove_lock(client, cookie).map_err(|error| Failure::engine(ERROR, &error))
}

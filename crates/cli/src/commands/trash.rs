//! `trash move`, `list`, `restore`, `remove`, `purge`.

use std::process::{Command, Stdio};

use marcot::{ErrorKind, ImageId, ImageInfo, TrashedImage};
use marcot_client::Pool;
use marcot_client::trash::{Stale, protection_end};

use super::image::{has_snapshots, objects, removal_failure};
use super::list::{parent_node, show_parent};
use super::{IMAGE_SPEC, POOL_SPEC};
use crate::args::names::{self, Target, Wanted};
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{self, EEXIST, EINVAL, ENOENT, ENOTEMPTY, EPERM};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table, err, line};
use crate::session::{Session, parse_image_id};
use crate::time;

/// The program that reads dates, as with RBD.
const DATE: &str = "/bin/date";

const IMAGE_ID_SPEC: Positional =
    Positional::one("image-id", "image id (example: [<pool-name>/[<namespace>/]]<image-id>)");
const EXPIRES_AT: &[Opt] = &[Opt::new(
    "expires-at",
    Kind::Text,
    "set the expiration time of an image so it can be purged when it is stale [default: now]",
)];
const LISTING: &[Opt] = &[
    Opt::new("all", Kind::Flag, "list images from all sources").letter('a'),
    Opt::new("long", Kind::Flag, "long listing format").letter('l'),
];
const NAME: &[Opt] = &[Opt::new("image", Kind::Text, "image name")];
const FORCE: &[Opt] =
    &[Opt::new("force", Kind::Flag, "force remove of non-expired delayed images")];
const PURGE: &[Opt] = &[
    Opt::new("expired-before", Kind::Text, "purges images that expired before the given date"),
    Opt::new(
        "threshold",
        Kind::Float,
        "purges images until the current pool data usage is reduced to X%, value range: 0.0-1.0",
    ),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["trash", "move"], "Move an image to the trash.", put)
        .aliases(&[&["trash", "mv"]])
        .positionals(&[IMAGE_SPEC])
        .options(&[options::IMAGE, EXPIRES_AT])
        .examples(&[
            ("trash mv vm-1", "works while the image is in use; snapshots and clones stay"),
            ("trash mv vm-1 --expires-at '2 weeks'", "'trash purge' leaves it alone until then"),
        ]),
    CommandSpec::new(&["trash", "list"], "List trash images.", list)
        .aliases(&[&["trash", "ls"]])
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE, LISTING, options::FORMAT])
        .examples(&[("trash ls -l", "since when, until when protected, and the parent")]),
    CommandSpec::new(&["trash", "restore"], "Restore an image from trash.", restore)
        .positionals(&[IMAGE_ID_SPEC])
        .options(&[options::POOL_AND_NAMESPACE, &[options::IMAGE_ID], NAME])
        .examples(&[("trash restore 1a2b3c4d5e6f7081 --image vm-2", "under another name")]),
    CommandSpec::new(&["trash", "remove"], "Remove an image from trash.", remove)
        .aliases(&[&["trash", "rm"]])
        .positionals(&[IMAGE_ID_SPEC])
        .options(&[options::POOL_AND_NAMESPACE, &[options::IMAGE_ID], options::NO_PROGRESS, FORCE])
        .examples(&[("trash rm 1a2b3c4d5e6f7081", "refused while it has snapshots")]),
    CommandSpec::new(&["trash", "purge"], "Remove all expired images from trash.", purge)
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE, options::NO_PROGRESS, PURGE])
        .examples(&[
            ("trash purge", "all whose protection has ended"),
            ("trash purge --threshold 0.8", "until the disk is at most 80% full"),
        ]),
];

fn put(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "deferred delete error";
    let target = names::target(args, &mut 0, Wanted::IMAGE)?;
    let now_s = time::now_s();
    let until_s = match args.text("expires-at").filter(|text| *text != "now") {
        Some(text) => Some(protection_end(now_s, date(session, text)?)),
        None => None,
    };
    let pool = session.pool_of(&target)?;
    pool.image(target.name())
        .and_then(|image| image.move_to_trash(until_s))
        .map_err(|error| Failure::engine(ERROR, &error))
}

/// The time that `date` understands, in seconds since 1970.
fn date(session: &Session, text: &str) -> Outcome<i64> {
    let failed = || Failure::errno(format!("error calling {DATE}"), EINVAL);
    let asked = Command::new(DATE)
        .arg(format!("--date={text}"))
        .arg("+%s")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::io(format!("error calling {DATE}"), &error))?;
    if !asked.status.success() {
        err(&String::from_utf8_lossy(&asked.stderr));
        return Err(failed());
    }
    let answer = String::from_utf8_lossy(&asked.stdout);
    answer
        .trim()
        .parse()
        .map_err(|_| failed().because(format!("{} said {answer}", session.program)))
}

fn list(session: &Session, args: &Args) -> Outcome {
    let target = names::pool_target(args)?;
    let format = args.format()?;
    let pool = session.pool_of(&target)?;
    let trash = pool
        .trash(&target.namespace())
        .map_err(|error| Failure::engine("trash listing failed", &error))?;
    let all = args.flag("all");
    let trash: Vec<TrashedImage> =
        trash.into_iter().filter(|image| all || !image.migrating).collect();
    if !args.flag("long") {
        let lines = || trash.iter().map(|i| line(&format!("{} {}", i.id, i.name))).collect();
        let nodes = || Node::array("image", trash.iter().map(|image| node(image, Vec::new())));
        return format.print(lines, || ("trash", nodes()));
    }
    let rows = rows(&pool, trash);
    let nodes = || Node::array("image", rows.iter().map(|row| node(&row.image, row.members())));
    format.print(|| table(&rows), || ("trash", nodes()))
}

/// An image in the trash with what its head says.
struct Row {
    image: TrashedImage,
    info: Option<ImageInfo>,
    now_s: i64,
}

fn rows(pool: &Pool, trash: Vec<TrashedImage>) -> Vec<Row> {
    let now_s = time::now_s();
    let mut reader = pool.info_reader();
    let row = |image: TrashedImage| {
        let info = reader.info_of(&image.name, image.id).ok();
        Row { image, info, now_s }
    };
    trash.into_iter().map(row).collect()
}

impl Row {
    /// Who has moved it to the trash, in `rbd`'s words.
    fn source(&self) -> &'static str {
        if self.image.migrating { "MIGRATION" } else { "USER" }
    }

    fn status(&self) -> String {
        let until_s = self.image.protected_until_s;
        let word = if self.now_s < until_s { "protected until" } else { "expired at" };
        format!("{word} {}", time::ctime(until_s))
    }

    fn cells(&self) -> Vec<String> {
        let parent = self.info.as_ref().and_then(|info| info.parent.as_ref());
        vec![
            self.image.id.to_string(),
            self.image.name.clone(),
            self.source().to_string(),
            time::ctime(self.image.deleted_s),
            self.status(),
            parent.map(show_parent).unwrap_or_default(),
        ]
    }

    fn members(&self) -> Vec<(&'static str, Node)> {
        let mut members: Vec<(&'static str, Node)> = vec![
            ("source", self.source().into()),
            ("deleted_at", time::ctime(self.image.deleted_s).into()),
            ("status", self.status().into()),
        ];
        if let Some(parent) = self.info.as_ref().and_then(|info| info.parent.as_ref()) {
            members.push(("parent", parent_node(parent)));
        }
        members
    }
}

fn table(rows: &[Row]) -> String {
    let columns = ["ID", "NAME", "SOURCE", "DELETED_AT", "STATUS", "PARENT"];
    let mut table =
        columns.into_iter().fold(Table::new(), |table, name| table.column(name, Align::Left));
    rows.iter().for_each(|row| table.row(row.cells()));
    table.render()
}

fn node(image: &TrashedImage, more: Vec<(&'static str, Node)>) -> Node {
    let mut members: Vec<(&'static str, Node)> =
        vec![("id", image.id.to_string().into()), ("name", image.name.as_str().into())];
    members.extend(more);
    Node::Object(members)
}

/// The pool and namespace that a command line names, and the number of an image, `None` if it is none.
fn chosen(session: &Session, args: &Args) -> Outcome<(Pool, Target, Option<ImageId>)> {
    let target = names::id_target(args)?;
    let pool = session.pool_of(&target)?;
    let id = parse_image_id(&target.image);
    Ok((pool, target, id))
}

fn restore(session: &Session, args: &Args) -> Outcome {
    let (pool, target, id) = chosen(session, args)?;
    let missing = || Failure::new(ENOENT, "error: image does not exist in trash");
    let id = id.ok_or_else(missing)?;
    let name = args.text("image").filter(|name| !name.is_empty());
    match pool.restore(&target.namespace(), id, name) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            ErrorKind::NotFound => missing().because(error.sentence()),
            ErrorKind::Exists => Failure::new(
                EEXIST,
                "error: an image with the same name already exists, try again with a different name",
            ),
            _ => Failure::engine("restore error", &error),
        }),
    }
}

fn remove(session: &Session, args: &Args) -> Outcome {
    const ERROR: &str = "remove error";
    let (pool, target, id) = chosen(session, args)?;
    let mut progress = session.parts("Removing image");
    let missing = || Failure::errno(ERROR, ENOENT);
    let outcome = id.ok_or_else(missing).and_then(|id| {
        let namespace = target.namespace();
        let image = pool.trashed_image(&namespace, id).map(|(image, _)| image);
        let image = image.map_err(|error| Failure::engine(ERROR, &error))?;
        let parts = image.info().map_or(0, |info| objects(info.size_bytes, info.order));
        progress.count_in(parts);
        let mut report = |done, total| progress.update_before_end(done, total);
        let removed = pool.remove_from_trash(&namespace, id, args.flag("force"), &mut report);
        removed.map_err(|error| match error.kind() {
            // `rbd` begins with an empty line.
            ErrorKind::Protected => Failure::bare(EPERM, "").then_bare(
                "Deferment time has not expired, please use --force if you really want to remove \
                 the image",
            ),
            ErrorKind::HasSnapshots => {
                Failure::new(ENOTEMPTY, has_snapshots(session.program)).because(error.sentence())
            }
            ErrorKind::InGroup => Failure::bare(errno::of(&error), "")
                .then_bare("Remove the image from the group and try again.")
                .because(error.sentence()),
            _ => removal_failure(session, &image, &error, ERROR),
        })?;
        progress.catch_up(1, parts);
        Ok(())
    });
    // As with `rbd`, the error comes before the end of the progress.
    match outcome {
        Ok(()) => {
            progress.finish();
            Ok(())
        }
        Err(failure) => {
            err(&failure.render(session.program));
            progress.fail();
            Err(Failure::quiet(failure.status))
        }
    }
}

fn purge(session: &Session, args: &Args) -> Outcome {
    let target = names::pool_target(args)?;
    let pool = session.pool_of(&target)?;
    let time_s = match args.text("expired-before") {
        Some(text) => date(session, text)?,
        None => time::now_s(),
    };
    let mut progress = session.parts("Removing images");
    let which = match args.float("threshold").filter(|share| *share != NO_THRESHOLD) {
        None => Stale::ExpiredBy(time_s),
        Some(share) if (0.0..=1.0).contains(&share) => {
            Stale::UntilUsage { share, expired_by_s: time_s }
        }
        Some(share) => {
            progress.fail();
            let cause = format!("the threshold is {share}, and must be from 0 to 1");
            return Err(Failure::quiet(EINVAL).because(cause));
        }
    };
    let emptied = pool
        .empty_trash(&target.namespace(), which, &mut |done, total| progress.update(done, total));
    progress.end(match emptied {
        Ok(emptied) => emptied.left.map_or(Ok(()), |why| Err(some_stay(&why))),
        Err(error) => Err(Failure::engine("remove error", &error)),
    })
}

/// With `rbd`, this threshold means none.
const NO_THRESHOLD: f64 = -1.0;

fn some_stay(why: &marcot::Error) -> Failure {
    Failure::new(errno::of(why), "some expired images could not be removed")
        .then_bare(
            "Ensure that they are closed/unmapped, do not have snapshots (including trashed snapshots \
             with linked clones), are not in a group and were moved to the trash successfully.",
        )
        .because(why.sentence())
}

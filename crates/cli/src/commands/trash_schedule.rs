//! `trash purge schedule add`, `list`, `remove`, `status`, and `run`, which empties what is due.
//!
//! With RBD, a daemon of the cluster keeps to the schedules. Here a timer of the machine calls `run`.

use std::str::FromStr;

use marcot::ErrorKind;
use marcot_client::purge_schedule::{Level, Run, Schedule, ScheduleItem, StartTime};
use marcot_client::{Client, DEFAULT_POOL};

use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno::{self, EBADMSG, EINVAL, ENOENT};
use crate::failure::{Failure, Outcome, cause_line, strerror};
use crate::output::{Align, Node, Table, err, line, out};
use crate::session::Session;
use crate::time;

const INTERVAL: Positional = Positional::one("interval", "schedule interval");
const START_TIME: Positional = Positional::one("start-time", "schedule start time").optional();
const RECURSIVE: &[Opt] = &[Opt::new("recursive", Kind::Flag, "list all schedules").letter('R')];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["trash", "purge", "schedule", "add"], "Add trash purge schedule.", add)
        .positionals(&[INTERVAL, START_TIME])
        .options(&[options::POOL_AND_NAMESPACE])
        .examples(&[
            ("trash purge schedule add 1d 03:00", "all pools, each night; 'run' does what is due"),
            ("trash purge schedule add -p rbd --namespace staging 30m", "a namespace of its own"),
        ]),
    CommandSpec::new(&["trash", "purge", "schedule", "list"], "List trash purge schedule.", list)
        .aliases(&[&["trash", "purge", "schedule", "ls"]])
        .options(&[options::POOL_AND_NAMESPACE, RECURSIVE, options::FORMAT])
        .examples(&[("trash purge schedule ls -R", "of all pools and namespaces")]),
    CommandSpec::new(
        &["trash", "purge", "schedule", "remove"],
        "Remove trash purge schedule.",
        remove,
    )
    .aliases(&[&["trash", "purge", "schedule", "rm"]])
    .positionals(&[INTERVAL.optional(), START_TIME])
    .options(&[options::POOL_AND_NAMESPACE])
    .examples(&[("trash purge schedule rm -p rbd", "all intervals of the pool")]),
    CommandSpec::new(
        &["trash", "purge", "schedule", "status"],
        "Show trash purge schedule status.",
        status,
    )
    .options(&[options::POOL_AND_NAMESPACE, options::FORMAT])
    .examples(&[("trash purge schedule status", "when each trash is emptied next")]),
    CommandSpec::new(
        &["trash", "purge", "schedule", "run"],
        "Empty each trash whose scheduled time has come since the last run. A timer has to call it, once a minute or \
         as often as the shortest interval: packages install marcot-trash-purge.timer; without systemd a line of cron \
         does.",
        run,
    )
    .examples(&[("trash purge schedule run", "a run that was missed is made up for")])
    .own(),
];

/// Which of the commands failed, in the words of Ceph's manager.
fn failed(session: &Session, command: &str, why: &str) -> Failure {
    let (program, text) = (session.program, strerror(EINVAL));
    let what = format!("{program} trash purge schedule {command} failed");
    Failure::invalid(format!("{what}: ({EINVAL}) {text}: {why}"))
}

/// The level that the options name, which must exist.
fn level(session: &Session, args: &Args, command: &str) -> Outcome<Level> {
    let named = |option| args.text(option).filter(|text| !text.is_empty());
    let namespace = named("namespace");
    let Some(pool_name) = named("pool").or(namespace.and(Some(DEFAULT_POOL))) else {
        return Ok(Level::Store);
    };
    let missing = |spec: &str, what: &str, name: &str| {
        let why = format!("Invalid level spec {spec}/: {what} {name} does not exist");
        failed(session, command, &why)
    };
    let pool = match session.client()?.pool(pool_name) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(missing(pool_name, "pool", pool_name));
        }
        Err(_) => session.pool(pool_name)?,
        Ok(pool) => pool,
    };
    let Some(namespace) = namespace else { return Ok(Level::Pool(pool_name.to_string())) };
    if pool.namespaces()?.iter().any(|name| name == namespace) {
        return Ok(Level::Namespace(pool_name.to_string(), namespace.to_string()));
    }
    Err(missing(&format!("{pool_name}/{namespace}"), "namespace", namespace))
}

fn parsed<T: FromStr<Err = String>>(session: &Session, command: &str, text: &str) -> Outcome<T> {
    text.parse().map_err(|why: String| failed(session, command, &why))
}

/// The interval and start of the arguments.
fn item(session: &Session, args: &Args, command: &str) -> Outcome<Option<ScheduleItem>> {
    let Some(interval) = args.positional(0) else { return Ok(None) };
    let interval = parsed(session, command, interval)?;
    let start = args.positional(1).map(|text| parsed::<StartTime>(session, command, text));
    Ok(Some(ScheduleItem { interval, start: start.transpose()? }))
}

fn changed(session: &Session, command: &str, outcome: marcot::Result<()>) -> Outcome {
    outcome.map_err(|error| {
        let what = format!("{} trash purge schedule {command} failed", session.program);
        Failure::engine(what, &error)
    })
}

fn add(session: &Session, args: &Args) -> Outcome {
    const COMMAND: &str = "add";
    if args.positional(0).is_none() {
        return Err(Failure::invalid("missing 'interval' argument"));
    }
    let level = level(session, args, COMMAND)?;
    let Some(item) = item(session, args, COMMAND)? else { return Ok(()) };
    changed(session, COMMAND, session.client()?.add_purge_schedule(&level, item))
}

fn remove(session: &Session, args: &Args) -> Outcome {
    const COMMAND: &str = "remove";
    let level = level(session, args, COMMAND)?;
    let client = session.client()?;
    // As with `rbd`, which does not look at what nothing can be equal to.
    let item = match client.purge_schedule(&level)?.items().is_empty() {
        true => None,
        false => item(session, args, COMMAND)?,
    };
    changed(session, COMMAND, client.remove_purge_schedule(&level, item))
}

fn list(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let level = level(session, args, "list")?;
    let client = session.client()?;
    if !args.flag("recursive") {
        let schedule = client.purge_schedule(&level)?;
        // As with `rbd`, without a word.
        if schedule.items().is_empty() {
            return Err(Failure::quiet(ENOENT));
        }
        return format.print(|| line(&sentence(&schedule)), || ("items", items(&schedule)));
    }
    let schedules = below(client, &level)?;
    let plain = || {
        let mut table = columns("SCHEDULE");
        for (level, schedule) in &schedules {
            let [pool, namespace] = shown(level);
            table.row(vec![pool.to_string(), namespace.to_string(), sentence(schedule)]);
        }
        table.render()
    };
    let node = |(level, schedule): &(Level, Schedule)| {
        let [pool, namespace] = shown(level);
        let (pool, namespace) = (pool.into(), namespace.into());
        let items = items(schedule);
        Node::Object(vec![("pool", pool), ("namespace", namespace), ("items", items)])
    };
    let document = || ("schedules", Node::array("schedule", schedules.iter().map(node)));
    format.print(plain, document)
}

/// The schedules of a level and of those below it. Where the level has none of its own, the nearest above it comes
/// first.
fn below(client: &Client, level: &Level) -> Outcome<Vec<(Level, Schedule)>> {
    let pool = Some(level.pool()).filter(|pool| !pool.is_empty());
    let mut schedules = client.purge_schedules(pool)?;
    let above = [Level::Pool(level.pool().to_string()), Level::Store];
    if matches!(level, Level::Namespace(..)) {
        schedules.retain(|(there, _)| there == level);
    }
    if *level == Level::Store || schedules.iter().any(|(there, _)| there == level) {
        return Ok(schedules);
    }
    for above in above.into_iter().filter(|above| above != level) {
        let schedule = client.purge_schedule(&above)?;
        if !schedule.items().is_empty() {
            schedules.insert(0, (above, schedule));
            break;
        }
    }
    Ok(schedules)
}

/// Pool and namespace as `list --recursive` shows them.
fn shown(level: &Level) -> [&str; 2] {
    [level.pool(), level.namespace()].map(|name| if name.is_empty() { "-" } else { name })
}

fn sentence(schedule: &Schedule) -> String {
    schedule.items().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn items(schedule: &Schedule) -> Node {
    let node = |item: &ScheduleItem| {
        let start = item.start.map(|start| start.to_string()).unwrap_or_default();
        Node::Object(vec![
            ("interval", item.interval.to_string().into()),
            ("start_time", start.into()),
        ])
    };
    Node::array("item", schedule.items().iter().map(node))
}

fn columns(last: &'static str) -> Table {
    let names = ["POOL", "NAMESPACE", last];
    let table = names.into_iter().fold(Table::new(), |table, name| table.column(name, Align::Left));
    table.header_always()
}

fn status(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let level = level(session, args, "status").map_err(|failure| {
        let mut unread = failure.then("invalid schedule status JSON received");
        unread.status = EBADMSG;
        unread
    })?;
    let pool = Some(level.pool()).filter(|pool| !pool.is_empty());
    let ahead_s = time::ahead_of_utc_s(time::now_s());
    let mut planned = session.client()?.purge_plan(pool, ahead_s)?;
    if let Level::Namespace(_, wanted) = &level {
        planned.retain(|planned| planned.namespace == *wanted);
    }
    let rows = planned.into_iter().map(|p| [p.pool, p.namespace, time::date_and_minute(p.next_s)]);
    let rows: Vec<[String; 3]> = rows.collect();
    let plain = || {
        let mut table = columns("SCHEDULE TIME");
        rows.iter().for_each(|row| table.row(row.to_vec()));
        table.render()
    };
    let node = |[pool, namespace, next]: &[String; 3]| {
        let [pool, namespace, next] = [pool, namespace, next].map(|text| text.as_str().into());
        Node::Object(vec![("pool", pool), ("namespace", namespace), ("schedule_time", next)])
    };
    format.print(plain, || ("scheduled", Node::array("item", rows.iter().map(node))))
}

fn run(session: &Session, _: &Args) -> Outcome {
    let ahead_s = time::ahead_of_utc_s(time::now_s());
    let mut outcome = Ok(());
    session.client()?.purge_by_schedule(ahead_s, &mut |run| {
        if let Err(failure) = tell(session, &run)
            && outcome.is_ok()
        {
            outcome = Err(failure);
        }
    })?;
    outcome
}

/// Prints what was done to a trash, a line each for standard output and for what stays.
fn tell(session: &Session, run: &Run) -> Outcome {
    let place = match run.namespace.is_empty() {
        true => run.pool.clone(),
        false => format!("{}/{}", run.pool, run.namespace),
    };
    match &run.outcome {
        Ok(emptied) => {
            if let Some(why) = &emptied.left {
                let said = format!("an image stays in the trash of {place}: {}", why.sentence());
                err(&cause_line(session.program, &said));
            }
            let images = if emptied.removed == 1 { "image" } else { "images" };
            out(&line(&format!("{place}: {} {images} removed from the trash", emptied.removed)))
        }
        Err(error) => {
            let failure = Failure::engine(format!("purging the trash of {place} failed"), error);
            err(&failure.render(session.program));
            Err(Failure::quiet(errno::of(error)))
        }
    }
}

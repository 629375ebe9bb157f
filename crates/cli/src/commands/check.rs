//! `check` and `gc`: verifying pools, and freeing space.

use std::time::{Duration, Instant};

use marcot::{CheckOptions, CheckReport, Finding, GcReport, Keep, Levels};
use marcot_client::Pool;

use super::POOL_NAME;
use super::pool::levels_node;
use crate::args::names;
use crate::args::{Args, CommandSpec, Kind, Opt, Positional, options};
use crate::errno;
use crate::errno::EIO;
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table, line, output_open};
use crate::session::{self, Session};
use crate::{size, time};

/// Default rate of a scrub: a small part of what any disk can read, and a terabyte in five hours.
const SCRUB_BYTES_PER_S_DEFAULT: u64 = 64 << 20;

const CHECK: &[Opt] = &[
    Opt::new(
        "repair",
        Kind::Flag,
        "set right what can be; damaged map pages, and a log from where it is damaged, are given up",
    ),
    Opt::new("skip-data", Kind::Flag, "verify structures only, not every block of data"),
    Opt::new("scrub", Kind::Flag, "read all data from the medium, at a bounded rate"),
    Opt::new("rate", Kind::Bytes, "bytes a second of --scrub, 0 for no bound [default: 64M]"),
    Opt::new("all", Kind::Flag, "every pool of the store").letter('a'),
];

const GC: &[Opt] = &[
    Opt::new(
        "interrupted",
        Kind::Flag,
        "also remove what interrupted copies and imports of the last 7 days have left, to go on with",
    ),
    Opt::new(
        "take-back",
        Kind::Text,
        "only remove the image with this id, which a host that is gone for good has begun to make",
    ),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["check"], "Verify a pool: every head, page, checksum and count.", check)
        .own()
        .positionals(&[Positional::one("pool-name", "pool name [default: rbd]")])
        .options(&[options::ONE_POOL, CHECK, options::NO_PROGRESS, options::FORMAT])
        .examples(&[
            (
                "check kubernetes",
                "status 5 if data is damaged; another if it could not be looked at",
            ),
            ("check --all --repair", "every pool; finishes what was cut off"),
            ("check --scrub --rate 20M kubernetes", "in the background, while images are in use"),
        ]),
    CommandSpec::new(&["gc"], "Give back the space that no image or snapshot of a pool needs.", gc)
        .own()
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, GC, options::NO_PROGRESS, options::FORMAT])
        .examples(&[
            ("gc kubernetes", "and tell what snapshots hold"),
            ("gc --interrupted kubernetes", "and remove what interrupted copies could go on with"),
            (
                "gc --take-back 5f0c3b7a91d2e648 gold",
                "'gc gold' and 'check gold' show what other hosts have begun to make",
            ),
        ]),
];

fn check(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let scrub = args.flag("scrub");
    let (repair, skip_data) = (args.flag("repair"), args.flag("skip-data"));
    if repair {
        // A repair must report what it gives up, so it only begins if there is a standard output.
        output_open()?;
    }
    if scrub && skip_data {
        return Err(Failure::invalid("--scrub reads all data, which --skip-data leaves out"));
    }
    let rate = args.bytes("rate");
    if rate.is_some() && !scrub {
        return Err(Failure::invalid("--rate bounds the rate of --scrub"));
    }
    let rate_bytes_per_s = if scrub { rate.unwrap_or(SCRUB_BYTES_PER_S_DEFAULT) } else { 0 };
    let options = CheckOptions { repair, skip_data, scrub };
    let names = if args.flag("all") {
        session.client()?.pools()?
    } else {
        vec![names::pool_target(args)?.pool_or_default().to_string()]
    };
    let mut reports = Vec::new();
    for name in names {
        let mut levels = None;
        let checked = session.pool(&name).and_then(|pool| {
            levels = Some(pool.levels());
            check_pool(session, &pool, &options, rate_bytes_per_s)
        });
        match checked {
            Err(_) if args.flag("all") && session.client()?.is_unfinished(&name) => {
                let message = "its creation was cut off; 'pool create' finishes it".to_string();
                reports.push(Checked { name, levels, report: unchecked(message, false) });
            }
            // With `--all`, the other pools are still checked.
            Err(failure) if args.flag("all") => {
                let message = format!("the pool could not be checked: {}", failure.sentence());
                let unseen = errno::obstacle(failure.status);
                let mut report = unchecked(message, unseen.is_none());
                report.findings.iter_mut().for_each(|finding| finding.unseen = unseen);
                reports.push(Checked { name, levels, report });
            }
            checked => reports.push(Checked { name, levels, report: checked? }),
        }
    }
    format.print(
        || reports.iter().map(plain_check).collect(),
        || ("check", Node::array("pool", reports.iter().map(check_node))),
    )?;
    let serious = |finding: &Finding| finding.serious && !finding.repaired;
    if reports.iter().any(|checked| checked.report.findings.iter().any(serious)) {
        return Err(Failure::new(EIO, "the check found damage"));
    }
    let findings = reports.iter().flat_map(|checked| &checked.report.findings);
    let unseen = findings.into_iter().find_map(|finding| finding.unseen);
    if let Some(kind) = unseen {
        let message = "the check found no damage, but could not look at everything: check again";
        return Err(Failure::new(errno::of_kind(kind), message));
    }
    Ok(())
}

/// What was found in a pool.
struct Checked {
    name: String,
    /// Unknown where the pool cannot be opened.
    levels: Option<Levels>,
    report: CheckReport,
}

/// The report about a pool that could not be checked at all or to the end.
fn unchecked(message: String, serious: bool) -> CheckReport {
    let mut report = CheckReport::default();
    report.findings.push(Finding::of_pool(message, serious));
    report
}

fn check_pool(
    session: &Session,
    pool: &Pool,
    options: &CheckOptions,
    rate_bytes_per_s: u64,
) -> Outcome<CheckReport> {
    let mut progress = session.bytes("Checking pool");
    let start = Instant::now();
    let mut report = |done, total| {
        progress.update_before_end(done, total);
        std::thread::sleep(ahead(done, rate_bytes_per_s, start.elapsed()));
    };
    let outcome = pool.check(options, &mut report);
    progress.end(outcome.map_err(|e| Failure::engine("check failed", &e)))
}

/// How long to wait to keep the rate, after `bytes` were read in `elapsed`. There is no wait if the rate is 0.
fn ahead(bytes: u64, rate_bytes_per_s: u64, elapsed: Duration) -> Duration {
    if rate_bytes_per_s == 0 {
        return Duration::ZERO;
    }
    Duration::from_secs_f64(bytes as f64 / rate_bytes_per_s as f64).saturating_sub(elapsed)
}

fn plain_check(Checked { name, levels, report }: &Checked) -> String {
    let mut text = String::new();
    if let Some(levels) = levels.filter(|levels| !levels.is_writable()) {
        text.push_str(&line(&levels.why_read_only(name)));
    }
    for finding in &report.findings {
        let place =
            if finding.image.is_empty() { format!("pool {name}") } else { finding.image.clone() };
        text.push_str(&line(&format!("{place}: {}{}", finding.message, state(finding))));
    }
    let data = size::show(report.blocks * marcot::BLOCK_BYTES);
    text.push_str(&line(&format!(
        "{name}: {} images, {} snapshots, {} map pages, {data} of data: {}",
        report.images,
        report.snapshots,
        report.pages,
        verdict(&report.findings)
    )));
    text
}

fn state(finding: &Finding) -> &'static str {
    if finding.repaired { " (repaired)" } else { "" }
}

fn verdict(findings: &[Finding]) -> String {
    let left = findings.iter().filter(|f| !f.repaired).count();
    let damage = findings.iter().filter(|f| f.serious && !f.repaired).count();
    if damage == 0 && findings.iter().any(|f| f.unseen.is_some()) {
        return format!("{left} findings, no damage in what could be looked at");
    }
    match (findings.len(), left, damage) {
        (0, ..) => "all is well".to_string(),
        (found, 0, _) => format!("{found} findings, all repaired"),
        (_, left, 0) => format!("{left} findings, no data is damaged"),
        (_, left, damage) => format!("{left} findings, {damage} of them mean damaged data"),
    }
}

fn check_node(Checked { name, levels, report }: &Checked) -> Node {
    let finding = |f: &Finding| {
        Node::Object(vec![
            ("image", f.image.as_str().into()),
            ("message", f.message.as_str().into()),
            ("serious", Node::Bool(f.serious)),
            ("repaired", Node::Bool(f.repaired)),
            ("unseen", Node::Bool(f.unseen.is_some())),
        ])
    };
    let mut members = vec![
        ("name", name.as_str().into()),
        ("images", report.images.into()),
        ("snapshots", report.snapshots.into()),
        ("pages", report.pages.into()),
        ("blocks", report.blocks.into()),
        ("findings", Node::array("finding", report.findings.iter().map(finding))),
    ];
    members.extend(levels.as_ref().map(|levels| ("levels", levels_node(levels))));
    Node::Object(members)
}

fn gc(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    output_open()?;
    let pool = session.pool(names::pool_target(args)?.pool_or_default())?;
    if let Some(id) = args.text("take-back") {
        return take_back(&pool, id);
    }
    let mut progress = session.parts("Collecting garbage");
    let mut report = |done, total| progress.update_before_end(done, total);
    let keep = if args.flag("interrupted") { Keep::Nothing } else { Keep::Interrupted };
    let outcome = pool.collect_garbage_keeping(keep, &mut report);
    let outcome = outcome.map_err(|e| Failure::engine("gc failed", &e));
    let found = progress.end(outcome)?;
    format.print(|| plain_gc(&found), || ("gc", gc_node(&found)))
}

/// Removes an image that another host has begun to make.
fn take_back(pool: &Pool, id: &str) -> Outcome {
    const ERROR: &str = "error taking the image back";
    let Some(image) = session::parse_image_id(id) else {
        return Err(Failure::invalid(format!("'{id}' is no id of an image")));
    };
    pool.take_back(image).map_err(|error| Failure::engine(ERROR, &error))
}

fn plain_gc(report: &GcReport) -> String {
    let pinned: u64 = report.pinned.iter().map(|row| row.bytes).sum();
    let mut text = format!(
        "Freed: {}\nLive in images: {}\nPinned by snapshots: {}\nStored: {}\n",
        size::show(report.freed_bytes),
        size::show(report.live_bytes),
        size::show(pinned),
        size::show(report.allocated_bytes)
    );
    let mut table = Table::new().column("PINNED BY", Align::Left).column("SIZE", Align::Right);
    for row in &report.pinned {
        table.row(vec![row.holder.clone(), size::show(row.bytes)]);
    }
    text.push_str(&table.render());
    if !report.begun_elsewhere.is_empty() {
        let table = Table::new().column("BEGUN BY ANOTHER HOST", Align::Left);
        let table = table.column("ID", Align::Left).column("HOST", Align::Left);
        let mut table = table.column("SINCE", Align::Left);
        for begun in &report.begun_elsewhere {
            let (id, since) = (begun.id.to_string(), time::ctime(begun.created_s));
            table.row(vec![begun.label.clone(), id, begun.host.clone(), since]);
        }
        text.push_str(&table.render());
    }
    text
}

fn gc_node(report: &GcReport) -> Node {
    let row = |row: &marcot::PinnedRow| {
        Node::Object(vec![("holder", row.holder.as_str().into()), ("bytes", row.bytes.into())])
    };
    let begun = |begun: &marcot::BegunImage| {
        Node::Object(vec![
            ("id", begun.id.to_string().into()),
            ("image", begun.label.as_str().into()),
            ("host", begun.host.as_str().into()),
            ("since", time::ctime(begun.created_s).into()),
        ])
    };
    Node::Object(vec![
        ("freed_bytes", report.freed_bytes.into()),
        ("live_bytes", report.live_bytes.into()),
        ("allocated_bytes", report.allocated_bytes.into()),
        ("pinned", Node::array("row", report.pinned.iter().map(row))),
        ("begun_elsewhere", Node::array("image", report.begun_elsewhere.iter().map(begun))),
    ])
}

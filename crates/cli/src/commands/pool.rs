//! `pool create`, `list`, `remove`, `init`, `stats`, `attach`, `detach`, `require`.

use std::path::{Path, PathBuf};

use marcot::{
    BucketOptions, ErrorKind, Flush, ImageSums, Levels, PoolOptions, ReadableBy, Requests,
};
use marcot_client::DEFAULT_POOL;

use super::{POOL_NAME, POOL_SPEC};
use crate::args::names;
use crate::args::{Args, CommandSpec, Kind, Opt, options};
use crate::failure::{Failure, Outcome};
use crate::output::{Align, Node, Table, line};
use crate::session::Session;
use crate::size;

const READABLE: &[Opt] = &[Opt::new(
    "readable-by",
    Kind::Choice(&["owner", "group", "all"]),
    "who may read the pool and clone its protected snapshots (owner, group, all) [default: owner]",
)];
const BACKEND: &[Opt] = &[Opt::new("backend", Kind::Text, "directory or bucket of the pool")];
const URL: &[Opt] =
    &[Opt::new("backend", Kind::Text, "bucket (s3://BUCKET/PREFIX, az://..., gs://...)")];
/// Options for a pool in a bucket.
const BUCKET: &[Opt] = &[
    Opt::new("endpoint", Kind::Text, "URL of the bucket's service"),
    Opt::new("region", Kind::Text, "region of the bucket"),
    Opt::new("credentials", Kind::Text, "file with the credentials for the bucket"),
    Opt::new(
        "flush",
        Kind::Choice(&["remote", "local"]),
        "where a flush stores: in the bucket or on this host (remote, local) [default: remote]",
    ),
    Opt::new("cache", Kind::Text, "directory of this host for what is read from the bucket"),
    Opt::new("cache-size", Kind::Bytes, "size of the cache in M/G/T [default: 20G]"),
];
const FORCE: &[Opt] = &[Opt::new(
    "force",
    Kind::Flag,
    "force initialize pool for RBD use if registered by another application",
)];
const LEVELS: &[Opt] = &[
    Opt::new("write-level", Kind::Range(1, LEVEL_MAX), "level of the format to write the pool")
        .own(),
    Opt::new("read-level", Kind::Range(1, LEVEL_MAX), "level of the format to read the pool").own(),
];
/// Larger than any level that there will ever be.
const LEVEL_MAX: u64 = 1_000_000;
const LONG: &[Opt] = &[Opt::new("long", Kind::Flag, "with directory and access").letter('l').own()];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["pool", "create"], "Create a pool.", create)
        .own()
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, READABLE, URL, BUCKET])
        .examples(&[
            ("pool create kubernetes", "for this user alone"),
            ("pool create templates --readable-by all", "others may read and clone"),
            ("pool create gold --backend s3://images/gold --region eu-central-1", "in a bucket"),
        ]),
    CommandSpec::new(&["pool", "list"], "List pools.", list)
        .own()
        .aliases(&[&["pool", "ls"]])
        .options(&[LONG, options::FORMAT])
        .examples(&[("pool ls", "names"), ("pool ls -l", "with directories and buckets")]),
    CommandSpec::new(&["pool", "remove"], "Remove an empty pool.", remove)
        .own()
        .aliases(&[&["pool", "rm"]])
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL])
        .examples(&[("pool rm kubernetes", "refused while it holds images")]),
    CommandSpec::new(&["pool", "init"], "Initialize pool for use by RBD.", init)
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, FORCE])
        .examples(&[("pool init kubernetes", "harmless; pools need no initialization")]),
    CommandSpec::new(&["pool", "stats"], "Display pool statistics.", stats)
        .positionals(&[POOL_SPEC])
        .options(&[LONG, options::POOL_AND_NAMESPACE, options::FORMAT])
        .notes("Note: legacy v1 images are not included in stats")
        .examples(&[
            ("pool stats kubernetes", "images, snapshots, provisioned size"),
            ("pool stats -l kubernetes", "and what is stored and free; 'gc' tells what pins it"),
            (
                "pool stats -l gold",
                "in a bucket: and the requests of this host, their price, and for which images",
            ),
        ]),
    CommandSpec::new(&["pool", "attach"], "Use a pool of another store.", attach)
        .own()
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, BACKEND, BUCKET])
        .examples(&[
            (
                "pool attach templates --backend /var/lib/marcot/pools/templates",
                "its protected snapshots can be cloned; read access is enough",
            ),
            (
                "pool attach gold --backend s3://images/gold --region eu-central-1",
                "the same pool on another host",
            ),
        ]),
    CommandSpec::new(&["pool", "detach"], "Forget a pool of another store.", detach)
        .own()
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL])
        .examples(&[("pool detach templates", "refused while there are clones of its images")]),
    CommandSpec::new(&["pool", "require"], "Keep older programs from writing a pool.", require)
        .own()
        .positionals(&[POOL_NAME])
        .options(&[options::ONE_POOL, LEVELS])
        .examples(&[
            ("pool require kubernetes", "only programs of this version's level may write it"),
            ("pool require gold --read-level 2", "older ones may not even read it; for good"),
        ]),
];

/// The name of the pool. It is required.
fn named(args: &Args) -> Outcome<&str> {
    let name = args.text("pool").or_else(|| args.positional(0)).unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::invalid("pool name was not specified"));
    }
    Ok(name)
}

fn create(session: &Session, args: &Args) -> Outcome {
    let name = named(args)?;
    let failed =
        |error: &marcot::Error| Failure::engine(format!("error creating pool '{name}'"), error);
    if let Some(url) = args.text("backend") {
        check_bucket(url)?;
        if args.text("readable-by").is_some() {
            return Err(Failure::invalid(
                "--readable-by is for pools in directories; the bucket's own policy says who may read it",
            ));
        }
        let created = session.client()?.create_pool_in_bucket(name, url, &bucket_options(args)?);
        return created.map(drop).map_err(|error| failed(&error));
    }
    refuse_bucket_options(args)?;
    let readable_by = match args.text("readable-by") {
        Some("all") => ReadableBy::All,
        Some("group") => ReadableBy::Group,
        _ => ReadableBy::Owner,
    };
    session
        .client()?
        .create_pool(name, &PoolOptions { readable_by })
        .map(drop)
        .map_err(|error| failed(&error))
}

/// True for text that is the URL of a bucket, not the path of a directory.
fn is_url(text: &str) -> bool {
    text.contains("://")
}

fn check_bucket(url: &str) -> Outcome {
    match is_url(url) {
        true => Ok(()),
        false => Err(Failure::invalid(format!(
            "'{url}' is no bucket (s3://BUCKET/PREFIX): a pool in a directory is made without --backend, below the store's directory"
        ))),
    }
}

/// The options for a pool in a bucket.
fn bucket_options(args: &Args) -> Outcome<BucketOptions> {
    let path = |long: &str| args.text(long).map(PathBuf::from);
    let mut options = BucketOptions::default();
    options.endpoint = args.text("endpoint").map(str::to_owned);
    options.region = args.text("region").map(str::to_owned);
    options.credentials = path("credentials");
    options.flush = match args.text("flush") {
        Some("local") => Flush::Local,
        _ => Flush::Remote,
    };
    options.cache = path("cache");
    options.cache_bytes = args.bytes("cache-size");
    Ok(options)
}

/// Fails where an option for a bucket was given for a directory.
fn refuse_bucket_options(args: &Args) -> Outcome {
    match BUCKET.iter().find(|option| args.text(option.long).is_some()) {
        None => Ok(()),
        Some(option) => Err(Failure::invalid(format!(
            "--{} is for pools in buckets (--backend s3://BUCKET/PREFIX)",
            option.long
        ))),
    }
}

fn list(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let client = session.client()?;
    let names = client.pools()?;
    if !args.flag("long") {
        let plain = || names.iter().map(|name| line(name)).collect();
        let document = || Node::array("name", names.iter().map(|name| name.as_str().into()));
        return format.print(plain, || ("pools", document()));
    }
    let mut rows = Vec::new();
    for name in names {
        // One pool that cannot be opened must not hide the others.
        let (access, directory) = match client.pool(&name) {
            Ok(pool) => {
                let access = if pool.read_only() { "read-only" } else { "read-write" };
                (access.to_string(), pool.place().to_string())
            }
            Err(error) => ("unusable".to_string(), error.sentence().to_string()),
        };
        rows.push([name, access, directory]);
    }
    let plain = || {
        let mut table = Table::new()
            .column("NAME", Align::Left)
            .column("ACCESS", Align::Left)
            .column("DIRECTORY", Align::Left);
        rows.iter().for_each(|row| table.row(row.to_vec()));
        table.render()
    };
    let node = |[name, access, directory]: &[String; 3]| {
        Node::Object(vec![
            ("name", name.as_str().into()),
            ("access", access.as_str().into()),
            ("directory", directory.as_str().into()),
        ])
    };
    format.print(plain, || ("pools", Node::array("pool", rows.iter().map(node))))
}

fn remove(session: &Session, args: &Args) -> Outcome {
    let name = named(args)?;
    session.client()?.remove_pool(name).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::engine(format!("error opening pool '{name}'"), &error),
        _ => Failure::engine(format!("error removing pool '{name}'"), &error),
    })
}

fn init(session: &Session, args: &Args) -> Outcome {
    // As with `rbd`, a slash is a part of the name, and so there is no such pool.
    let name = names::pool_word(args).unwrap_or(DEFAULT_POOL);
    session.pool(name)?;
    session
        .client()?
        .init_pool(name)
        .map_err(|error| Failure::engine(format!("error initializing pool '{name}'"), &error))
}

fn stats(session: &Session, args: &Args) -> Outcome {
    let target = names::pool_target(args)?;
    let format = args.format()?;
    let pool = session.pool_of(&target)?;
    let stats = pool.namespace_stats(&target.namespace())?;
    let long = args.flag("long");
    let plain = || {
        let (named, trash) = (&stats.named, &stats.trash);
        let mut text = String::new();
        let mut row = |what: &str, show: &dyn Fn(&ImageSums) -> String| {
            let in_trash = if trash.images > 0 {
                format!(" ({} in trash)", show(trash))
            } else {
                String::new()
            };
            text.push_str(&line(&format!("{what}: {}{in_trash}", show(named))));
        };
        row("Total Images", &|sums| sums.images.to_string());
        row("Total Snapshots", &|sums| sums.snapshots.to_string());
        row("Provisioned Size", &|sums| size::show(sums.provisioned_bytes));
        if long {
            text.push_str(&format!(
                "Stored Size: {}\nFree Size: {}\n",
                size::show(stats.allocated_bytes),
                size::show(stats.free_bytes)
            ));
            text.push_str(&show_levels(&pool.levels()));
            if let Some(requests) = &stats.requests {
                text.push_str(&show_requests(requests));
                text.push_str(&show_image_requests(&stats.image_requests));
            }
        }
        text
    };
    let counts = |sums: &ImageSums| {
        Node::Object(vec![
            ("count", sums.images.into()),
            ("provisioned_bytes", sums.provisioned_bytes.into()),
            ("snap_count", sums.snapshots.into()),
        ])
    };
    let document = || {
        let mut members = vec![("images", counts(&stats.named)), ("trash", counts(&stats.trash))];
        if long {
            members.push(("stored_bytes", stats.allocated_bytes.into()));
            members.push(("free_bytes", stats.free_bytes.into()));
            members.push(("levels", levels_node(&pool.levels())));
            if let Some(requests) = &stats.requests {
                members.push(("requests", requests_node(requests)));
                let images = stats.image_requests.iter();
                let images = images.map(|(name, requests)| named_requests_node(name, requests));
                members.push(("image_requests", Node::array("image", images)));
            }
        }
        ("stats", Node::Object(members))
    };
    format.print(plain, document)
}

fn show_levels(levels: &Levels) -> String {
    let Levels { read, write, known, .. } = levels;
    format!("Format Level: {read} to read, {write} to write; this program knows {known}\n")
}

/// The levels of the format that a pool requires, and the one that this program knows.
pub(super) fn levels_node(levels: &Levels) -> Node {
    Node::Object(vec![
        ("read", u64::from(levels.read).into()),
        ("write", u64::from(levels.write).into()),
        ("known", u64::from(levels.known).into()),
    ])
}

/// List prices of S3 in us-east-1, standard class, in millionths of a US dollar for a request, as in
/// docs/scale.md. DELETE costs nothing.
const PUT_OR_LIST_MICRO_USD: f64 = 5.0;
const GET_MICRO_USD: f64 = 0.4;

/// Images whose requests `pool stats -l` shows.
const IMAGES_SHOWN_MAX: usize = 20;

/// What requests cost in US dollars, by the list prices of S3.
fn cost_usd(requests: &Requests) -> f64 {
    let many = (requests.puts + requests.lists) as f64 * PUT_OR_LIST_MICRO_USD;
    (many + requests.gets as f64 * GET_MICRO_USD) / 1e6
}

fn show_requests(requests: &Requests) -> String {
    let Requests { puts, gets, lists, removes, sent_bytes, received_bytes } = requests;
    format!(
        "Requests of This Host: {} ({puts} PUT, {gets} GET, {lists} LIST, {removes} DELETE)\n\
         Sent Size: {}\nReceived Size: {}\nCost at S3's List Price: {:.4} USD\n",
        requests.total(),
        size::show(*sent_bytes),
        size::show(*received_bytes),
        cost_usd(requests)
    )
}

/// The images with the most requests. All of them are in the documents.
fn show_image_requests(images: &[(String, Requests)]) -> String {
    if images.is_empty() {
        return String::new();
    }
    let mut most: Vec<&(String, Requests)> = images.iter().collect();
    most.sort_by_key(|(_, requests)| std::cmp::Reverse(requests.total()));
    let mut table = Table::new().column("IMAGE", Align::Left);
    for header in ["PUT", "GET", "LIST", "DELETE", "SENT", "RECEIVED", "USD"] {
        table = table.column(header, Align::Right);
    }
    for (name, requests) in most.iter().take(IMAGES_SHOWN_MAX) {
        let Requests { puts, gets, lists, removes, sent_bytes, received_bytes } = requests;
        let mut cells = vec![name.clone()];
        cells.extend([puts, gets, lists, removes].map(u64::to_string));
        cells.extend([sent_bytes, received_bytes].map(|bytes| size::show(*bytes)));
        cells.push(format!("{:.4}", cost_usd(requests)));
        table.row(cells);
    }
    let left = match images.len().saturating_sub(IMAGES_SHOWN_MAX) {
        0 => String::new(),
        left => format!("and {left} images with fewer requests; '--format json' has all\n"),
    };
    table.render() + &left
}

fn requests_node(requests: &Requests) -> Node {
    Node::Object(request_members(requests))
}

fn named_requests_node(name: &str, requests: &Requests) -> Node {
    let mut members = vec![("name", name.into())];
    members.extend(request_members(requests));
    Node::Object(members)
}

fn request_members(requests: &Requests) -> Vec<(&'static str, Node)> {
    vec![
        ("put", requests.puts.into()),
        ("get", requests.gets.into()),
        ("list", requests.lists.into()),
        ("delete", requests.removes.into()),
        ("sent_bytes", requests.sent_bytes.into()),
        ("received_bytes", requests.received_bytes.into()),
        ("cost_usd", Node::Fraction(cost_usd(requests))),
    ]
}

fn attach(session: &Session, args: &Args) -> Outcome {
    let name = named(args)?;
    let place = args.require("backend")?;
    let attached = match is_url(place) {
        true => session.client()?.attach_bucket(name, place, &bucket_options(args)?),
        false => {
            refuse_bucket_options(args)?;
            session.client()?.attach_pool(name, Path::new(place))
        }
    };
    attached
        .map(drop)
        .map_err(|error| Failure::engine(format!("error attaching pool '{name}'"), &error))
}

/// Raises the levels of the format that programs must know. Without options: what this program knows, to write.
fn require(session: &Session, args: &Args) -> Outcome {
    let name = named(args)?;
    let level = |long: &str| args.integer(long).and_then(|level| u32::try_from(level).ok());
    let pool = session.pool(name)?;
    let (read, mut write) = (level("read-level"), level("write-level"));
    if read.is_none() && write.is_none() {
        write = Some(pool.levels().known);
    }
    pool.require_levels(read, write)
        .map_err(|error| Failure::engine(format!("error changing pool '{name}'"), &error))
}

fn detach(session: &Session, args: &Args) -> Outcome {
    let name = named(args)?;
    if name == DEFAULT_POOL {
        session.pool(name)?;
    }
    session
        .client()?
        .detach_pool(name)
        .map_err(|error| Failure::engine(format!("error detaching pool '{name}'"), &error))
}

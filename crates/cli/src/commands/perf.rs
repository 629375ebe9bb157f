//! `perf image iostat` and `perf image iotop`: what the users of images do.

mod rates;
mod screen;

use std::time::{Duration, Instant};

use marcot::ErrorKind;
use marcot_client::perf::{ImageRates, IoWatch, Watched};

use super::POOL_SPEC;
use crate::args::names;
use crate::args::{Args, CommandSpec, Kind, Opt, options, parse};
use crate::errno::{ENOENT, ENOTTY};
use crate::failure::{Failure, Outcome, strerror};
use crate::output::{Align, Format, Node, Table, err, out};
use crate::session::{self, Session};
use crate::signals;
use rates::Column;
use screen::{Key, Screen};

/// The time between two lists, as with `rbd`.
const PERIOD: Duration = Duration::from_secs(5);
/// The time before the first list, and between two looks while there is nothing to show.
const FIRST_PERIOD: Duration = Duration::from_secs(1);
/// The time between two pictures of the live screen.
const REFRESH: Duration = Duration::from_secs(1);

const IOSTAT: &[Opt] = &[
    Opt::new("iterations", Kind::Integer, "iterations of metric collection [> 0]"),
    Opt::new(
        "sort-by",
        Kind::Choice(&Column::WORDS),
        "sort-by IO metric (write-ops, read-ops, write-bytes, read-bytes, write-latency, read-latency) [default: \
         write-ops]",
    )
    .with_default("write_ops"),
];

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["perf", "image", "iostat"], "Display image IO statistics.", iostat)
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE, IOSTAT, options::FORMAT])
        .examples(&[
            ("perf image iostat rbd", "every five seconds, the images that are used"),
            ("perf image iostat --iterations 1 --format json", "of all pools, once"),
        ]),
    CommandSpec::new(&["perf", "image", "iotop"], "Display a top-like IO monitor.", iotop)
        .positionals(&[POOL_SPEC])
        .options(&[options::POOL_AND_NAMESPACE])
        .examples(&[("perf image iotop", "'<' and '>' choose the column to sort by, 'q' ends")]),
];

/// Which images a command line means, as `rbd`'s words say it, and the watch.
fn watch(session: &Session, args: &Args) -> Outcome<(Watched, IoWatch)> {
    let target = names::pool_target(args)?;
    let named = |name: &str| (!name.is_empty()).then(|| name.to_string());
    let (pool, namespace) = (named(&target.pool), named(&target.namespace));
    // A namespace alone is one of the default pool.
    let pool = pool.or(namespace.as_ref().map(|_| target.pool_or_default().to_string()));
    let client = session.client()?;
    if let Some(name) = &pool {
        let missing = || {
            let (status, text) = (ENOENT, strerror(ENOENT));
            let why = format!("[errno {status}] RADOS object not found (Pool '{name}' not found)");
            Failure::new(ENOENT, format!("mgr command failed: ({status}) {text}: {why}"))
        };
        let found = client.pool(name).map_err(|error| match error.kind() {
            ErrorKind::NotFound => missing(),
            _ => Failure::engine(format!("error opening pool '{name}'"), &error),
        })?;
        session::require_namespace(&found, &target.namespace())?;
    }
    let watched = Watched { pool, namespace };
    Ok((watched.clone(), client.watch_io(watched)))
}

fn sorted(mut rates: Vec<ImageRates>, column: Column) -> Vec<ImageRates> {
    let name = |r: &ImageRates| (r.pool.clone(), r.namespace.clone(), r.image.clone());
    rates.sort_by(|a, b| column.of(b).total_cmp(&column.of(a)).then_with(|| name(a).cmp(&name(b))));
    rates
}

/// What an image is called in the lists: without the pool where the command line has named it.
fn shown_name(watched: &Watched, rates: &ImageRates) -> String {
    let mut name = String::new();
    if watched.pool.is_none() {
        name = format!("{}/", rates.pool);
    }
    if !rates.namespace.is_empty() {
        name.push_str(&format!("{}/", rates.namespace));
    }
    name + &rates.image
}

/// Waits; false where a signal has come.
fn waited(period: Duration) -> bool {
    let until = Instant::now() + period;
    signals::wait(|| Instant::now() >= until);
    Instant::now() >= until
}

/// The rates since the last look; `None` where a signal has come meanwhile, which ends the command.
fn looked(watch: &mut IoWatch) -> Outcome<Option<Vec<ImageRates>>> {
    match watch.rates() {
        Ok(rates) => Ok(Some(rates)),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn iostat(session: &Session, args: &Args) -> Outcome {
    let format = args.format()?;
    let mut left = args.integer("iterations");
    if left == Some(0) {
        return Err(parse::invalid_argument("iterations"));
    }
    let column = args.text("sort-by").and_then(Column::named).unwrap_or_default();
    let (watched, mut watch) = watch(session, args)?;
    signals::catch_and_watch();
    looked(&mut watch)?;
    let mut period = FIRST_PERIOD;
    let mut told = false;
    while left != Some(0) && waited(period) {
        let Some(rates) = looked(&mut watch)? else { break };
        let rates = sorted(rates, column);
        if rates.is_empty() {
            if !std::mem::replace(&mut told, true) {
                err(&format!("{}: waiting for initial image stats\n\n", session.program));
            }
            period = FIRST_PERIOD;
            continue;
        }
        print(format, &watched, &rates)?;
        (left, period, told) = (left.map(|left| left - 1), PERIOD, true);
    }
    Ok(())
}

fn print(format: Format, watched: &Watched, rates: &[ImageRates]) -> Outcome {
    match format {
        // Each list ends with an empty line.
        Format::Plain => out(&format!("{}\n", table(watched, rates))),
        _ => format.print(String::new, || {
            let nodes = Node::array("image", rates.iter().map(node));
            ("images", nodes)
        }),
    }
}

fn table(watched: &Watched, rates: &[ImageRates]) -> String {
    let columns = ["WR ", "RD ", "WR_BYTES ", "RD_BYTES ", "WR_LAT ", "RD_LAT "];
    let mut table = Table::new().column("NAME", Align::Left);
    for name in columns {
        table = table.column_aligned(name, Align::Right, Align::Right);
    }
    for image in rates {
        let cells = Column::ALL.map(|column| format!("{} ", column.text(image)));
        table.row(std::iter::once(shown_name(watched, image)).chain(cells).collect());
    }
    table.render()
}

fn node(image: &ImageRates) -> Node {
    let mut members: Vec<(&'static str, Node)> = vec![
        ("pool", image.pool.as_str().into()),
        ("pool_namespace", image.namespace.as_str().into()),
        ("image", image.image.as_str().into()),
    ];
    let number = |column: Column| (column.key(), Node::Fraction17(column.of(image)));
    members.extend(Column::ALL.map(number));
    Node::Object(members)
}

fn iotop(session: &Session, args: &Args) -> Outcome {
    let (watched, mut watch) = watch(session, args)?;
    if !Screen::is_there() {
        let instead = "'perf image iostat' prints the same as lists";
        return Err(Failure::new(ENOTTY, "perf image iotop needs a terminal").because(instead));
    }
    signals::catch_and_watch();
    looked(&mut watch)?;
    let failed = |error: std::io::Error| Failure::io("error using the terminal", &error);
    let mut screen = Screen::open().map_err(failed)?;
    let (mut column, mut rates, mut known) = (Column::default(), Vec::new(), false);
    let mut next = Instant::now() + REFRESH;
    loop {
        let picture = |columns| picture(&watched, &rates, column, known, columns);
        screen.draw(picture).map_err(failed)?;
        let left = next.saturating_duration_since(Instant::now());
        match screen.key(left).map_err(failed)? {
            Key::Quit => return Ok(()),
            Key::Left => column = column.before(),
            Key::Right => column = column.after(),
            Key::None if Instant::now() >= next => {
                let Some(next_rates) = looked(&mut watch)? else { return Ok(()) };
                rates = next_rates;
                known |= !rates.is_empty();
                next = Instant::now() + REFRESH;
            }
            Key::None | Key::Other => {}
        }
        rates = sorted(rates, column);
    }
}

/// From this width on, the screen has `rbd`'s columns and room for names.
const WIDE_COLUMNS_MIN: usize = 110;

/// The lines of a screen of a width; the first is the header.
fn picture(
    watched: &Watched,
    rates: &[ImageRates],
    column: Column,
    known: bool,
    screen_columns: usize,
) -> Vec<String> {
    let wide = screen_columns >= WIDE_COLUMNS_MIN;
    let width = if wide { 12 } else { 9 };
    let header = |of: Column| {
        let mark = if of == column { ">" } else { "" };
        format!("{:>width$} ", format!("{mark}{}", of.header(wide)))
    };
    let mut lines = vec![Column::ALL.map(header).concat() + "IMAGE"];
    if !known {
        lines.extend(["".to_string(), "  Waiting for initial stats".to_string()]);
    }
    for image in rates {
        let cell = |of: Column| format!("{:>width$} ", of.text(image));
        lines.push(Column::ALL.map(cell).concat() + &shown_name(watched, image));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use marcot_client::perf::Rate;

    fn image(name: &str, writes: f64, reads: f64) -> ImageRates {
        let rate = |requests: f64| {
            let bytes = requests * 4096.0;
            let latency_ns = if requests > 0.0 { 812_890.0 } else { 0.0 };
            Rate { requests, bytes, latency_ns }
        };
        let (pool, namespace) = ("rbd".to_string(), String::new());
        ImageRates {
            pool,
            namespace,
            image: name.to_string(),
            writes: rate(writes),
            reads: rate(reads),
        }
    }

    /// As RBD 16.2.15 printed it.
    #[test]
    fn the_table_is_rbds() {
        let mut x = image("x", 4620.4, 0.0);
        x.writes.bytes = 18.0 * 1048576.0;
        let watched = Watched { pool: Some("rbd".to_string()), namespace: None };
        assert_eq!(
            table(&watched, &[x]),
            "NAME       WR    RD   WR_BYTES   RD_BYTES      WR_LAT    RD_LAT \n\
             x     4.62k/s   0/s   18 MiB/s      0 B/s   812.89 us   0.00 ns \n"
        );
    }

    #[test]
    fn the_busiest_by_the_chosen_column_comes_first() {
        let names = |column| {
            let rates = vec![image("a", 1.0, 9.0), image("b", 2.0, 0.0), image("c", 2.0, 5.0)];
            sorted(rates, column).into_iter().map(|r| r.image).collect::<String>()
        };
        assert_eq!(names(Column::WriteOps), "bca");
        assert_eq!(names(Column::ReadOps), "acb");
    }

    #[test]
    fn the_screen_marks_the_column_and_names_pools_where_there_are_several() {
        let shown = |columns| {
            picture(&Watched::default(), &[image("a", 1.0, 0.0)], Column::ReadOps, true, columns)
        };
        assert_eq!(
            shown(120)[0],
            "  WRITES OPS   >READS OPS  WRITE BYTES   READ BYTES    WRITE LAT     READ LAT IMAGE"
        );
        let narrow = shown(80);
        let header = "   WRITES    >READS  WR BYTES  RD BYTES    WR LAT    RD LAT IMAGE";
        assert_eq!(narrow[0], header);
        assert_eq!(narrow[1], "      1/s       0/s   4 KiB/s     0 B/s 812.89 us   0.00 ns rbd/a");
    }
}

//! The server as a program, for scripts. It prints its URL in one line and serves until it is killed.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use marcot_s3_test::{ACCESS_KEY, BUCKET, Chance, Dialect, Options, SECRET_KEY, Server};

const USAGE: &str = "\
usage: marcot-s3-test [--address ADDRESS] [--port PORT] [--bucket NAME]... [--reader KEY=PART]...
                      [--region REGION] [--public yes] [--seed SEED --faults PER_MILLE] [--lack WHAT]...

Serves S3 from memory, at the loopback address unless another is given. It prints its URL in one line.
WHAT is what the service lacks: quoted-etags, if-none-match, if-match, swap-existing, lock, fresh-reads,
fresh-lists, ranges, fast-changes.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("marcot-s3-test: {sentence}\n{USAGE}");
            ExitCode::from(22)
        }
    }
}

fn run() -> Result<(), String> {
    let mut options = Options { buckets: Vec::new(), ..Options::default() };
    let (mut seed, mut per_mille) = (1, 0);
    let (mut slow_per_mille, mut slow) = (0, Duration::from_secs(5));
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--help" {
            println!("{USAGE}");
            return Ok(());
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("'{value}' is no number"));
        match word.as_str() {
            "--address" => {
                let address = value.parse::<IpAddr>();
                options.address = address.map_err(|_| format!("'{value}' is no address"))?;
            }
            "--port" => options.port = u16::try_from(number()?).map_err(|_| "no such port")?,
            "--bucket" => options.buckets.push(value),
            "--reader" => {
                let (key, part) = value.split_once('=').ok_or("--reader needs KEY=PART")?;
                options.readers.push((key.to_string(), part.to_string()));
            }
            "--public" => options.public = value == "yes",
            "--region" => options.region = Some(value),
            "--seed" => seed = number()?,
            "--faults" => per_mille = number()?,
            "--slow" => slow_per_mille = number()?,
            "--slow-ms" => slow = Duration::from_millis(number()?),
            "--lack" => lack(&mut options.dialect, &value)?,
            _ => return Err(format!("'{word}' is not known")),
        }
    }
    if options.buckets.is_empty() {
        options.buckets.push(BUCKET.to_string());
    }
    let server = Server::start(options);
    if per_mille > 0 {
        server.set_chance(Some(Chance::new(seed, per_mille)));
    } else if slow_per_mille > 0 {
        server.set_chance(Some(Chance::slow(seed, slow_per_mille, slow)));
    }
    println!("{}", server.url());
    eprintln!("AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}");
    server.wait();
    Ok(())
}

fn lack(dialect: &mut Dialect, what: &str) -> Result<(), String> {
    match what {
        "quoted-etags" => dialect.bare_etags = true,
        "if-none-match" => dialect.ignores_if_none_match = true,
        "if-match" => dialect.ignores_if_match = true,
        "swap-existing" => dialect.swap_creates = true,
        "lock" => dialect.unlocked = Some(Duration::from_millis(5)),
        "fresh-reads" => dialect.stale_reads = true,
        "fresh-lists" => dialect.stale_lists = 3,
        "ranges" => dialect.no_ranges = true,
        "fast-changes" => dialect.change_interval = Some(Duration::from_secs(1)),
        _ => return Err(format!("'{what}' is nothing that a service can lack")),
    }
    Ok(())
}

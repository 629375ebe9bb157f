//! Tries a service by hand: what the probe finds, how many requests it takes, and whether objects of several
//! sizes come back as they were.
//!
//! ```text
//! cargo run -p marcot-backend --example probe_bucket -- s3://bucket/prefix [ENDPOINT [REGION [CREDENTIALS]]]
//! ```

use std::io;
use std::path::Path;
use std::process::ExitCode;

use marcot_backend::object::{CreateError, Environment, Location, Policy, connect};
use marcot_store::World;

/// Sizes of objects: nothing, a record, a segment.
const SIZES: [usize; 3] = [0, 4096, 32 << 20];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe_bucket: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(url) = words.first() else {
        return Err(io::Error::other("the URL of a bucket is missing"));
    };
    let mut location = Location::parse(url)?;
    if let Some(endpoint) = words.get(1) {
        location = location.with_endpoint(endpoint)?;
    }
    if let Some(region) = words.get(2) {
        location = location.with_region(region)?;
    }
    if let Some(path) = words.get(3) {
        location = location.with_credentials(Path::new(path))?;
    }
    let location = location.completed(&Environment::of_process())?;
    println!("{location} at {:?} in {:?}", location.endpoint(), location.region());
    let world = World::system();
    let connection = connect(&location, &world)?;
    let found = connection.probe(Policy::command()).map_err(io::Error::other)?;
    println!("{found:?}, with {:?}", connection.counts().now());
    let settled = connection.settled(Policy::command());
    for size in SIZES {
        let key = format!("probe/{:016x}", world.random.number());
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        settled.create(&key, &bytes).map_err(|error| match error {
            CreateError::Exists(_) => io::Error::other("the object is there already"),
            CreateError::Service(error) => error.into(),
        })?;
        let same = settled.get(&key)?.is_some_and(|object| object.bytes == bytes);
        settled.remove(&key)?;
        println!("an object of {size} bytes: {}", if same { "as it was" } else { "CHANGED" });
    }
    println!("left below the prefix: {}", settled.list_all("")?.len());
    Ok(())
}

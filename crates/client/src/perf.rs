//! What the users of images do, as rates: for `perf image iostat` and `iotop`.
//!
//! The process that has an image open for writing counts its clients' requests. [`IoWatch`] asks these processes
//! again and again, and tells what has come between two times. Images that are only read, and those that another
//! host or another user has open, are not seen.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use marcot::{ErrorKind, ImageId, Namespace, PoolId, Result};

use crate::client::Client;
use crate::image::Image;
use crate::inspect::{IoCount, IoCounts};
use crate::pool::Pool;

/// How often it is looked for images that somebody has opened meanwhile. That costs a look for each image.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Which images to watch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watched {
    /// Those of this pool; `None`: of all pools.
    pub pool: Option<String>,
    /// Those of this namespace of the pool; `None`: of all namespaces.
    pub namespace: Option<String>,
}

/// Requests of one kind, as rates.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Requests per second.
    pub requests: f64,
    /// Bytes per second.
    pub bytes: f64,
    /// The time that one request took on average, in nanoseconds.
    pub latency_ns: f64,
}

/// What the users of an image did between two times.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRates {
    /// Its pool.
    pub pool: String,
    /// Its namespace; empty for the default one.
    pub namespace: String,
    /// Its name.
    pub image: String,
    /// Writes and trims.
    pub writes: Rate,
    /// Reads.
    pub reads: Rate,
}

/// What is known of an image that somebody has open.
struct Seen {
    image: Image,
    namespace: String,
    counts: IoCounts,
    at: Instant,
}

/// Watches images.
pub struct IoWatch {
    client: Client,
    watched: Watched,
    seen: HashMap<(PoolId, ImageId), Seen>,
    looked: Option<Instant>,
}

impl Client {
    /// Begins to watch images.
    #[must_use]
    pub fn watch_io(&self, watched: Watched) -> IoWatch {
        IoWatch { client: self.clone(), watched, seen: HashMap::new(), looked: None }
    }
}

impl IoWatch {
    /// What has been done since the last call, in no order: images without a request are left out. The first call
    /// only begins to count.
    ///
    /// # Errors
    /// `NotFound` for the pool; `Interrupted`; errors of the operating system.
    pub fn rates(&mut self) -> Result<Vec<ImageRates>> {
        let mut rates = Vec::new();
        let keys: Vec<_> = self.seen.keys().copied().collect();
        for key in keys {
            let Some(seen) = self.seen.get_mut(&key) else { continue };
            match seen.image.io_counts() {
                Ok(Some(counts)) => rates.extend(seen.since(counts)),
                Ok(None) => drop(self.seen.remove(&key)),
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(_) => drop(self.seen.remove(&key)),
            }
        }
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL) {
            self.look()?;
            self.looked = Some(Instant::now());
        }
        Ok(rates)
    }

    /// Looks for images that somebody has open.
    fn look(&mut self) -> Result<()> {
        let Some(name) = self.watched.pool.clone() else {
            for name in self.client.pools()? {
                // A pool that cannot be read is no reason to see nothing of the others.
                if let Ok(pool) = self.client.pool(&name) {
                    self.look_in(&pool).or_else(unless_interrupted)?;
                }
            }
            return Ok(());
        };
        let pool = self.client.pool(&name)?;
        self.look_in(&pool)
    }

    fn look_in(&mut self, pool: &Pool) -> Result<()> {
        let namespaces = match &self.watched.namespace {
            Some(namespace) => vec![namespace.clone()],
            None => std::iter::once(String::new()).chain(pool.namespaces()?).collect(),
        };
        for namespace in namespaces {
            let place = Namespace::named(namespace.as_str());
            for (name, id) in pool.images(&place)? {
                let key = (pool.id(), id);
                let name = marcot::ImageName::new(name).in_namespace(&place);
                let image = pool.known_image(name, id);
                if let Some(seen) = self.seen.get_mut(&key) {
                    // It may have another name now.
                    seen.image = image;
                } else if let Some(counts) = image.io_counts()? {
                    let namespace = namespace.clone();
                    let seen = Seen { image, namespace, counts, at: Instant::now() };
                    self.seen.insert(key, seen);
                }
            }
        }
        Ok(())
    }
}

fn unless_interrupted(error: marcot::Error) -> Result<()> {
    if error.kind() == ErrorKind::Interrupted { Err(error) } else { Ok(()) }
}

impl Seen {
    /// What has been done since the last counts; these are the next ones.
    fn since(&mut self, counts: IoCounts) -> Option<ImageRates> {
        let (before, seconds) = (self.counts, self.at.elapsed().as_secs_f64());
        (self.counts, self.at) = (counts, Instant::now());
        let writes = rate(before.writes, counts.writes, seconds)?;
        let reads = rate(before.reads, counts.reads, seconds)?;
        if writes == Rate::default() && reads == Rate::default() {
            return None;
        }
        let name = self.image.name();
        let (pool, image) = (self.image.pool().name().to_owned(), name.name().to_owned());
        Some(ImageRates { pool, namespace: self.namespace.clone(), image, writes, reads })
    }
}

/// `None` where the counts have begun anew: somebody else has the image open.
fn rate(before: IoCount, now: IoCount, seconds: f64) -> Option<Rate> {
    let requests = now.requests.checked_sub(before.requests)? as f64;
    let bytes = now.bytes.checked_sub(before.bytes)? as f64;
    let nanoseconds = now.nanoseconds.checked_sub(before.nanoseconds)? as f64;
    if seconds <= 0.0 {
        return Some(Rate::default());
    }
    let latency_ns = if requests > 0.0 { nanoseconds / requests } else { 0.0 };
    Some(Rate { requests: requests / seconds, bytes: bytes / seconds, latency_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_came_in_between_and_counts_that_begin_anew_give_none() {
        let before = IoCount { requests: 10, bytes: 4096, nanoseconds: 500 };
        let now = IoCount { requests: 30, bytes: 8192, nanoseconds: 4500 };
        let expected = Rate { requests: 10.0, bytes: 2048.0, latency_ns: 200.0 };
        assert_eq!(rate(before, now, 2.0), Some(expected));
        assert_eq!(rate(now, before, 2.0), None);
        assert_eq!(rate(now, now, 2.0), Some(Rate::default()));
    }
}

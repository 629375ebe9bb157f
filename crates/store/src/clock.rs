//! The engine's sources of time and random numbers.

use std::time::Duration;

/// Time.
pub trait Clock: Send + Sync {
    /// Seconds since 1970.
    fn now_s(&self) -> i64;

    /// The time since some fixed moment. It never goes back, whoever sets the time of day.
    fn uptime(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.now_s()).unwrap_or_default())
    }

    /// Waits before something is tried again.
    fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// Random numbers, for names that must be unique.
pub trait Random: Send + Sync {
    /// A random number, never 0.
    fn number(&self) -> u64;
}

/// The operating system's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where time comes in")]
    fn now_s(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
    }

    fn uptime(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::try_from(now).unwrap_or_default()
    }
}

/// The operating system's random numbers.
pub struct SystemRandom;

impl Random for SystemRandom {
    fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        loop {
            let flags = rustix::rand::GetRandomFlags::empty();
            let filled = rustix::rand::getrandom(&mut bytes, flags);
            let number = u64::from_ne_bytes(bytes);
            if filled == Ok(bytes.len()) && number != 0 {
                return number;
            }
        }
    }
}

//! Random numbers from a seed: for the simulator's choices, and for the engine.

use std::sync::Mutex;
use std::sync::PoisonError;

use marcot_store::Random;

/// A small generator (splitmix64). The same seed always gives the same numbers.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator for a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for one use of a seed.
    #[must_use]
    pub fn with(seed: u64, purpose: u64) -> Self {
        let mut rng = Self(seed ^ purpose.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        rng.draw();
        rng
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.draw() % limit }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The engine's random numbers.
pub struct SimRandom(Mutex<Rng>);

impl SimRandom {
    /// The random numbers of one life of a simulated process.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self(Mutex::new(rng))
    }
}

impl Random for SimRandom {
    fn number(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).draw().max(1)
    }
}

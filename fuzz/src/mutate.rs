//! Changes of inputs that a seed decides: what a fuzzer does that knows nothing of the program.

/// The same seed always gives the same numbers.
#[derive(Debug, Clone)]
pub struct Random(fastrand::Rng);

/// Numbers that decoders stumble over.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x0100_0000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];

/// Most changes of one input.
const CHANGES_MAX: u64 = 6;
/// Longest input that is made; the structures that cannot be longer are a few KiB.
const INPUT_BYTES_MAX: usize = 80 << 10;

impl Random {
    /// Begins with a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.number() % limit as u64) as usize }
    }
}

/// An input made of those of a corpus.
pub fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    for _ in 0..=random.number() % CHANGES_MAX {
        change(&mut input, corpus, random);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len());
    let length = random.below(input.len() - at.min(input.len())).min(256);
    match random.below(9) {
        0 | 1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        2 if !input.is_empty() => input[at] = random.number() as u8,
        3 => {
            // A number at the edge, of any width, in either order of bytes.
            let number = EDGES[random.below(EDGES.len())];
            let mut bytes = number.to_le_bytes()[..1 << random.below(4)].to_vec();
            if random.below(2) == 0 {
                bytes.reverse();
            }
            for (i, byte) in bytes.into_iter().enumerate() {
                if let Some(place) = input.get_mut(at + i) {
                    *place = byte;
                }
            }
        }
        4 => input.truncate(at),
        5 => {
            let piece = input[at..at + length].to_vec();
            let place = random.below(input.len());
            input.splice(place..place, piece);
        }
        6 => drop(input.drain(at..at + length)),
        7 => {
            let other = &corpus[random.below(corpus.len())];
            input.truncate(at);
            input.extend_from_slice(&other[random.below(other.len())..]);
        }
        _ => {
            let bytes: Vec<u8> = (0..=length).map(|_| random.number() as u8).collect();
            input.splice(at..at, bytes);
        }
    }
}

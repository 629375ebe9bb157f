//! What a shell offers behind the cursor: words of commands, options and their values, and the names of pools,
//! namespaces, images, snapshots and groups, as they are at this moment.
//!
//! The scripts of the shells call `complete` with the words of the line. It never says anything but candidates: where
//! the store cannot be read, or not in time, there are none.

mod line;
mod names;
mod scripts;

use std::sync::mpsc;
use std::time::Duration;

use crate::args::model::Commands;
use crate::session::Session;

pub use scripts::script;

/// Nobody waits longer for a list behind the cursor. Names in a bucket may take that long.
const TIME_MAX: Duration = Duration::from_millis(1500);
/// More candidates than this help nobody.
const CANDIDATES_MAX: usize = 1000;

/// The candidates for the last of `words`, which may be empty. The program's name is not among the words.
pub fn candidates(commands: Commands, program: &'static str, words: &[String]) -> Vec<String> {
    let Some(wanted) = line::wanted(commands, words) else { return Vec::new() };
    let (sender, receiver) = mpsc::channel();
    let store = wanted.store.clone();
    let prefix = wanted.prefix.clone();
    let given_up = wanted.fixed.clone();
    std::thread::spawn(move || {
        let session = Session::new(program, store.as_deref(), true);
        let mut all = wanted.fixed.clone();
        all.extend(names::of(&session, &wanted));
        let _ = sender.send(all);
    });
    let mut found = receiver.recv_timeout(TIME_MAX).unwrap_or(given_up);
    found.retain(|candidate| candidate.starts_with(&prefix) && is_plain(candidate));
    found.sort_unstable();
    found.dedup();
    found.truncate(CANDIDATES_MAX);
    found
}

/// True for a word that every shell takes as it is. Others would have to be quoted, in each shell in its own way, and
/// a name that another user has chosen must not become a command.
fn is_plain(word: &str) -> bool {
    word.chars().all(|c| c.is_alphanumeric() || "-_./@=+:,%".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_shell_would_interpret_are_left_out() {
        for word in ["a b", "$(reboot)", "`x`", "a;b", "a'b", "a\nb", "a\u{1b}", "*", "~"] {
            assert!(!is_plain(word), "{word:?}");
        }
        for word in ["rbd/ns/vm-1@s.1", "--format=json", "größe"] {
            assert!(is_plain(word), "{word:?}");
        }
    }
}

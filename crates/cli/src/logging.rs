//! Log lines of long-running commands, on standard error. `MARCOT_LOG` chooses what is shown.
//!
//! What clients say and what others have named may be in them, so control characters are escaped:
//! nobody writes a line of his own, or to the terminal.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

/// Names what is logged, such as `debug` or `marcot_serve=trace`.
const LOG_VARIABLE: &str = "MARCOT_LOG";
const LOG_DEFAULT: &str = "info";

/// Starts logging; later calls change nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE)
        .or_else(|_| EnvFilter::try_new(LOG_DEFAULT))
        .unwrap_or_default();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Escaping(io::stderr()))
        .with_ansi(false)
        .try_init();
}

/// Writes lines, of which each comes whole, with control characters escaped.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(escape(line).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(line: &[u8]) -> String {
    let (text, end) = match line.strip_suffix(b"\n") {
        Some(text) => (text, "\n"),
        None => (line, ""),
    };
    let mut escaped = String::with_capacity(line.len());
    for character in String::from_utf8_lossy(text).chars() {
        match character.is_control() {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_says_nothing_to_the_terminal() {
        let line = "INFO refused \x1b[2J\n2026-01-01 forged \u{9b}31m \u{fc}\n";
        let want = "INFO refused \\u{1b}[2J\\n2026-01-01 forged \\u{9b}31m \u{fc}\n";
        assert_eq!(escape(line.as_bytes()), want);
    }
}

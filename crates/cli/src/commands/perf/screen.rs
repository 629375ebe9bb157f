//! A full screen of a terminal, with single keys. What was there before comes back at the end.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use marcot::printable::printable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
};

use crate::signals;

/// Other screen, cursor hidden.
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
/// The same back.
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
/// Black on white, and back.
const REVERSE: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[0m";
/// The rest of the line, and all below.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// For terminals that do not tell.
const ROWS_DEFAULT: u16 = 24;
const COLUMNS_DEFAULT: u16 = 80;

/// A key, or none in the time given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// None came.
    None,
    /// `q`, Escape, the end of the input, or a signal.
    Quit,
    /// `<` or the arrow to the left.
    Left,
    /// `>` or the arrow to the right.
    Right,
    /// Another one.
    Other,
}

/// The screen. Dropping it gives the terminal back as it was.
pub struct Screen {
    before: Termios,
}

impl Screen {
    /// True where input and output are a terminal.
    pub fn is_there() -> bool {
        isatty(io::stdin()) && isatty(io::stdout())
    }

    /// # Errors
    /// What the terminal says.
    pub fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut keys = before.clone();
        keys.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Now, &keys)?;
        let screen = Self { before };
        write(OPEN)?;
        Ok(screen)
    }

    /// Shows the lines that `picture` makes for the width of the screen, the first one reversed. What does not fit is
    /// left out.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn draw(&mut self, picture: impl FnOnce(usize) -> Vec<String>) -> io::Result<()> {
        let size = tcgetwinsize(io::stdout()).ok();
        let [rows, columns] = size.map_or([0, 0], |size| [size.ws_row, size.ws_col]);
        let rows = usize::from(if rows == 0 { ROWS_DEFAULT } else { rows });
        let columns = usize::from(if columns == 0 { COLUMNS_DEFAULT } else { columns });
        write(&text(&picture(columns), rows, columns))
    }

    /// Waits for a key, at most for `limit`.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn key(&mut self, limit: Duration) -> io::Result<Key> {
        let until = Instant::now() + limit;
        loop {
            if signals::stop_asked() {
                return Ok(Key::Quit);
            }
            let left = until.saturating_duration_since(Instant::now());
            let part = left.min(signals::POLL_INTERVAL);
            let (stdin, timeout) = (io::stdin(), Timespec::try_from(part).ok());
            let mut fds = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) if left <= part => return Ok(Key::None),
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let mut bytes = [0; 16];
            match rustix::io::read(&stdin, &mut bytes) {
                Ok(count) => return Ok(meant(&bytes[..count])),
                Err(rustix::io::Errno::INTR) => {}
                // The terminal has gone.
                Err(rustix::io::Errno::IO) => return Ok(Key::Quit),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(CLOSE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn meant(bytes: &[u8]) -> Key {
    match bytes {
        [] | [b'q' | b'Q' | 0x1b | 0x03, ..] if bytes.len() <= 1 => Key::Quit,
        [b'q' | b'Q', ..] => Key::Quit,
        [b'<', ..] | b"\x1b[D" | b"\x1bOD" => Key::Left,
        [b'>', ..] | b"\x1b[C" | b"\x1bOC" => Key::Right,
        _ => Key::Other,
    }
}

/// What is written to the terminal.
fn text(lines: &[String], rows: usize, columns: usize) -> String {
    let mut text = HOME.to_string();
    for (number, line) in lines.iter().take(rows).enumerate() {
        if number > 0 {
            text.push('\n');
        }
        let shown: String = printable(line).chars().take(columns).collect();
        match number {
            0 => text.push_str(&format!("{REVERSE}{shown:<columns$}{PLAIN}")),
            _ => text.push_str(&shown),
        }
        text.push_str(CLEAR_LINE);
    }
    text + CLEAR_BELOW
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_too_large_or_hostile_leaves_its_place() {
        let lines = ["HEADER".to_string(), "a\x1b[2Jb\nc".to_string(), "third".to_string()];
        let shown = text(&lines, 2, 4);
        assert!(shown.contains("HEAD\x1b[0m") && !shown.contains("third"), "{shown:?}");
        assert!(!shown.contains("\x1b[2J") && shown.matches('\n').count() == 1, "{shown:?}");
    }

    #[test]
    fn keys_mean_what_rbd_takes_them_for() {
        let keys: [(&[u8], Key); 8] = [
            (b"q", Key::Quit),
            (b"", Key::Quit),
            (b"\x1b", Key::Quit),
            (b"<", Key::Left),
            (b">", Key::Right),
            (b"\x1b[C", Key::Right),
            (b"\x1b[D", Key::Left),
            (b"x", Key::Other),
        ];
        for (bytes, key) in keys {
            assert_eq!(meant(bytes), key, "{bytes:?}");
        }
    }
}

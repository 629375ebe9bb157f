//! Failures of commands: the lines for standard error and the exit status.
//!
//! The wording follows `rbd`: `<what>: (<errno>) <strerror>`, and the status is that errno. Where
//! `rbd`'s own sentence does not name the cause, the engine's sentence is printed on a line before
//! it. Control characters in names are escaped, so each line stays one line.

use std::fmt;

use marcot::Remedy;
use marcot::printable::{printable, system_words};

use crate::errno::{self, EINVAL, EIO};

/// Result of everything a command does.
pub type Outcome<T = ()> = std::result::Result<T, Failure>;

/// Exit status of a command line that cannot be understood.
pub const STATUS_USAGE: i32 = 1;

/// One line of standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    /// Printed after the program's name.
    Named(String),
    /// Printed as it is.
    Bare(String),
    /// A cause. `rbd` has none, but its client library may log one.
    Cause(String),
}

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    lines: Vec<Line>,
    /// Exit status.
    pub status: i32,
}

impl Failure {
    /// `<program>: <message>`.
    pub fn new(status: i32, message: impl Into<String>) -> Self {
        Self { lines: vec![Line::Named(message.into())], status }
    }

    /// A line without the program's name.
    pub fn bare(status: i32, message: impl Into<String>) -> Self {
        Self { lines: vec![Line::Bare(message.into())], status }
    }

    /// A failure without a message.
    pub fn quiet(status: i32) -> Self {
        Self { lines: Vec::new(), status }
    }

    /// A bad command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(STATUS_USAGE, message)
    }

    /// EINVAL with a sentence.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(EINVAL, message)
    }

    /// `<what>: (<errno>) <strerror>`.
    pub fn errno(what: impl fmt::Display, errno: i32) -> Self {
        Self::new(errno, format!("{what}: ({errno}) {}", strerror(errno)))
    }

    /// `<what>: (<errno>) <strerror>` for an engine error, after a line with the engine's sentence, which
    /// names the object.
    pub fn engine(what: impl fmt::Display, error: &marcot::Error) -> Self {
        Self::errno(what, errno::of(error)).because(told(error))
    }

    /// `<what>: (<errno>) <strerror>` for an operating system error.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::errno(what, errno),
            None => Self::new(EIO, format!("{what}: {}", system_words(&error.to_string()))),
        }
    }

    /// As [`Self::engine`], with the operating system's error number if that is the cause.
    pub fn lowest(what: impl fmt::Display, error: &marcot::Error) -> Self {
        Self::errno(what, system_errno(error).unwrap_or_else(|| errno::of(error)))
            .because(told(error))
    }

    /// `<what>: (<errno>) <strerror>` with the operating system's error number if that is the cause of
    /// an engine error. Engine errors distinguish fewer cases.
    pub fn system(error: &marcot::Error) -> Self {
        match system_errno(error) {
            Some(errno) => Self::errno(error.message(), errno),
            None => Self::from(error),
        }
    }

    /// The same failure with a line before it that names the cause.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.lines.insert(0, Line::Cause(cause.to_string()));
        self
    }

    /// The same failure with a line after its causes that says what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        let causes = self.lines.iter().take_while(|line| matches!(line, Line::Cause(_))).count();
        self.lines.insert(causes, Line::Cause(remedy.into()));
        self
    }

    /// The same failure with another named line at its end.
    #[must_use]
    pub fn then(mut self, message: impl Into<String>) -> Self {
        self.lines.push(Line::Named(message.into()));
        self
    }

    /// The same failure with a line at its end that helps on. `rbd` has none.
    #[must_use]
    pub fn then_hint(mut self, hint: impl Into<String>) -> Self {
        self.lines.push(Line::Cause(hint.into()));
        self
    }

    /// The same failure with another line at its end, without the program's name.
    #[must_use]
    pub fn then_bare(mut self, message: impl Into<String>) -> Self {
        self.lines.push(Line::Bare(message.into()));
        self
    }

    /// Its first line, without the program's name.
    pub fn sentence(&self) -> &str {
        match self.lines.first() {
            Some(Line::Named(text) | Line::Bare(text) | Line::Cause(text)) => text,
            None => "",
        }
    }

    /// The text for standard error.
    pub fn render(&self, program: &str) -> String {
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Named(m) => text.push_str(&format!("{program}: {}\n", printable(m))),
                Line::Bare(m) => text.push_str(&format!("{}\n", printable(m))),
                Line::Cause(m) => text.push_str(&cause_line(program, m)),
            }
        }
        text
    }
}

/// The line for a cause. If the program is called as `rbd`, it has the form of the Ceph client's log lines,
/// which scripts that compare `rbd`'s output drop anyway.
pub fn cause_line(program: &str, cause: &str) -> String {
    let cause = printable(cause);
    if program != crate::program::RBD {
        return format!("{program}: {cause}\n");
    }
    format!("{} {:x} -1 librbd: {cause}\n", crate::time::log_stamp(), std::process::id())
}

/// The operating system's error number, if that is the cause.
fn system_errno(error: &marcot::Error) -> Option<i32> {
    let below = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    below.raw_os_error()
}

/// An engine error whose context is the whole message.
impl From<&marcot::Error> for Failure {
    fn from(error: &marcot::Error) -> Self {
        Self::new(errno::of(error), told(error))
    }
}

impl From<marcot::Error> for Failure {
    fn from(error: marcot::Error) -> Self {
        Self::from(&error)
    }
}

/// The whole sentence of an engine error, and what can be done about it by a switch of the command line.
fn told(error: &marcot::Error) -> String {
    let sentence = error.sentence();
    match error.remedy() {
        Some(Remedy::CloneUntracked) => format!("{sentence}; use --untracked to accept that"),
        Some(Remedy::RepairPool) => format!("{sentence}; 'check --repair' repairs a pool"),
        Some(Remedy::OwnStore) => {
            let variable = crate::environment::STORE_VARIABLE;
            format!("{sentence}; choose a store with --store or {variable}")
        }
        _ => sentence.to_string(),
    }
}

/// The system's text for an error number.
pub fn strerror(errno: i32) -> String {
    system_words(&std::io::Error::from_raw_os_error(errno).to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::{EEXIST, ENOENT};
    use marcot::ErrorKind;

    #[test]
    fn errno_lines_have_rbds_form() {
        let failure = Failure::errno("create error", EEXIST);
        assert_eq!(failure.render("rbd"), "rbd: create error: (17) File exists\n");
        assert_eq!(failure.status, 17);
    }

    #[test]
    fn a_name_in_a_message_cannot_end_its_line() {
        let name = "a\nmarcot: all is well\u{1b}[1A";
        let failure = Failure::errno(format!("error opening image {name}"), ENOENT)
            .because(name)
            .then_bare(name);
        for program in ["marcot", "rbd"] {
            let text = failure.render(program);
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(!text.contains('\u{1b}') && text.contains(r"a\nmarcot"), "{text}");
        }
    }

    #[test]
    fn a_damaged_log_is_told_with_the_command_that_repairs() {
        let directory = tempfile::tempdir().unwrap();
        let store = marcot::Store::open(directory.path()).unwrap();
        let pool = store.pool("rbd").unwrap();
        let id = pool.create("a", &marcot::CreateOptions::default()).unwrap();
        let mut image = pool.open(id).unwrap();
        image.resize(3 * 4096, false).unwrap();
        for block in 0..3 {
            image.write_at(block * 4096, &[1; 4096]).unwrap();
            image.flush().unwrap();
        }
        drop(image);
        // The header of the first group; another follows.
        let segments = pool.directory().join("segments").join(id.to_string());
        let log = std::fs::read_dir(segments).unwrap().find_map(|entry| {
            let entry = entry.unwrap();
            let data = entry.file_name().to_string_lossy().starts_with('d');
            data.then(|| entry.path())
        });
        let mut bytes = std::fs::read(log.as_ref().unwrap()).unwrap();
        bytes[4096 + 70] ^= 1;
        std::fs::write(log.unwrap(), bytes).unwrap();
        let error = pool.open(id).err().unwrap();
        assert!(!error.sentence().to_string().contains("--"), "{error}");
        let told = Failure::engine("open failed", &error).render("marcot");
        let lines: Vec<_> = told.lines().collect();
        assert!(lines[0].ends_with("; 'check --repair' repairs a pool"), "{told}");
        assert_eq!(lines[1], "marcot: open failed: (5) Input/output error");
        assert_eq!(Failure::from(error).render("marcot").lines().next(), Some(lines[0]));
    }

    #[test]
    fn a_cause_is_named_for_people_and_a_log_line_for_scripts() {
        let error = marcot::Error::new(ErrorKind::NotProtected, "parent must be protected");
        let failure = Failure::engine("clone error", &error);
        assert_eq!(
            failure.render("marcot"),
            "marcot: parent must be protected\nmarcot: clone error: (22) Invalid argument\n"
        );
        let text = failure.render("rbd");
        let first = text.lines().next().unwrap();
        assert!(first.ends_with(" -1 librbd: parent must be protected"), "{first}");
        assert_eq!(&first[4..5], "-");
    }
}

//! The output of commands on standard output: plain text, tables, JSON and XML, byte for byte in the
//! layout of Ceph's formatters.
//!
//! The output never has control characters from names and other data: [`line()`] and [`Table`] escape the text
//! that they get, line breaks included, and [`out`] and [`err`] escape what is left. JSON and XML escape by
//! their own rules.

pub mod document;
pub mod table;

use std::io::{self, Write};

pub use document::Node;
use marcot::printable::{printable, printable_lines};
pub use table::{Align, Table};

use crate::failure::{Failure, Outcome};
use crate::standard;

/// Exit status when nobody reads standard output any more: that of shells for programs that SIGPIPE
/// ends. Nothing is printed.
const STATUS_PIPE: i32 = 141;

/// `--format` and `--pretty-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Plain,
    /// One JSON value.
    Json {
        /// Over several lines.
        pretty: bool,
    },
    /// One XML element.
    Xml {
        /// Over several lines.
        pretty: bool,
    },
}

impl Format {
    /// The format that `--format name` and `--pretty-format` choose.
    pub fn choose(name: Option<&str>, pretty: bool) -> Outcome<Self> {
        match name.unwrap_or("plain") {
            "json" => Ok(Self::Json { pretty }),
            "xml" => Ok(Self::Xml { pretty }),
            _ if pretty => {
                Err(Failure::invalid("--pretty-format only works when --format is json or xml"))
            }
            _ => Ok(Self::Plain),
        }
    }

    /// Prints `plain` or `document`, as this format requires.
    pub fn print(
        self,
        plain: impl FnOnce() -> String,
        document: impl FnOnce() -> (&'static str, Node),
    ) -> Outcome {
        match self {
            Self::Plain => out(&plain()),
            Self::Json { pretty } => out(&document().1.to_json(pretty)),
            Self::Xml { pretty } => {
                let (name, node) = document();
                out(&node.to_xml(name, pretty))
            }
        }
    }
}

/// One line of plain text. Control characters are escaped.
pub fn line(text: &str) -> String {
    format!("{}\n", printable(text))
}

/// Writes text to standard output. Line breaks and tabs are layout and stay.
pub fn out(text: &str) -> Outcome {
    out_bytes(printable_lines(text).as_bytes()).map_err(|error| unwritten(&error))
}

fn unwritten(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::quiet(STATUS_PIPE),
        _ => Failure::io("error writing to standard output", error),
    }
}

/// Fails if nothing can be written to standard output. For commands that change something before they
/// print the result.
pub fn output_open() -> Outcome {
    standard::check_output().map_err(|error| unwritten(&error))
}

/// Writes bytes to standard output as they are.
pub fn out_bytes(bytes: &[u8]) -> io::Result<()> {
    standard::check_output()?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line to standard error after the program's name. A failure cannot be reported and is ignored.
pub fn warn(program: &str, message: &str) {
    err(&line(&format!("{program}: {message}")));
}

/// Writes text to standard error. Line breaks and tabs are layout and stay.
pub fn err(text: &str) {
    err_as_it_is(&printable_lines(text));
}

/// Writes this program's own text, which may contain cursor movements, to standard error.
pub fn err_as_it_is(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

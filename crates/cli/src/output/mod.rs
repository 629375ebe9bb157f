//! What commands print on standard output: plain text, tables, JSON and XML, byte for byte in the
//! layout of Ceph's formatters.

pub mod document;
pub mod table;

use std::io::{self, Write};

pub use document::Node;
pub use table::{Align, Table};

use crate::failure::{Failure, Outcome};

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
    /// The format that `--format name` and `--pretty-format` ask for.
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

    /// Prints `plain` or `document`, whichever this format asks for.
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

/// Writes text to standard output.
pub fn out(text: &str) -> Outcome {
    out_bytes(text.as_bytes()).map_err(|e| Failure::io("error writing to standard output", &e))
}

/// Writes bytes to standard output.
pub fn out_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line to standard error after the program's name. There is nobody to tell if it fails.
pub fn warn(program: &str, message: &str) {
    err(&format!("{program}: {message}\n"));
}

/// Writes text to standard error.
pub fn err(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

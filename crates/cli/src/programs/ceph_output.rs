//! The output formats of Ceph's `ceph` and `rados`.

use crate::args::{Args, Kind, Opt};
use crate::failure::Outcome;
use crate::output::{Node, out};

/// `--format`, with the short form of these programs.
pub const FORMAT: &[Opt] = &[Opt::new(
    "format",
    Kind::Choice(&["plain", "json", "json-pretty", "xml", "xml-pretty"]),
    "output format (plain, json, json-pretty, xml, xml-pretty) [default: plain]",
)
.letter('f')];

/// How the output of a command of `ceph` ends in JSON and XML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a newline.
    Newline,
    /// Right behind the value.
    Bare,
}

/// Prints `plain` or `document`, in the manner of `ceph`, whose JSON begins with an empty line.
pub fn print(
    args: &Args,
    end: End,
    plain: impl FnOnce() -> String,
    document: impl FnOnce() -> (&'static str, Node),
) -> Outcome {
    let Some((kind, pretty)) = structured(args) else { return out(&plain()) };
    let text = match kind {
        Structured::Json => format!("\n{}", document().1.to_json(pretty)),
        Structured::Xml => {
            let (name, node) = document();
            node.to_xml(name, pretty)
        }
    };
    match end {
        End::Newline => out(&text),
        End::Bare => out(text.trim_end_matches('\n')),
    }
}

/// Prints `plain` or `document`, in the manner of `rados`.
pub fn print_as_rados(
    args: &Args,
    plain: impl FnOnce() -> String,
    document: impl FnOnce() -> (&'static str, Node),
) -> Outcome {
    let Some((kind, pretty)) = structured(args) else { return out(&plain()) };
    let text = match kind {
        Structured::Json => document().1.to_json(pretty),
        Structured::Xml => {
            let (name, node) = document();
            node.to_xml(name, pretty)
        }
    };
    out(text.trim_end_matches('\n'))
}

enum Structured {
    Json,
    Xml,
}

/// The structured format that was asked for, and whether it is pretty.
fn structured(args: &Args) -> Option<(Structured, bool)> {
    match args.text("format")? {
        "json" => Some((Structured::Json, false)),
        "json-pretty" => Some((Structured::Json, true)),
        "xml" => Some((Structured::Xml, false)),
        "xml-pretty" => Some((Structured::Xml, true)),
        _ => None,
    }
}

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
    write(args, "\n", end, plain, document)
}

/// Prints what `ceph` prints after a change, which has no output: JSON begins with an empty line all the same.
pub fn print_nothing(args: &Args) -> Outcome {
    match args.text("format") {
        Some("json" | "json-pretty") => out("\n"),
        _ => Ok(()),
    }
}

/// Prints `plain` or `document`, in the manner of `rados`.
pub fn print_as_rados(
    args: &Args,
    plain: impl FnOnce() -> String,
    document: impl FnOnce() -> (&'static str, Node),
) -> Outcome {
    write(args, "", End::Bare, plain, document)
}

fn write(
    args: &Args,
    before_json: &str,
    end: End,
    plain: impl FnOnce() -> String,
    document: impl FnOnce() -> (&'static str, Node),
) -> Outcome {
    let text = match args.text("format") {
        None | Some("plain") => return out(&plain()),
        Some(json @ ("json" | "json-pretty")) => {
            format!("{before_json}{}", document().1.to_json(json == "json-pretty"))
        }
        Some(xml) => {
            let (name, node) = document();
            node.to_xml(name, xml == "xml-pretty")
        }
    };
    match end {
        End::Newline => out(&text),
        // Not of pretty text.
        End::Bare if args.text("format").is_some_and(|format| format.ends_with("-pretty")) => {
            out(&text)
        }
        End::Bare => out(text.trim_end_matches('\n')),
    }
}

//! The command line of Ceph's `rbd-nbd`: another form of `device`, for scripts and plug-ins that call it.
//!
//! Called by that name, the program takes the commands below, lists devices in the form of `rbd-nbd`, and ends with
//! status 1 for every failure, as `rbd-nbd` does. The devices are those of `device map`, by whatever driver.

use crate::args::CommandSpec;
use crate::args::parse::{self, Request};
use crate::failure::{Failure, Outcome, STATUS_USAGE};

/// Its commands, and the words for them here.
const COMMANDS: &[(&str, &[&str])] = &[
    ("map", &["device", "map"]),
    ("unmap", &["device", "unmap"]),
    ("attach", &["device", "attach"]),
    ("detach", &["device", "detach"]),
    ("list-mapped", &["device", "list"]),
];

/// Options that only it has. They belong to those after `-o`.
const OF_ITS_OWN: &[&str] = &["max_part", "nbds_max", "notrim", "timeout"];

/// What is printed for `--help`.
pub const HELP: &str = "\
usage: rbd-nbd [OPTION...] COMMAND

  map IMAGE-OR-SNAP-SPEC                    map an image or snapshot, and print the device
  unmap DEVICE|IMAGE-OR-SNAP-SPEC           unmap it
  attach --device DEVICE IMAGE-OR-SNAP-SPEC serve a device again whose server has gone
  detach DEVICE|IMAGE-OR-SNAP-SPEC          end its server and keep the device
  list-mapped                               list what is mapped

'marcot help device map' and so on show the options.
";

/// Reads its command line, without the program's own name.
pub fn request(commands: &'static [&'static [CommandSpec]], arguments: &[String]) -> Request {
    let arguments: Vec<String> = arguments.iter().map(|text| in_our_words(text)).collect();
    let words_for = |word: Option<&str>| match word {
        None => Err(Failure::new(STATUS_USAGE, "must specify command")),
        Some(word) => match COMMANDS.iter().find(|(name, _)| *name == word) {
            Some((_, words)) => Ok(*words),
            None => Err(Failure::new(STATUS_USAGE, format!("unknown command: {word}"))),
        },
    };
    parse::parse_named(commands, &arguments, words_for)
}

/// `--nbds_max=8` becomes `--options=nbds_max=8`; anything else stays.
fn in_our_words(text: &str) -> String {
    let long = text.strip_prefix("--").unwrap_or_default();
    match OF_ITS_OWN.contains(&long.split('=').next().unwrap_or_default()) {
        true => format!("--options={long}"),
        false => text.to_owned(),
    }
}

/// An outcome with the status of `rbd-nbd`.
pub fn with_its_status(outcome: Outcome) -> Outcome {
    outcome.map_err(|mut failure| {
        failure.status = STATUS_USAGE;
        failure
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::ALL;

    fn asked(line: &str) -> Result<(String, Vec<String>), String> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match request(ALL, &arguments) {
            Request::Run(spec, args) => {
                let words = (0..).map_while(|n| args.positional(n).map(str::to_owned)).collect();
                Ok((spec.names().next().unwrap_or_default().join(" "), words))
            }
            Request::Bad(failure) => Err(failure.render("rbd-nbd")),
            _ => Err("something else".to_owned()),
        }
    }

    #[test]
    fn its_commands_are_those_of_device() {
        for (line, name, words) in [
            ("map pool/a", "device map", &["pool/a"][..]),
            (
                "--id u --device-type nbd map pool/map --cookie list-mapped",
                "device map",
                &["pool/map"],
            ),
            ("--nbds_max=8 --timeout=5 --notrim map a", "device map", &["a"]),
            ("attach --device /dev/nbd1 a@s", "device attach", &["a@s"]),
            ("unmap /dev/nbd1", "device unmap", &["/dev/nbd1"]),
            ("detach a", "device detach", &["a"]),
            ("list-mapped --format=json", "device list", &[]),
        ] {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(asked(line), Ok((name.to_owned(), words)), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_of_it_is_refused() {
        assert_eq!(asked(""), Err("rbd-nbd: must specify command\n".to_owned()));
        for line in ["ls", "device map a"] {
            let word = line.split(' ').next().unwrap();
            assert_eq!(asked(line), Err(format!("rbd-nbd: unknown command: {word}\n")));
        }
    }
}

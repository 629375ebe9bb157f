//! `completion` and `man`: completions and manual pages, made from the command tables.

use std::path::Path;

use clap::ValueEnum;
use clap_complete::Shell;

use crate::args::{Args, CommandSpec, Positional, model};
use crate::failure::{Failure, Outcome};
use crate::output::out_bytes;
use crate::program::MARCOT;
use crate::session::Session;

/// The commands of this file.
pub const COMMANDS: &[CommandSpec] = &[
    CommandSpec::new(&["completion"], "Print a completion script for a shell.", completion)
        .own()
        .positionals(&[Positional::one("shell", "bash, elvish, fish, powershell or zsh")])
        .examples(&[("completion bash > /etc/bash_completion.d/marcot", "")]),
    CommandSpec::new(&["man"], "Write the manual pages into a directory.", man)
        .positionals(&[Positional::one("directory", "where to write them")])
        .examples(&[("man /usr/local/share/man/man1", "")])
        .hidden(),
];

fn completion(session: &Session, args: &Args) -> Outcome {
    let shell = args.positional(0).and_then(|name| Shell::from_str(name, true).ok());
    let shell = shell.ok_or_else(|| {
        Failure::invalid("shell was not specified: bash, elvish, fish, powershell or zsh")
    })?;
    let mut script = Vec::new();
    let mut command = model::program(super::ALL, session.program);
    clap_complete::generate(shell, &mut command, session.program, &mut script);
    out_bytes(&script).map_err(|error| Failure::io("error writing the script", &error))
}

fn man(_session: &Session, args: &Args) -> Outcome {
    let directory = args.positional(0);
    let directory = directory.ok_or_else(|| Failure::invalid("directory was not specified"))?;
    let failed = |error| Failure::io(format!("error writing to {directory}"), &error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(model::program(super::ALL, MARCOT), Path::new(directory))
        .map_err(failed)
}

//! The `marcot` command line: RBD's commands on layered images in local pools.
//!
//! It reads a command line, calls [`marcot_client`] to do the work, and prints the result.
//!
//! If it is called as `rbd`, it also names itself `rbd` in messages, so that scripts written for Ceph run
//! unchanged. Wording, layout and exit statuses follow `rbd` 16.2.
//!
//! It is a library so that tests can run commands in their own process and fuzz the parsers. The
//! program is [`main`].

mod args;
mod commands;
mod completion;
mod environment;
pub mod errno;
mod failure;
mod layout;
mod logging;
mod nearest;
mod output;
mod program;
mod programs;
mod progress;
mod remedy;
mod session;
mod shown;
mod signals;
pub mod size;
mod standard;
mod time;

use std::ffi::OsString;
use std::process::ExitCode;

use args::parse::{Request, config_of, parse};
use args::{Args, CommandSpec, help, model, suggest};
use failure::{Failure, Outcome, STATUS_USAGE};
use output::{err, out, warn};
use programs::Program;
use session::Session;

/// The program: runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(run_line(std::env::args_os()))
}

/// Runs a command line and returns its exit status. The first argument is the program's name.
pub fn run_line(mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let argv0 = arguments.next().unwrap_or_default();
    let argv0 = argv0.to_string_lossy();
    let other = programs::other(&argv0);
    let program = other.map_or_else(|| program::name(&argv0), |other| other.name);
    // Names that are not UTF-8 are refused: converting them would change them to other names.
    let arguments: Result<Vec<String>, _> = arguments.map(OsString::into_string).collect();
    let outcome = match arguments {
        Ok(arguments) => match other {
            None => {
                // As with `rbd`, before anything else of the command line is looked at.
                commands::tell_bad_clone_format(&config_of(commands::ALL, &arguments));
                answer(program, parse(commands::ALL, &arguments))
            }
            Some(other) => answer_as(other, (other.arrange)(arguments)),
        },
        Err(bad) => Err(Failure::invalid(format!("the argument {bad:?} is not UTF-8"))),
    };
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            err(&failure.render(program));
            let status = other.and_then(|other| other.status).unwrap_or(failure.status);
            u8::try_from(status).unwrap_or(u8::MAX)
        }
    }
}

/// The meaning of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Understood {
    /// Run the command with these words, or show its help, with these arguments by position.
    Command(&'static [&'static str], Vec<String>),
    /// Show all commands, or the version.
    General,
    /// End with this status and these lines.
    Refused(i32, String),
}

/// Parses a command line without the program's name, and runs nothing. For tests and fuzzing.
#[must_use]
pub fn understand(arguments: &[String]) -> Understood {
    match parse(commands::ALL, arguments) {
        Request::Run(spec, args) => Understood::Command(spec.words, args.positionals().to_vec()),
        Request::CommandHelp(spec, _) => Understood::Command(spec.words, Vec::new()),
        Request::Help | Request::Version => Understood::General,
        Request::Unknown(words) => Understood::Refused(STATUS_USAGE, words.join(" ")),
        Request::Bad(failure) => {
            Understood::Refused(failure.status, failure.render(program::MARCOT))
        }
    }
}

fn answer(program: &'static str, request: Request) -> Outcome {
    match request {
        Request::Help => out(&command_list(program)),
        Request::CommandHelp(spec, typed) if program == program::RBD => {
            out(&help::command(program, spec, &typed))
        }
        Request::CommandHelp(spec, typed) => out(&model::command_help(program, spec, &typed)),
        Request::Version => out(&program::version(program)),
        Request::Bad(failure) => Err(failure),
        Request::Run(spec, args) => run(program, spec, &args),
        Request::Unknown(words) => {
            out(&command_list(program))?;
            let message = format!("error: unknown option '{}'", words.join(" "));
            let failure = Failure::bare(STATUS_USAGE, message).then_bare("");
            Err(match suggest::hint(commands::ALL, program, &words) {
                Some(hint) => failure.because(hint),
                None => failure,
            })
        }
    }
}

/// The same for a program that is neither `marcot` nor `rbd`.
fn answer_as(program: &'static Program, arguments: Vec<String>) -> Outcome {
    match parse(program.commands, &arguments) {
        Request::Help if arguments.is_empty() => (program.without_command)(program),
        Request::Help => (program.help)(program),
        Request::CommandHelp(spec, typed) => out(&model::command_help(program.name, spec, &typed)),
        Request::Version => out(&program::version(program.name)),
        Request::Bad(failure) => Err(failure),
        Request::Run(spec, args) => run(program.name, spec, &args),
        Request::Unknown(words) => Err((program.unknown)(program, &words)),
    }
}

fn command_list(program: &str) -> String {
    match program {
        program::RBD => help::list(commands::ALL, program),
        _ => model::command_list(commands::ALL, program),
    }
}

fn run(program: &'static str, spec: &CommandSpec, args: &Args) -> Outcome {
    let session = Session::new(program, args.text("store"), args.flag("no-progress"));
    let session = session.limited(args)?;
    let outcome = (spec.run)(&session, args);
    let deprecated = [
        ("new-format", "--new-format is deprecated, use --image-format 2"),
        ("order", "--order is deprecated, use --object-size"),
    ];
    let deprecated = deprecated.into_iter().filter(|(option, _)| args.flag(option));
    match outcome {
        Ok(()) => {
            deprecated.for_each(|(_, message)| warn(program, message));
            Ok(())
        }
        Err(failure) => {
            let hint = match failure.status {
                errno::ENOENT => nearest::hint(&session, spec, args),
                status => remedy::hint(&session, spec, args, status),
            };
            let failure = deprecated.fold(failure, |failure, (_, message)| failure.then(message));
            Err(match hint {
                Some(hint) => failure.then_hint(hint),
                None => failure,
            })
        }
    }
}

//! The `marcot` command line: RBD's commands on layered images in local pools.
//!
//! Called as `rbd`, it calls itself `rbd` in its messages, so that scripts written for Ceph run
//! unchanged. Wording, layout and exit statuses follow `rbd` 16.2.

mod access;
mod args;
mod commands;
mod content;
mod devices;
mod exports;
mod failure;
mod incoming;
mod layout;
mod logging;
mod output;
mod program;
mod progress;
mod session;
mod signals;
mod size;
mod sparse;
mod spec;
mod time;

use std::ffi::OsString;
use std::process::ExitCode;

use args::parse::{Request, parse};
use args::{Args, CommandSpec, model};
use failure::{Failure, Outcome, STATUS_USAGE};
use output::{err, out, warn};
use session::Session;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = program::name(&arguments.next().unwrap_or_default().to_string_lossy());
    // Names that are not UTF-8 must not become others that are.
    let arguments: Result<Vec<String>, _> = arguments.map(OsString::into_string).collect();
    let outcome = match arguments {
        Ok(arguments) => answer(program, parse(commands::ALL, &arguments)),
        Err(bad) => Err(Failure::invalid(format!("the argument {bad:?} is not UTF-8"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            err(&failure.render(program));
            ExitCode::from(u8::try_from(failure.status).unwrap_or(u8::MAX))
        }
    }
}

fn answer(program: &'static str, request: Request) -> Outcome {
    match request {
        Request::Help => out(&model::command_list(program)),
        Request::CommandHelp(spec, typed) => out(&model::command_help(program, spec, &typed)),
        Request::Version => out(&format!("marcot {}\n", env!("CARGO_PKG_VERSION"))),
        Request::Bad(failure) => Err(failure),
        Request::Run(spec, args) => run(program, spec, &args),
        Request::Unknown(words) => {
            out(&model::command_list(program))?;
            let message = format!("error: unknown option '{}'\n", words.join(" "));
            Err(Failure::bare(STATUS_USAGE, message))
        }
    }
}

fn run(program: &'static str, spec: &CommandSpec, args: &Args) -> Outcome {
    let session = Session::new(program, args.text("store"), args.flag("no-progress"));
    let outcome = (spec.run)(&session, args);
    if args.flag("order") {
        warn(program, "--order is deprecated, use --object-size");
    }
    outcome
}

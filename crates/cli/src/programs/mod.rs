//! The programs that this binary is when it is called by their names: those of Ceph that scripts call beside
//! `rbd`. Each has a table of commands, as `rbd` has, and its own words for a command that it does not have.

mod ceph;
mod ceph_output;
mod ceph_pool;
mod rados;
mod rbd_fuse;
mod rbd_nbd;
mod rbdmap;

use crate::args::{CommandSpec, model};
use crate::failure::{Failure, Outcome};
use crate::output::out;
use crate::program;

/// A program with a command line of its own.
pub struct Program {
    /// Its file name, with which its messages begin.
    pub name: &'static str,
    /// Its commands.
    pub commands: &'static [&'static [CommandSpec]],
    /// Puts its arguments into the form that the tables of commands know.
    pub arrange: fn(Vec<String>) -> Vec<String>,
    /// What it answers to `--help`.
    pub help: fn(&'static Program) -> Outcome,
    /// What it answers where nothing was typed.
    pub without_command: fn(&'static Program) -> Outcome,
    /// What it answers to a command that it does not have. The first words are those typed.
    pub unknown: fn(&'static Program, &[String]) -> Failure,
    /// The exit status of every failure, where the program does not tell them apart.
    pub status: Option<i32>,
}

/// The programs beside `marcot` and `rbd`.
const OTHERS: &[&Program] =
    &[&ceph::CEPH, &rados::RADOS, &rbd_fuse::RBD_FUSE, &rbd_nbd::RBD_NBD, &rbdmap::RBDMAP];

/// The program that is called by this name, if it is neither `marcot` nor `rbd`.
pub fn other(argv0: &str) -> Option<&'static Program> {
    let file = program::file_name(argv0);
    OTHERS.iter().copied().find(|program| program.name == file)
}

impl Program {
    /// A program in the manner of `rbd`.
    const fn new(name: &'static str, commands: &'static [&'static [CommandSpec]]) -> Self {
        Self {
            name,
            commands,
            arrange: |arguments| arguments,
            help: |program| out(&model::command_list(program.commands, program.name)),
            without_command: |program| (program.help)(program),
            unknown: |_, words| Failure::invalid(format!("unknown command: {}", words.join(" "))),
            status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_name_counts() {
        assert_eq!(other("/usr/bin/rados").unwrap().name, "rados");
        assert_eq!(other("rbd-nbd").unwrap().name, "rbd-nbd");
        assert!(other("/usr/bin/rbd").is_none());
        assert!(other("/opt/ceph/marcot").is_none());
    }
}

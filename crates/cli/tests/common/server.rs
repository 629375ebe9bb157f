//! `serve` as a process of its own, observed from outside.

#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{World, await_listening};

/// A server of a world's store.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(world: &World, options: &str) -> Self {
        Self::start_with_log(world, world.path("server.log"), options)
    }

    /// Starts a server that writes its log to `log`.
    pub fn start_with_log(world: &World, log: PathBuf, options: &str) -> Self {
        Self::run(world, log, world.rbd_command(&format!("serve --socket nbd.sock {options}")))
    }

    /// Starts a server that may have `count` descriptors.
    pub fn start_with_descriptors(world: &World, count: u64, options: &str) -> Self {
        let server = world.rbd_command(&format!("serve --socket nbd.sock {options}"));
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &count.to_string()]);
        shell.arg(server.get_program()).args(server.get_args());
        shell.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.current_dir(world.path("."));
        Self::run(world, world.path("server.log"), shell)
    }

    /// Starts a server whose command was prepared further.
    pub fn start_prepared(
        world: &World,
        options: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = world.rbd_command(&format!("serve --socket nbd.sock {options}"));
        prepare(&mut command);
        Self::run(world, world.path("server.log"), command)
    }

    fn run(world: &World, log: PathBuf, mut command: Command) -> Self {
        let socket = world.path("nbd.sock");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        await_listening(&mut child);
        Self { child, socket, log }
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    fn of_proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(name)
    }

    fn status(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(self.of_proc("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn resident_bytes(&self) -> usize {
        self.status("VmRSS:") << 10
    }

    pub fn threads(&self) -> usize {
        self.status("Threads:")
    }

    /// Number of open sockets. Other descriptors are not counted, since the honest client's writes open and
    /// close files.
    pub fn sockets(&self) -> usize {
        let entries = std::fs::read_dir(self.of_proc("fd")).unwrap().flatten();
        let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// The file of each of its descriptors.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.of_proc("fd")).unwrap().flatten();
        entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
    }

    pub fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

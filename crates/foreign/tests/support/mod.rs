//! A directory of a test, and QEMU's programs.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;

use marcot_foreign::{Error, Extent, Result, Source};

/// A container in memory, without holes.
pub struct Memory(pub Vec<u8>);

impl Source for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let at = offset as usize;
        let behind = || Error::invalid("behind the end");
        buf.copy_from_slice(self.0.get(at..at + buf.len()).ok_or_else(behind)?);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        Ok(vec![Extent { offset, length, data: true }])
    }
}

pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs `qemu-img` with arguments and files.
    pub fn qemu_img(&self, arguments: &[&str], files: &[&Path]) {
        self.qemu_img_with(arguments, files, &[]);
    }

    /// As [`Self::qemu_img`], with more arguments behind the files.
    pub fn qemu_img_with(&self, arguments: &[&str], files: &[&Path], more: &[&str]) {
        let mut command = Command::new("qemu-img");
        command.args(arguments).args(files).args(more);
        run(&mut command);
    }

    /// Runs commands of `qemu-io` on an image.
    pub fn qemu_io(&self, file: &Path, format: &str, commands: &[&str]) {
        let mut command = Command::new("qemu-io");
        command.args(["-f", format, "-d", "unmap"]);
        for line in commands {
            command.args(["-c", line]);
        }
        run(command.arg(file));
    }
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("QEMU's programs are installed (qemu-utils)");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Data, zeros and repetitions, from a fixed seed: about half of it is data.
pub fn pattern(size_bytes: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(size_bytes);
    let mut bytes = vec![0; size_bytes as usize];
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + random.usize(512..300_000)).min(bytes.len());
        match random.u8(..4) {
            0 => bytes[at..end].fill_with(|| random.u8(..)),
            1 => bytes[at..end].fill(random.u8(1..)),
            _ => {}
        }
        at = end;
    }
    // The end is data, so that nothing can be cut off unseen.
    let last = bytes.len() - 1;
    bytes[last] = 1;
    bytes
}

//! What every test needs: a directory of its own, and an end that clears up after failures.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::device::{DeviceIo, FuseMount, LoopDevice, LoopOptions};

/// How the tests of this room attach.
pub const OPTIONS: LoopOptions =
    LoopOptions { read_only: false, scan_partitions: false, direct_io: true };

/// Runs a program and returns what it printed; panics with its words where it fails.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}{complained}");
    said
}

/// A loop device over FUSE. Whatever is left of it is removed when it is dropped.
pub struct Shown {
    pub device: LoopDevice,
    pub mount: FuseMount,
    _directory: tempfile::TempDir,
}

impl Shown {
    pub fn new(io: Arc<dyn DeviceIo>, options: LoopOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = FuseMount::new(io, &directory.path().join("fuse"), options.read_only).unwrap();
        let device = LoopDevice::attach(&mount.file(), options).unwrap();
        Self { device, mount, _directory: directory }
    }

    pub fn path(&self) -> &Path {
        self.device.path()
    }

    pub fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    /// A value of the device's directory in sysfs.
    pub fn sys(&self, name: &str) -> String {
        let device = self.path().file_name().unwrap().to_str().unwrap();
        std::fs::read_to_string(format!("/sys/block/{device}/{name}")).unwrap().trim().to_owned()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Failures here follow from the one that the test has told already.
        let _ = self.device.detach_lazily();
        let _ = self.device.detach();
        let _ = self.mount.unmount();
    }
}

/// A mounted file system, unmounted when dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn new(device: &str, directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        run("mount", &[device, directory.to_str().unwrap()]);
        Self(directory.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

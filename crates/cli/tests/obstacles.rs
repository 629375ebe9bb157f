//! Obstacles that keep a command from reading a pool are reported as such: locks and leases of other
//! processes, links of other users, too few descriptors. None of them is damage, and nothing is repaired
//! or given up because of them.
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Ran, World, await_that, noise};
use rustix::process::{Pid, Signal, kill_process};

/// The other user.
const OTHER: u32 = 64_003;

/// A process that is ended with the test.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() && !path.is_symlink() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// A pool with an image, a snapshot, a clone, and a log.
fn world() -> World {
    let world = World::new();
    world.file("f", &noise(3 << 20));
    world.silently(&[
        "import --no-progress f t",
        "snap create --no-progress t@s",
        "snap protect t@s",
        "clone t@s clone",
    ]);
    world
}

/// Takes a lease that conflicts with every open, and keeps it when the kernel asks for it.
fn lease(path: &Path) -> File {
    // The kernel asks with SIGIO, which kills a process by default. SAFETY: ignoring a signal runs no code of
    // ours.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: the descriptor is open, and the call touches no memory of ours.
    let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    assert_eq!(taken, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    file
}

fn assert_no_damage(ran: &Ran, what: &str) {
    let said = format!("{}{}", ran.out, ran.err);
    assert!(!said.contains("repaired") && !said.contains("mean damaged"), "{what}: {said}");
    assert!(!said.contains("found damage") && !said.contains("given up"), "{what}: {said}");
    assert_ne!(ran.status, 5, "{what}: {said}");
}

/// All files of a pool except its locks, since their holders write into them.
fn stored(pool: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let locks = ["lock", "readers", "gc.lock"];
    let is_lock = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        locks.contains(&name) || name.starts_with("snap-")
    };
    let files = files_below(pool).into_iter().filter(|path| !is_lock(path));
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn a_lease_is_no_damage_and_nothing_is_repaired_or_given_up_because_of_it() {
    let world = world();
    let pool = world.path("store/pools/rbd");
    let before = stored(&pool);
    let of_kind = |kind: &str| -> Vec<PathBuf> {
        let paths = before.iter().map(|(path, _)| path.clone());
        paths.filter(|path| path.to_string_lossy().contains(kind)).collect()
    };
    for kind in ["/head", "/names/", "/segments/"] {
        let held = of_kind(kind);
        assert!(!held.is_empty(), "{kind}");
        let leases: Vec<File> = held.iter().map(|path| lease(path)).collect();
        let ran = world.marcot("check --no-progress --repair rbd");
        assert_no_damage(&ran, kind);
        assert_eq!(ran.status, 16, "{kind}: {}{}", ran.out, ran.err);
        assert!(ran.out.contains("could not be looked at"), "{kind}: {}", ran.out);
        assert!(ran.out.contains("lease") && ran.out.contains("try again"), "{kind}: {}", ran.out);
        drop(leases);
        assert!(stored(&pool) == before, "{kind}: something was changed");
    }
    let leases: Vec<File> = of_kind("/head").iter().map(|path| lease(path)).collect();
    for line in ["gc --no-progress rbd", "rm --no-progress --force clone", "info t"] {
        let ran = world.marcot(line);
        assert_no_damage(&ran, line);
        assert_eq!(ran.status, 16, "{line}: {}", ran.err);
        assert!(
            ran.err.contains("lease") && !ran.err.contains("rm --force"),
            "{line}: {}",
            ran.err
        );
    }
    drop(leases);
    assert!(stored(&pool) == before, "something was changed");
    let ran = world.marcot("check --no-progress rbd");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
}

#[test]
fn a_lack_of_descriptors_is_no_damage() {
    let world = world();
    let mut refused = 0;
    for count in 5..24 {
        let command = world.marcot_command("check --no-progress --repair rbd");
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &count.to_string()]);
        shell.arg(command.get_program()).args(command.get_args()).env("MARCOT_IO", "plain");
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = shell.current_dir(world.path("")).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().unwrap();
        let ran = Ran { out: text(&output.stdout), err: text(&output.stderr), status };
        assert_no_damage(&ran, &format!("{count} descriptors"));
        refused += usize::from(ran.status == 24);
    }
    assert!(refused > 0, "they were never too few");
    let ran = world.marcot("check --no-progress rbd");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
}

/// A command that signals end as they end one that a person has started: whoever runs the tests may ignore
/// some, and children inherit that.
fn ended_by_signals(command: &Command) -> Command {
    let mut with_defaults = Command::new("env");
    with_defaults.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => with_defaults.env(name, value),
            None => with_defaults.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        with_defaults.current_dir(directory);
    }
    with_defaults
}

#[test]
fn who_waits_for_a_lock_is_told_whom_for_and_a_signal_ends_it() {
    let world = world();
    let lock = world.path("store/pools/rbd/lock");
    let mut flock = Command::new("flock");
    let holder = Process(flock.arg("-F").arg(&lock).args(["sleep", "1000"]).spawn().unwrap());
    let is_locked = || {
        let tried = Command::new("flock").arg("-n").arg(&lock).arg("true").status().unwrap();
        !tried.success()
    };
    await_that("the lock is held", is_locked);
    holder.signal(Signal::STOP);
    let log = world.path("waiting.log");
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15)] {
        let mut command = ended_by_signals(&world.marcot_command("rename t u"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut waiting = Process(command.spawn().unwrap());
        let said = || std::fs::read_to_string(&log).unwrap();
        await_that("it is told", || said().contains("waiting for"));
        let pid = holder.0.id();
        let who = format!("process {pid} (sleep), which is stopped: 'kill -CONT {pid}'");
        assert!(said().contains(&who) && said().contains("pools/rbd/lock"), "{}", said());
        waiting.signal(signal);
        let mut ended = None;
        await_that("the signal ends it", || {
            ended = waiting.0.try_wait().unwrap();
            ended.is_some()
        });
        let ended = ended.unwrap();
        use std::os::unix::process::ExitStatusExt;
        let by = ended.signal().or(ended.code().map(|code| code - 128));
        assert_eq!(by, Some(number), "{ended}: {}", said());
    }
    assert!(world.marcot("info t").err.is_empty());
    // When the holder continues, the waiting command goes on.
    let mut command = world.marcot_command("rename t u");
    let mut waiting = Process(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
    await_that("it is told", || std::fs::read_to_string(&log).unwrap().contains("waiting for"));
    drop(holder);
    let mut ended = None;
    await_that("it goes on", || {
        ended = waiting.0.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().success());
    assert!(world.marcot("info u").err.is_empty());
}

fn give(directory: &Path) {
    lchown(directory, Some(OTHER), None).unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() && !path.is_symlink() {
            true => give(&path),
            false => lchown(&path, Some(OTHER), None).unwrap(),
        }
    }
}

/// The pool of a store, moved elsewhere, with a link in its place.
fn move_pool(world: &World) -> PathBuf {
    let (pool, elsewhere) = (world.path("store/pools/rbd"), world.path("elsewhere"));
    std::fs::rename(&pool, &elsewhere).unwrap();
    symlink(&elsewhere, &pool).unwrap();
    elsewhere
}

#[test]
fn a_linked_pool_of_another_user_is_left_out_with_what_to_do() {
    let world = world();
    world.silently(&["pool create second"]);
    let elsewhere = move_pool(&world);
    give(&world.path("store"));
    give(&elsewhere);
    for line in ["ls", "check --no-progress rbd", "info t"] {
        let ran = world.marcot(line);
        assert_eq!(ran.status, 13, "{line}: {}{}", ran.out, ran.err);
        let says = |text| ran.err.contains(text);
        assert!(says("symbolic link") && says("pool attach") && says("64003"), "{}", ran.err);
    }
    let ran = world.marcot("check --no-progress --all --repair");
    assert_no_damage(&ran, "check --all");
    assert_eq!(ran.status, 13, "{}", ran.err);
    assert!(
        ran.out.contains("could not be checked") && ran.out.contains("second: 0"),
        "{}",
        ran.out
    );
    // The remedy in the message works.
    let attach = format!("--store own pool attach theirs --backend {}", elsewhere.display());
    world.silently(&[&attach]);
    assert_eq!(world.marcot("--store own ls theirs").out, "clone\nt\n");
    assert_eq!(world.marcot("--store own check --no-progress theirs").status, 0);
}

#[test]
fn a_pool_of_ones_own_can_lie_elsewhere_by_a_link() {
    let world = world();
    let elsewhere = move_pool(&world);
    world.silently(&["create --size 1M u", "rename u v", "info clone", "gc --no-progress rbd"]);
    assert_eq!(world.marcot("check --no-progress --all").status, 0);
    // It only works while the target of the link is mounted.
    std::fs::rename(&elsewhere, world.path("unmounted")).unwrap();
    for line in ["ls", "info t", "create --size 1M w", "pool create rbd", "check --no-progress rbd"]
    {
        let ran = world.marcot(line);
        assert_ne!(ran.status, 0, "{line}: {}", ran.out);
        assert!(ran.err.contains("not mounted"), "{line}: {}", ran.err);
    }
    assert!(!elsewhere.exists());
    std::fs::rename(world.path("unmounted"), &elsewhere).unwrap();
    world.silently(&["info t"]);
    // Below it, links are not followed.
    std::fs::rename(elsewhere.join("segments"), world.path("segments")).unwrap();
    symlink(world.path("segments"), elsewhere.join("segments")).unwrap();
    let ran = world.marcot("export --no-progress t out");
    assert_ne!(ran.status, 0);
    assert!(ran.err.contains("mount --bind"), "{}", ran.err);
}

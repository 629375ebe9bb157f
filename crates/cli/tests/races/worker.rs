//! A process that runs commands on request, without the cost of starting a program each time.
//!
//! It calls the program's code with a command line, or starts the program. Each request is a line on standard
//! input: when to begin (on a clock that all processes share), the store, whether to start the program, the
//! command line. Replies are written to the original standard output: exit status, begin and end.
//!
//! Two words are no commands of the program. `write IMAGE` writes a block. `map IMAGE` does what
//! the server does for a device or a client: opens the image, listens for commands, writes a
//! block, flushes, stays a moment, and closes. `map IMAGE@SNAP` opens the snapshot and reads.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use marcot::{ErrorKind, Result, Store};
use marcot_serve::control::Place;
use marcot_serve::host::{DeviceRequest, HostOptions, ImageHost};

const WORKER_VARIABLE: &str = "MARCOT_RACES_WORKER";
const BLOCK_BYTES: usize = 4096;
/// How long `map` keeps the image open. Other commands take one to a few milliseconds.
const MAP_TIME: Duration = Duration::from_millis(3);
/// How long to spin instead of sleeping. Waking up takes less.
const SPIN_TIME: Duration = Duration::from_micros(300);
/// The exit status of a panic.
pub const STATUS_PANIC: u8 = 101;

/// One command of a race.
#[derive(Clone)]
pub struct Task<'a> {
    pub store: &'a Path,
    pub line: &'a str,
    /// Begin of the command on the clock of [`now_ns`].
    pub begin_ns: u64,
    /// Start the program instead of calling its code.
    pub spawn: bool,
}

/// The result of a command.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    pub status: u8,
    pub began_ns: u64,
    pub ended_ns: u64,
}

impl Ran {
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.ended_ns - self.began_ns)
    }
}

/// The controller's end of a worker. The process ends with it.
pub struct Worker {
    child: Child,
    tasks: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Worker {
    pub fn start(log: PathBuf) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(WORKER_VARIABLE, "1")
            .env("MARCOT_LOG", "off")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let (tasks, replies) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, tasks, replies: BufReader::new(replies), log }
    }

    pub fn send(&mut self, task: &Task<'_>) {
        let (store, begin_ns) = (task.store.display(), task.begin_ns);
        let request = format!("{begin_ns}\t{store}\t{}\t{}\n", u8::from(task.spawn), task.line);
        self.tasks.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
    }

    pub fn reply(&mut self) -> Ran {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        let [status, began_ns, ended_ns] = numbers[..] else { panic!("the worker is gone") };
        Ran { status: status as u8, began_ns, ended_ns }
    }

    pub fn run(&mut self, store: &Path, line: &str) -> Ran {
        self.send(&Task { store, line, begin_ns: 0, spawn: false });
        self.reply()
    }

    /// The output of commands on standard error since the last call.
    pub fn messages(&mut self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        OpenOptions::new().write(true).open(&self.log).unwrap().set_len(0).unwrap();
        text.trim_matches('\0').trim().to_owned()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.tasks.take());
        let _ = self.child.wait();
    }
}

/// Works as a worker if this process was started as one.
pub fn serve_if_asked() {
    if std::env::var_os(WORKER_VARIABLE).is_none() {
        return;
    }
    // Commands print on standard output; replies must not mix with that.
    let replies = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3).unwrap();
    let nowhere: OwnedFd = OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    rustix::stdio::dup2_stdout(&nowhere).unwrap();
    let mut replies = File::from(replies);
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let parts: Vec<&str> = line.splitn(4, '\t').collect();
        let [begin_ns, store, spawn, line] = parts[..] else { panic!("a strange request") };
        wait_until(begin_ns.parse().unwrap());
        let began_ns = now_ns();
        let status = run(Path::new(store), line, spawn == "1");
        replies.write_all(format!("{status} {began_ns} {}\n", now_ns()).as_bytes()).unwrap();
    }
    std::process::exit(0);
}

/// Sleeps, and spins for the last part: waking up takes as long as a short command.
fn wait_until(begin_ns: u64) {
    let left_ns = begin_ns.saturating_sub(now_ns());
    std::thread::sleep(Duration::from_nanos(left_ns).saturating_sub(SPIN_TIME));
    while now_ns() < begin_ns {
        std::hint::spin_loop();
    }
}

pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn run(store: &Path, line: &str, spawn: bool) -> u8 {
    let own = |image, hold| {
        hold_image(store, image, hold).map_or_else(
            |error| {
                eprintln!("{line}: {error}");
                u8::try_from(marcot_cli::errno::of(&error)).unwrap_or(u8::MAX)
            },
            |()| 0,
        )
    };
    match line.split_once(' ') {
        Some(("write", image)) => return own(image, Duration::ZERO),
        Some(("map", image)) => return own(image, MAP_TIME),
        _ => {}
    }
    let words = ["marcot", "--store", store.to_str().unwrap()].into_iter();
    let words = words.chain(line.split_whitespace());
    if spawn {
        let mut command = Command::new(env!("CARGO_BIN_EXE_marcot"));
        command.args(words.skip(1)).stdin(Stdio::null()).stdout(Stdio::null());
        return command.status().unwrap().code().map_or(u8::MAX, |code| code as u8);
    }
    let ran = std::panic::catch_unwind(|| marcot_cli::run_line(words.map(Into::into)));
    ran.unwrap_or(STATUS_PANIC)
}

fn hold_image(store: &Path, spec: &str, time: Duration) -> Result<()> {
    let (pool, image) = spec.split_once('/').unwrap_or(("rbd", spec));
    let pool = Store::open(store)?.pool(pool)?;
    if let Some((image, snap)) = image.split_once('@') {
        let mut snapshot = pool.open_snapshot(pool.find(image)?, snap)?;
        let mut content = vec![0; snapshot.size_bytes() as usize];
        snapshot.read_at(0, &mut content)?;
        std::thread::sleep(time);
        snapshot.read_at(0, &mut content)?;
        return Box::new(snapshot).close();
    }
    let id = pool.find(image)?;
    let device = Box::new(pool.open(id)?);
    let options = HostOptions {
        name: spec.to_owned(),
        control: Some(Place::of(&pool, id)),
        ..HostOptions::default()
    };
    let host = ImageHost::start(device, options)?;
    let write = DeviceRequest::Write { offset: 0, data: vec![0xee; BLOCK_BYTES], fua: false };
    let outcome = host.submit_and_wait(write).and_then(|_| {
        std::thread::sleep(time);
        host.submit_and_wait(DeviceRequest::Flush)
    });
    let stopped = host.stop();
    match outcome {
        // If the image is gone, the reason is the error of stopping its host.
        Err(error) if error.kind() == ErrorKind::Fenced => stopped.and(Err(error)),
        outcome => outcome.and(stopped),
    }
}

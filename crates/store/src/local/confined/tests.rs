use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A user who is neither root nor the user who runs the tests.
const STRANGER: u32 = 64_003;

/// Two disks for `directory`: one resolves whole paths by the kernel, the other part by part.
fn disks(directory: &Path) -> [ConfinedDisk; 2] {
    [false, true].map(|parts| {
        let beneath = Beneath::open_root(directory, true).unwrap();
        let beneath = if parts { beneath.part_by_part() } else { beneath };
        let user_id = rustix::process::geteuid().as_raw();
        let base = LocalDisk::plain();
        let directory = directory.to_owned();
        let leases_met = AtomicU32::new(0);
        let owner_id = user_id;
        ConfinedDisk { base, directory, beneath, owner_id, user_id, own: true, leases_met }
    })
}

fn foreign(directory: &Path) -> Confined {
    LocalDisk::plain().confine(directory, Trust::Foreign).unwrap()
}

struct Scene {
    _root: tempfile::TempDir,
    pool: PathBuf,
    outside: PathBuf,
}

/// A pool with a file and a directory of children, and a secret file beside the pool.
fn scene() -> Scene {
    let root = tempfile::tempdir().unwrap();
    let (pool, outside) = (root.path().join("pool"), root.path().join("outside"));
    for made in [&pool, &outside, &pool.join("images"), &pool.join(SHARED_DIRECTORY)] {
        std::fs::create_dir(made).unwrap();
    }
    std::fs::write(pool.join("images/head"), "own").unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    Scene { _root: root, pool, outside }
}

fn content(file: &dyn DiskFile) -> String {
    let mut bytes = vec![0; file.length().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn refusal<T>(result: io::Result<T>) -> String {
    result.err().expect("it should have been refused").to_string()
}

#[test]
fn what_lies_in_the_directory_is_reached_and_changed() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        let path = scene.pool.join("images/new");
        let file = disk.create_new(&path, 0o644).unwrap();
        file.write_at(0, &[b"text"]).unwrap();
        assert_eq!(content(&*disk.open(&path, false).unwrap()), "text");
        assert_eq!(disk.mode(&path).unwrap(), 0o644);
        assert_eq!(disk.list(&scene.pool.join("images")).unwrap(), ["head", "new"]);
        let other = scene.pool.join("other");
        disk.rename_new(&path, &other).unwrap();
        let taken = disk.rename_new(&other, &scene.pool.join("images/head"));
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        disk.create_directory(&scene.pool.join("made"), 0o750).unwrap();
        disk.rename(&other, &scene.pool.join("made/other")).unwrap();
        disk.sync_directory(&scene.pool.join("made")).unwrap();
        disk.remove_file(&scene.pool.join("made/other")).unwrap();
        disk.remove_directory(&scene.pool.join("made")).unwrap();
        let lock = scene.pool.join("lock");
        let held = disk.lock(&lock, LockMode::Exclusive, false).unwrap();
        assert!(held.is_some() && disk.lock(&lock, LockMode::Shared, false).unwrap().is_none());
        assert!(disk.writable(&scene.pool.join("images")));
        assert!(disk.free_bytes(&scene.pool).unwrap() > 0);
    }
}

#[test]
fn the_directory_is_the_one_that_was_opened_whatever_its_name_is_later() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        let moved = scene.pool.with_file_name("moved");
        std::fs::rename(&scene.pool, &moved).unwrap();
        symlink(&scene.outside, &scene.pool).unwrap();
        assert_eq!(content(&*disk.open(&scene.pool.join("images/head"), false).unwrap()), "own");
        assert!(disk.open(&scene.pool.join("secret"), false).is_err());
        std::fs::remove_file(&scene.pool).unwrap();
        std::fs::rename(&moved, &scene.pool).unwrap();
    }
}

#[test]
fn no_link_is_followed_wherever_it_stands_in_the_path() {
    let scene = scene();
    symlink(&scene.outside, scene.pool.join("linked")).unwrap();
    symlink(scene.outside.join("secret"), scene.pool.join("images/link")).unwrap();
    for disk in disks(&scene.pool) {
        for path in ["linked/secret", "images/link"] {
            let path = scene.pool.join(path);
            for write in [false, true] {
                let why = refusal(disk.open(&path, write).map(drop));
                assert!(why.contains("symbolic link"), "{}: {why}", path.display());
            }
            assert!(disk.mode(&path).is_err());
            assert!(disk.lock(&path, LockMode::Exclusive, false).is_err());
        }
        let linked = scene.pool.join("linked");
        assert!(disk.list(&linked).is_err());
        assert!(disk.remove_file(&linked.join("secret")).is_err());
        assert!(disk.create_new(&linked.join("new"), 0o600).is_err());
        assert!(disk.create_directory(&linked.join("new"), 0o700).is_err());
        assert!(disk.rename(&scene.pool.join("images/head"), &linked.join("head")).is_err());
        assert!(disk.sync_directory(&linked).is_err());
        assert!(!disk.writable(&linked));
    }
    assert_eq!(std::fs::read_dir(&scene.outside).unwrap().count(), 1);
}

#[test]
fn a_link_itself_can_be_removed() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        let link = scene.pool.join("images/link");
        symlink(scene.outside.join("secret"), &link).unwrap();
        disk.remove_file(&link).unwrap();
        assert!(scene.outside.join("secret").exists());
    }
}

#[test]
fn nothing_outside_is_reached() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        for path in ["../outside/secret", "images/../../outside/secret"] {
            assert!(disk.open(&scene.pool.join(path), false).is_err(), "{path}");
        }
        let why = refusal(disk.open(&scene.outside.join("secret"), false).map(drop));
        assert!(why.contains("does not lie in"), "{why}");
    }
}

#[test]
fn only_plain_files_are_opened() {
    let scene = scene();
    let fifo = scene.pool.join("images/fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let socket = scene.pool.join("images/socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let confined = foreign(&scene.pool);
    for path in [&fifo, &socket, &scene.pool.join("images")] {
        for disk in disks(&scene.pool) {
            assert!(disk.open(path, false).is_err(), "{}", path.display());
            assert!(disk.lock(path, LockMode::Shared, false).is_err(), "{}", path.display());
        }
        assert!(confined.disk.open(path, false).is_err(), "{}", path.display());
    }
}

#[test]
fn in_another_users_directory_nothing_changes_but_ones_own_files_among_the_shared() {
    let scene = scene();
    let confined = foreign(&scene.pool);
    let disk = &confined.disk;
    assert!(!confined.own);
    let head = scene.pool.join("images/head");
    assert_eq!(content(&*disk.open(&head, false).unwrap()), "own");
    let new = scene.pool.join("images/new");
    assert!(disk.open(&head, true).is_err());
    assert!(disk.create_new(&new, 0o600).is_err());
    assert!(disk.create_directory(&new, 0o700).is_err());
    assert!(disk.rename(&head, &new).is_err());
    assert!(disk.rename_new(&head, &new).is_err());
    assert!(disk.remove_file(&head).is_err());
    assert!(disk.remove_directory(&scene.pool.join(SHARED_DIRECTORY)).is_err());
    assert!(disk.lock(&scene.pool.join("lock"), LockMode::Shared, true).is_err());
    assert!(!disk.writable(&scene.pool.join("images")));
    let (marker, named) = (scene.pool.join("children/.m"), scene.pool.join("children/m"));
    disk.create_new(&marker, 0o600).unwrap().write_at(0, &[b"x"]).unwrap();
    disk.rename_new(&marker, &named).unwrap();
    assert!(disk.open(&named, true).is_err());
    disk.sync_directory(&scene.pool.join(SHARED_DIRECTORY)).unwrap();
    disk.remove_file(&named).unwrap();
    assert!(!scene.pool.join("lock").exists() && !new.exists());
}

#[test]
fn a_file_of_a_third_user_is_opened_only_among_the_shared() {
    assert!(rustix::process::geteuid().is_root(), "only root may give files away");
    let scene = scene();
    let theirs = scene.pool.join("images/theirs");
    let shared = scene.pool.join("children/theirs");
    for path in [&theirs, &shared] {
        std::fs::write(path, "theirs").unwrap();
        std::os::unix::fs::chown(path, Some(STRANGER), None).unwrap();
    }
    let confined = foreign(&scene.pool);
    for disk in disks(&scene.pool) {
        let why = refusal(disk.open(&theirs, false).map(drop));
        assert!(why.contains(&STRANGER.to_string()), "{why}");
        assert_eq!(content(&*disk.open(&shared, false).unwrap()), "theirs");
        assert!(disk.open(&shared, true).is_err());
        assert_eq!(disk.owner_id(&shared).unwrap(), STRANGER);
    }
    assert!(confined.disk.open(&theirs, false).is_err());
    assert!(confined.disk.remove_file(&shared).is_err(), "it is not one's own");
    // A directory of that user counts as another user's, whatever its permission bits, and for root too.
    std::os::unix::fs::chown(&scene.pool, Some(STRANGER), None).unwrap();
    std::fs::set_permissions(&scene.pool, std::fs::Permissions::from_mode(0o777)).unwrap();
    let confined = LocalDisk::plain().confine(&scene.pool, Trust::ByOwner).unwrap();
    assert!(!confined.own && confined.owner_id == STRANGER);
}

#[test]
fn a_directory_within_is_confined_without_links_on_the_way() {
    let scene = scene();
    symlink(&scene.outside, scene.pool.join("linked")).unwrap();
    for disk in disks(&scene.pool) {
        let within = disk.confine(&scene.pool.join("images"), Trust::ByOwner).unwrap();
        let path = scene.pool.join("images/head");
        assert_eq!(content(&*within.disk.open(&path, false).unwrap()), "own");
        assert!(within.disk.open(&scene.pool.join("children"), false).is_err());
        assert!(disk.confine(&scene.pool.join("linked"), Trust::ByOwner).is_err());
    }
}

/// A lease on a file that its holder does not give up.
struct Lease(std::fs::File);

impl Lease {
    fn take(path: &Path) -> Self {
        // The kernel asks for the lease by SIGIO, which would end this process.
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        // SAFETY: the descriptor is open, and the call touches no memory of ours.
        let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
        assert_eq!(taken, 0, "{}", io::Error::last_os_error());
        Self(file)
    }
}

/// A number of steps that no test reaches.
const STEPS: u64 = 1 << 20;
/// Stack size, in bytes, of the thread that removes a tree of any depth.
const STACK_BYTES: usize = 128 << 10;

/// Makes nested directories. Each holds the next one, a file, and an empty directory.
fn dig(directory: &Path, depth: usize) {
    let open = |at: &OwnedFd, name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(at, name, flags, Mode::empty()).unwrap()
    };
    let name = "d".repeat(200);
    std::fs::create_dir(directory).unwrap();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = fs::openat(CWD, directory, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        fs::mkdirat(&at, "empty", Mode::RWXU).unwrap();
        let made = OFlags::WRONLY | OFlags::CREATE;
        fs::openat(&at, "file", made, Mode::RUSR).unwrap();
        at = open(&at, &name);
    }
}

impl Scene {
    fn shared(&self) -> PathBuf {
        self.pool.join(SHARED_DIRECTORY)
    }

    fn remove(&self, disk: &ConfinedDisk, name: &OsStr) -> io::Result<()> {
        let aside = self.shared().join("aside");
        disk.remove_tree(&self.shared().join(name), &aside, &mut STEPS.clone())
    }

    fn shared_names(&self) -> Vec<std::ffi::OsString> {
        std::fs::read_dir(self.shared()).unwrap().map(|e| e.unwrap().file_name()).collect()
    }
}

#[test]
fn a_file_under_a_lease_is_busy_and_not_waited_for_without_a_bound() {
    let scene = scene();
    let path = scene.pool.join("images/head");
    let lease = Lease::take(&path);
    let [whole, parts] = disks(&scene.pool);
    let other = foreign(&scene.pool).disk;
    for disk in [&whole as &dyn Disk, &parts, &*other] {
        let refused = disk.open(&path, false).map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy, "{refused}");
        let who = format!("process {}", std::process::id());
        let said = refused.to_string();
        assert!(said.contains("lease") && said.contains("try again"), "{said}");
        // Not every file system stands in the kernel's table with the number of its device.
        assert!(said.contains(&who) || said.contains("another process"), "{said}");
    }
    // Reading the mode does not wait for the lease.
    assert_eq!(whole.mode(&path).unwrap() & 0o400, 0o400);
    drop(lease.0);
    assert_eq!(content(&*whole.open(&path, false).unwrap()), "own");
}

#[test]
fn many_leases_are_not_waited_for_one_by_one() {
    let scene = scene();
    let path = scene.pool.join("images/head");
    let _lease = Lease::take(&path);
    let [disk, _] = disks(&scene.pool);
    let busy = || disk.open(&path, false).map(drop).unwrap_err().kind();
    let started = std::time::Instant::now();
    for _ in 0..20 * LEASES_AWAITED_MAX {
        assert_eq!(busy(), io::ErrorKind::ResourceBusy);
    }
    assert_eq!(disk.leases_met.load(Ordering::Relaxed), 20 * LEASES_AWAITED_MAX);
    let pauses = 20 * LEASES_AWAITED_MAX * (LEASE_ATTEMPTS - 1);
    assert!(started.elapsed() < pauses * LEASE_INTERVAL);
}

#[test]
fn a_tree_is_removed_however_deep_it_is() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        // The path to its end is longer than any system call takes.
        dig(&scene.shared().join("deep"), 2000);
        std::thread::scope(|scope| {
            let remove = || scene.remove(&disk, OsStr::new("deep")).unwrap();
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            thread.spawn_scoped(scope, remove).unwrap().join().unwrap();
        });
        assert!(scene.shared_names().is_empty(), "{:?}", scene.shared_names());
    }
}

#[test]
fn names_that_are_no_text_are_seen_and_removed() {
    let scene = scene();
    let (file, tree) = (OsStr::from_bytes(b"a\xff\n"), OsStr::from_bytes(b"t\xfe"));
    for disk in disks(&scene.pool) {
        std::fs::write(scene.shared().join(file), "abc").unwrap();
        std::fs::create_dir_all(scene.shared().join(tree).join(file)).unwrap();
        std::fs::write(scene.shared().join(tree).join(tree), "abc").unwrap();
        let mut seen = Vec::new();
        disk.look_through(&scene.shared(), &mut |name, info| {
            let info = info.unwrap();
            seen.push((name.to_owned(), info.plain, info.directory));
            true
        })
        .unwrap();
        seen.sort();
        assert_eq!(seen, [(file.into(), true, false), (tree.into(), false, true)]);
        assert!(disk.list(&scene.shared()).unwrap().is_empty());
        scene.remove(&disk, file).unwrap();
        scene.remove(&disk, tree).unwrap();
        assert!(scene.shared_names().is_empty());
    }
}

#[test]
fn links_in_a_tree_go_and_what_they_lead_to_stays() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        let tree = scene.shared().join("tree");
        std::fs::create_dir_all(tree.join("in")).unwrap();
        symlink(&scene.outside, tree.join("in/link")).unwrap();
        symlink(&scene.outside, tree.join("link")).unwrap();
        symlink("../../outside", scene.shared().join("link")).unwrap();
        scene.remove(&disk, OsStr::new("link")).unwrap();
        scene.remove(&disk, OsStr::new("tree")).unwrap();
        assert!(scene.shared_names().is_empty() && scene.outside.join("secret").exists());
    }
}

#[test]
fn a_tree_in_another_users_directory_is_not_removed() {
    let scene = scene();
    std::fs::create_dir_all(scene.shared().join("tree/in")).unwrap();
    let (tree, aside) = (scene.shared().join("tree"), scene.shared().join("aside"));
    let refused = foreign(&scene.pool).disk.remove_tree(&tree, &aside, &mut STEPS.clone());
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert!(tree.join("in").exists());
}

#[test]
fn exchanging_directories_meanwhile_leads_no_removal_out() {
    const ROUNDS: usize = 100;
    let scene = scene();
    std::fs::create_dir(scene.outside.join("in")).unwrap();
    std::fs::write(scene.outside.join("in/secret"), "secret").unwrap();
    let at = |name: &str| scene.shared().join(name);
    for disk in disks(&scene.pool) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // A directory and a link to files that must not be touched take turns at one name.
                while !done.load(Ordering::Relaxed) {
                    let _ = std::fs::create_dir_all(at("tree/in/in"));
                    let _ = std::fs::write(at("tree/in/file"), "junk");
                    let _ = symlink(&scene.outside, at("link"));
                    let flags = RenameFlags::EXCHANGE;
                    let _ = fs::renameat_with(CWD, at("tree"), CWD, at("link"), flags);
                    let _ = fs::renameat_with(CWD, at("link/in"), CWD, at("link"), flags);
                }
            });
            for _ in 0..ROUNDS {
                for name in ["tree", "link"] {
                    let _ = scene.remove(&disk, OsStr::new(name));
                }
                let _ = scene.remove(&disk, OsStr::new("aside"));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(std::fs::read(scene.outside.join("in/secret")).unwrap(), b"secret");
        assert_eq!(std::fs::read(scene.outside.join("secret")).unwrap(), b"secret");
        let _ = scene.remove(&disk, OsStr::new("aside"));
        for name in scene.shared_names() {
            scene.remove(&disk, &name).unwrap();
        }
        assert!(scene.shared_names().is_empty());
    }
}

#[test]
fn a_removal_has_an_end_and_goes_on_the_next_time() {
    let scene = scene();
    for disk in disks(&scene.pool) {
        dig(&scene.shared().join("deep"), 100);
        let remove = |name: &str, mut steps| {
            disk.remove_tree(&scene.shared().join(name), &scene.shared().join("aside"), &mut steps)
        };
        let why = refusal(remove("deep", 50));
        assert!(why.contains("more than is removed in one go"), "{why}");
        assert_eq!(scene.shared_names(), ["aside"]);
        let mut rounds = 0;
        while !scene.shared_names().is_empty() {
            let _ = remove("aside", 50);
            rounds += 1;
            assert!(rounds < 100, "nothing is removed any more");
        }
        assert!(rounds > 2);
    }
}

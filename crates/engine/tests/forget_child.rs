//! Clones whose host is gone, and an operator who has them forgotten.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use marcot::{
    BucketOptions, ChildInfo, CloneOptions, CreateOptions, ErrorKind, ImageId, Limits, Namespace,
    Patience, Pool, Store, World,
};
use marcot_backend::local::LocalHome;
use marcot_backend::object::home::{Connect, Connected};
use marcot_backend::object::memory::MemoryService;
use marcot_backend::object::service::{
    Condition, Object, ObjectService, Page, ServiceError, Version,
};
use marcot_backend::object::{Outage, Policy, Retry, Settled};

const URL: &str = "s3://bucket/prefix";

type Hook = Box<dyn FnOnce() + Send>;

/// A service with which something happens just before an object is stored.
#[derive(Default)]
struct Hooked {
    memory: MemoryService,
    /// Part of the key, and what happens.
    hook: Mutex<Option<(&'static str, Hook)>>,
}

impl Hooked {
    fn before(&self, key: &'static str, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some((key, Box::new(hook)));
    }
}

impl ObjectService for Hooked {
    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        self.memory.get(key)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        self.memory.get_range(key, range)
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        let due = self.hook.lock().unwrap().take_if(|(part, _)| key.contains(*part));
        if let Some((_, hook)) = due {
            hook();
        }
        self.memory.put(key, bytes, condition)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        self.memory.remove(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        self.memory.list(prefix, after)
    }

    fn show(&self, key: &str) -> String {
        self.memory.show(key)
    }
}

/// Two hosts, one of which has made the pool, with a protected snapshot in it.
struct Scene {
    _root: tempfile::TempDir,
    service: Arc<Hooked>,
    stores: [Store; 2],
    template: ImageId,
}

fn connect(service: &Arc<Hooked>) -> Connect {
    let service: Arc<dyn ObjectService> = Arc::clone(service) as _;
    Arc::new(move |location, world| {
        let outage = Arc::new(Outage::default());
        let retry = Retry::new(world, Policy::command(), location.to_string(), outage);
        Ok(Connected {
            service: Arc::clone(&service),
            settled: Settled::new(Arc::clone(&service), retry.clone()),
            patient: retry,
            set_dialect: Box::new(|_| ()),
        })
    })
}

impl Scene {
    fn new() -> Self {
        let (root, service) = (tempfile::tempdir().unwrap(), Arc::<Hooked>::default());
        let stores = ["one", "two"].map(|name| {
            let (world, directory) = (World::system(), root.path().join(name));
            let connect = connect(&service);
            let home = LocalHome::open_with(&world, &directory, connect, Patience::Command);
            Store::open_home(world, Arc::new(home.unwrap()), &directory, Limits::default()).unwrap()
        });
        let pool = stores[0].pool_create_in_bucket("gold", URL, &BucketOptions::default()).unwrap();
        stores[1].pool_attach_bucket("gold", URL, &BucketOptions::default()).unwrap();
        let template = pool.create("template", &CreateOptions::sized(4 << 20)).unwrap();
        let mut image = pool.open(template).unwrap();
        image.snapshot("1").unwrap();
        image.protect("1").unwrap();
        image.close().unwrap();
        Self { _root: root, service, stores, template }
    }

    fn pool(&self, host: usize) -> Pool {
        self.stores[host].pool("gold").unwrap()
    }

    fn clone_on(&self, host: usize, dest: &Pool, name: &str) -> marcot::Result<ImageId> {
        self.pool(host).snapshot(self.template, "1").clone_to(dest, name, &CloneOptions::new())
    }

    fn children(&self, host: usize) -> Vec<ChildInfo> {
        self.stores[host].children(&self.pool(host), self.template, None).unwrap()
    }

    fn forget(&self, host: usize, child: &ChildInfo) -> marcot::Result<()> {
        self.stores[host].forget_child(&self.pool(host), self.template, child)
    }

    fn unprotect(&self, host: usize) -> marcot::Result<()> {
        let mut image = self.pool(host).open(self.template)?;
        let outcome = image.unprotect("1");
        image.close()?;
        outcome
    }
}

#[test]
fn a_clone_in_a_local_pool_of_another_host_is_known_by_that_hosts_name() {
    let scene = Scene::new();
    let vms = scene.stores[1].pool_create("vms", &Default::default()).unwrap();
    scene.clone_on(1, &vms, "web").unwrap();
    let here = scene.children(1);
    assert_eq!((here[0].seen, here[0].host.clone()), (true, None));
    // The directory that the marker names is another one on another host. So it is not looked at, though this test
    // could reach it.
    let children = scene.children(0);
    assert!(!children[0].seen && children[0].host.is_some() && children[0].created_s > 0);
    assert!(children[0].to_string().starts_with("vms/web (on host "), "{}", children[0]);
    // The host that can see it does not forget it.
    assert_eq!(scene.forget(1, &here[0]).unwrap_err().kind(), ErrorKind::Exists);
    let refused = scene.unprotect(0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    assert!(refused.sentence().to_string().contains("on host"), "{}", refused.sentence());
    scene.forget(0, &children[0]).unwrap();
    assert_eq!(scene.forget(0, &children[0]).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(scene.children(0).is_empty());
    scene.unprotect(0).unwrap();
}

#[test]
fn a_clone_that_was_forgotten_while_it_was_made_cannot_be_finished() {
    let scene = Arc::new(Scene::new());
    let other = Arc::clone(&scene);
    // The cloner has left its record, and is about to store the head.
    scene.service.before("/head", move || {
        let children = other.children(0);
        assert_eq!((children.len(), children[0].seen), (1, false));
        assert_eq!(other.unprotect(0).unwrap_err().kind(), ErrorKind::HasChildren);
        other.forget(0, &children[0]).unwrap();
        other.unprotect(0).unwrap();
    });
    let error = scene.clone_on(1, &scene.pool(1), "web").unwrap_err();
    assert!(error.kind() != ErrorKind::NotFound, "{}", error.sentence());
    let names = scene.pool(0).images(&Namespace::DEFAULT).unwrap();
    assert_eq!(names.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["template"]);
    assert!(scene.children(0).is_empty() && scene.children(1).is_empty());
}

#[test]
fn a_clone_that_was_finished_meanwhile_is_not_forgotten() {
    let scene = Arc::new(Scene::new());
    let (other, kept) = (Arc::clone(&scene), Arc::<Mutex<Option<ChildInfo>>>::default());
    let seen = Arc::clone(&kept);
    scene.service.before("/head", move || *seen.lock().unwrap() = other.children(0).pop());
    scene.clone_on(1, &scene.pool(1), "web").unwrap();
    let child = kept.lock().unwrap().take().unwrap();
    assert!(!child.seen && child.host.is_some());
    assert_eq!(scene.forget(0, &child).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(scene.children(0).len(), 1);
    assert_eq!(scene.unprotect(0).unwrap_err().kind(), ErrorKind::HasChildren);
}

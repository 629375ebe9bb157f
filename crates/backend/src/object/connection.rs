//! A connection to the service of one pool: the parts of this room put together.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use marcot_store::World;

use super::counted::{Counted, Counts};
use super::dialect::Dialect;
use super::environment::Environment;
use super::location::Location;
use super::probe::{Findings, ProbeError, probe};
use super::retry::{Outage, Policy, Retry};
use super::service::ObjectService;
use super::settled::Settled;
use super::store::{REQUEST_TIMEOUT, Store};

/// A connection to the service of one pool. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Connection {
    world: World,
    location: Location,
    store: Arc<Store>,
    service: Arc<Counted>,
    outage: Arc<Outage>,
}

/// Connects to the service of a location, as this process may. Nothing is sent. The endpoint and the region are
/// those of the location: see [`Location::completed`].
///
/// # Errors
/// `InvalidInput` for settings that do not fit together, `PermissionDenied` where no credentials are found, what
/// reading a file of credentials says; each with one sentence.
pub fn connect(location: &Location, world: &World) -> io::Result<Connection> {
    connect_with(location, world, &Environment::of_process(), REQUEST_TIMEOUT)
}

/// As [`connect`], with these variables, and with this time for a request beside the time for its bytes.
///
/// # Errors
/// As [`connect`].
pub fn connect_with(
    location: &Location,
    world: &World,
    environment: &Environment,
    request_timeout: Duration,
) -> io::Result<Connection> {
    let store = Arc::new(Store::open(location, environment, request_timeout)?);
    let below: Arc<dyn ObjectService> = Arc::<Store>::clone(&store);
    Ok(Connection {
        world: world.clone(),
        location: location.clone(),
        store,
        service: Arc::new(Counted::new(below)),
        outage: Arc::default(),
    })
}

impl Connection {
    /// Where this leads.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The service. A call is one request.
    #[must_use]
    pub fn service(&self) -> Arc<dyn ObjectService> {
        Arc::<Counted>::clone(&self.service)
    }

    /// The requests of this connection.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        self.service.counts()
    }

    /// Repeats attempts at this service. All of them share what the log says of an outage.
    #[must_use]
    pub fn retry(&self, policy: Policy) -> Retry {
        Retry::new(&self.world, policy, self.location.to_string(), Arc::clone(&self.outage))
    }

    /// The service, with every outcome settled.
    #[must_use]
    pub fn settled(&self, policy: Policy) -> Settled {
        Settled::new(self.service(), self.retry(policy))
    }

    /// Talks as an earlier probe has found it right.
    pub fn set_dialect(&self, dialect: Dialect) {
        self.store.set_dialect(dialect);
    }

    /// Tries everything that a pool needs of the service, and then talks as it was found right.
    ///
    /// # Errors
    /// As [`probe`].
    pub fn probe(&self, policy: Policy) -> Result<Findings, ProbeError> {
        let set = |dialect| self.set_dialect(dialect);
        probe(&self.settled(policy), &*self.world.random, &set)
    }
}

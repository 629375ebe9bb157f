//! S3, Azure Blob Storage and Google Cloud Storage by the crate `object_store`.
//!
//! One call is one request. The library's own repetitions are off, for all requests: it would repeat a
//! conditional request after "503", which may have been stored, and report the second answer. What a failed
//! request means stands in [`super::reason`], by what [`super::wire`] saw of it and not by the library's error.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult,
    UpdateVersion,
};

use super::Dialect;
use super::environment::Environment;
use super::location::{Kind, Location};
use super::open::{self, Client};
use super::reason::{self, Names, Past, Request};
use super::service::{Condition, ListedObject, Object, ObjectService, Page, ServiceError, Version};
use super::wire::{self, Failure, RANGE_NOT_SATISFIABLE, Trace};

/// How long a request may take, beside the time for its bytes.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that a slow line moves in a second. The time for a request's bytes follows from it.
const SLOW_LINE_BYTES: u64 = 512 << 10;
/// The bytes for which a request has time that may bring whole objects. A segment has 32 MiB.
const OBJECT_BYTES_EXPECTED: u64 = 32 << 20;
/// Threads of the runtime. They move bytes and encrypt them.
const RUNTIME_THREADS: usize = 2;

/// See the module.
pub struct Store {
    client: Arc<dyn Client>,
    location: Location,
    names: Names,
    timeout: Duration,
    bare_etags: AtomicBool,
    answered: AtomicBool,
    /// The last connection was refused.
    unreached: AtomicBool,
    had_credentials: AtomicBool,
    refused: Arc<AtomicBool>,
}

/// Why a request failed, and the status of the answer.
struct Failed {
    error: ServiceError,
    status: Option<u16>,
}

impl From<ServiceError> for Failed {
    fn from(error: ServiceError) -> Self {
        Self { error, status: None }
    }
}

impl From<Failed> for ServiceError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// The runtime below all stores of the process.
///
/// # Errors
/// What starting its threads says.
fn runtime() -> io::Result<&'static tokio::runtime::Runtime> {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("marcot-bucket")
        .enable_all()
        .build()?;
    Ok(RUNTIME.get_or_init(|| made))
}

impl Store {
    /// A client for the service of a location. Nothing is sent.
    ///
    /// # Errors
    /// `InvalidInput` for settings that do not fit together, `PermissionDenied` where no credentials are found,
    /// what reading a file of credentials says; each with one sentence.
    pub fn open(
        location: &Location,
        environment: &Environment,
        timeout: Duration,
    ) -> io::Result<Self> {
        runtime()?;
        let opened = open::open(location, environment)?;
        Ok(Self {
            client: opened.client,
            location: location.clone(),
            names: opened.names,
            timeout,
            bare_etags: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            unreached: AtomicBool::new(false),
            had_credentials: AtomicBool::new(false),
            refused: opened.refused,
        })
    }

    /// Talks as the service wants it.
    pub fn set_dialect(&self, dialect: Dialect) {
        self.bare_etags.store(dialect.bare_etags, Ordering::Relaxed);
    }

    fn path(&self, key: &str) -> Result<Path, ServiceError> {
        Path::parse(self.location.name(key))
            .map_err(|_| ServiceError::Invalid(format!("'{}' is no key", key.escape_debug())))
    }

    /// Runs a call of the library that moves so many bytes.
    fn run<T>(
        &self,
        request: Request<'_>,
        bytes: u64,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failed> {
        let runtime = runtime().map_err(|e| Failed::from(ServiceError::Unknown(e.to_string())))?;
        let trace = Trace::default();
        let timeout = self.timeout + Duration::from_secs(bytes / SLOW_LINE_BYTES);
        let outcome = runtime.block_on(async {
            tokio::time::timeout(timeout, wire::traced(Arc::clone(&trace), call)).await
        });
        let mut seen = wire::lock(&trace).clone();
        let past = Past {
            answered: self.answered.load(Ordering::Relaxed),
            had_credentials: self.had_credentials.load(Ordering::Relaxed),
        };
        if seen.sent {
            self.had_credentials.store(true, Ordering::Relaxed);
        }
        match outcome {
            Ok(Ok(value)) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(_)) => Err(self.failed(request, &seen, past)),
            Err(_) => {
                seen.failure = Some(Failure::TimedOut);
                Err(self.failed(request, &seen, past))
            }
        }
    }

    fn failed(&self, request: Request<'_>, seen: &wire::Seen, past: Past) -> Failed {
        // A code word shows that what answers is such a service.
        if seen.sent && seen.failure.is_none() && seen.code.is_some() {
            self.answered.store(true, Ordering::Relaxed);
        }
        let refused_connection = matches!(seen.failure, Some(Failure::Connect(_)));
        self.unreached.store(refused_connection, Ordering::Relaxed);
        let error = reason::error(&self.names, request, seen, past);
        if matches!(error, ServiceError::Refused(_)) {
            self.refused.store(true, Ordering::Relaxed);
        }
        Failed { error, status: seen.status.filter(|_| seen.failure.is_none()) }
    }

    fn version(
        &self,
        etag: Option<String>,
        generation: Option<String>,
    ) -> Result<Version, ServiceError> {
        let found = match self.location.kind() {
            Kind::S3 | Kind::Azure => etag,
            Kind::Google => generation,
        };
        found.map(Version).ok_or_else(|| {
            ServiceError::Unknown(format!("the service at {} gave no version", self.names.host))
        })
    }

    fn mode(&self, condition: &Condition) -> PutMode {
        match condition {
            Condition::None => PutMode::Overwrite,
            Condition::Absent => PutMode::Create,
            Condition::Is(Version(version)) => PutMode::Update(match self.location.kind() {
                Kind::S3 | Kind::Azure => {
                    let bare = self.bare_etags.load(Ordering::Relaxed);
                    let etag = if bare { version.trim_matches('"') } else { version };
                    UpdateVersion { e_tag: Some(etag.to_string()), version: None }
                }
                Kind::Google => UpdateVersion { e_tag: None, version: Some(version.clone()) },
            }),
        }
    }

    fn read(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, Failed> {
        let path = self.path(key)?;
        let bytes = range.as_ref().map_or(OBJECT_BYTES_EXPECTED, |r| r.end - r.start);
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let (meta, bytes) = self.run(Request::Get, bytes, async {
            let result = self.client.get_opts(&path, options).await?;
            let meta = result.meta.clone();
            Ok((meta, result.bytes().await?))
        })?;
        Ok(Object { bytes: bytes.into(), version: self.version(meta.e_tag, meta.version)? })
    }
}

impl ObjectService for Store {
    fn is_unreached(&self) -> bool {
        self.unreached.load(Ordering::Relaxed) && !self.answered.load(Ordering::Relaxed)
    }

    fn get(&self, key: &str) -> Result<Object, ServiceError> {
        Ok(self.read(key, None)?)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Vec<u8>, ServiceError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match self.read(key, Some(range)) {
            Ok(object) => Ok(object.bytes),
            Err(Failed { status: Some(RANGE_NOT_SATISFIABLE), .. }) => Ok(Vec::new()),
            Err(failed) => Err(failed.error),
        }
    }

    fn put(&self, key: &str, bytes: &[u8], condition: &Condition) -> Result<Version, ServiceError> {
        let path = self.path(key)?;
        let length = bytes.len() as u64;
        let payload = PutPayload::from(bytes.to_vec());
        let options = PutOptions { mode: self.mode(condition), ..PutOptions::default() };
        let PutResult { e_tag, version, .. } = self.run(
            Request::Put(condition),
            length,
            self.client.put_opts(&path, payload, options),
        )?;
        self.version(e_tag, version)
    }

    fn remove(&self, key: &str) -> Result<(), ServiceError> {
        let path = self.path(key)?;
        match self.run(Request::Remove, 0, self.client.delete(&path)) {
            Ok(()) | Err(Failed { error: ServiceError::Absent, .. }) => Ok(()),
            Err(failed) => Err(failed.error),
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, ServiceError> {
        let prefix = self.location.name(prefix);
        let own = self.location.name("");
        let mut page_token = None;
        // A service may give a page without objects and say that there are more. Only such pages cost more
        // than one request.
        loop {
            let options = PaginatedListOptions {
                offset: after.map(|key| self.location.name(key)),
                page_token,
                ..PaginatedListOptions::default()
            };
            let call = self.client.list_paginated(Some(&prefix), options);
            let found = self.run(Request::List, 0, call)?;
            let objects = found.result.objects.into_iter().filter_map(|meta| {
                let key = meta.location.as_ref().strip_prefix(&own)?.to_string();
                Some(ListedObject {
                    key,
                    bytes: meta.size,
                    stored_s: meta.last_modified.timestamp(),
                })
            });
            let mut objects: Vec<_> = objects.collect();
            objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            let more = found.page_token.is_some();
            if !objects.is_empty() || !more {
                return Ok(Page { objects, more });
            }
            page_token = found.page_token;
        }
    }

    fn show(&self, key: &str) -> String {
        match key {
            "" => self.location.to_string(),
            key => format!("{}/{key}", self.location),
        }
    }
}

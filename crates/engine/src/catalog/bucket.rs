//! Pools in buckets: making, attaching and removing them.
//!
//! The store has a note of such a pool, as of an attached one. The pool's own record, `P/pool` in the bucket, says
//! which store made it. Other stores attach it, and use it just as well. Any of them collects it, and removes it when it
//! holds no image. The others' notes lead to nothing then, until they forget it.
//!
//! Invariant: `P/pool` is made before the note, and removed before the note. So a note without a pool is what an
//! interrupted removal has left, and removing the pool again finishes it.

use marcot_backend::object::home::{Bucket, BucketOptions, Found};
use marcot_backend::{At, Key};
use marcot_format::PoolId;
use marcot_format::frame::FORMAT_LEVEL;
use marcot_format::record::{AttachedRecord, PoolRecord};

use super::names::check_pool_name;
use super::pool::Pool;
use super::store::Store;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};

impl Store {
    /// Creates a pool in a bucket, at `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`. Nothing may lie
    /// below the prefix.
    ///
    /// # Errors
    /// `Exists` where the store has a pool of this name, or the prefix holds a pool or something else; `Unsupported` where the service lacks a guarantee; `PermissionDenied` and
    /// `Invalid` as the service says.
    pub fn pool_create_in_bucket(
        &self,
        name: &str,
        url: &str,
        options: &BucketOptions,
    ) -> Result<Pool> {
        check_pool_name(name)?;
        let mut bucket = chosen(url, options)?;
        let _lock = self.lock("create a pool in it")?;
        self.check_new_pool(name)?;
        let shown = format!("cannot create pool '{name}' in {}", bucket.location);
        let context = || shown.clone();
        match self.inner.home.look(&bucket).at(context)? {
            Found::Nothing | Found::Removed => {}
            Found::Pool => return fail(ErrorKind::Exists, there_already(name, &bucket)),
            Found::Other(object) => {
                let message = format!(
                    "{} is no pool, but holds objects, such as {object}: use a prefix that holds nothing",
                    bucket.location
                );
                return fail(ErrorKind::Exists, message);
            }
        }
        self.inner.home.probe(&mut bucket).at(context)?;
        bucket.pool = PoolId(self.inner.world.random.number());
        let note = bucket.to_record().at(context)?;
        let records = self
            .inner
            .home
            .open(&At::Bucket(Box::new(bucket.clone())))
            .at(context)?
            .backend
            .records;
        let record = PoolRecord {
            pool_id: bucket.pool.0,
            store_id: self.inner.id,
            created_s: self.inner.world.clock.now_s(),
            write_level: FORMAT_LEVEL,
            ..PoolRecord::default()
        };
        match records.create(&Key::Pool, &record.to_file()) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return fail(ErrorKind::Exists, there_already(name, &bucket));
            }
            created => created.at(context)?,
        }
        if let Err(error) = self.inner.home.attach(name, &note.to_file()) {
            // Without a note, the pool would be in nobody's way but that of the next try.
            let _ = records.remove(&Key::Pool);
            return Err(error).at(context);
        }
        self.pool(name)
    }

    /// Attaches a pool in a bucket, which another store has made, or this one has detached.
    ///
    /// # Errors
    /// As [`Self::pool_create_in_bucket`]; `NotFound` where there is no pool.
    pub fn pool_attach_bucket(
        &self,
        name: &str,
        url: &str,
        options: &BucketOptions,
    ) -> Result<Pool> {
        check_pool_name(name)?;
        let mut bucket = chosen(url, options)?;
        let _lock = self.lock("attach a pool to it")?;
        self.check_new_pool(name)?;
        let shown = format!("cannot attach {} as pool '{name}'", bucket.location);
        let context = || shown.clone();
        match self.inner.home.look(&bucket).at(context)? {
            Found::Pool => {}
            Found::Nothing | Found::Removed | Found::Other(_) => {
                let message = format!(
                    "{} holds no pool: 'pool create {name} --backend {0}' makes one",
                    bucket.location
                );
                return fail(ErrorKind::NotFound, message);
            }
        }
        match self.inner.home.probe(&mut bucket) {
            // Who may only read the pool changes nothing that needs these guarantees.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                tracing::info!(pool = %name, %error, "the service was not probed, because this user may not write to it");
            }
            probed => probed.at(context)?,
        }
        bucket.pool = Pool::number_at(self, &At::Bucket(Box::new(bucket.clone())))?;
        self.check_not_known(bucket.pool, &bucket.location.to_string())?;
        let note = bucket.to_record().at(context)?;
        self.inner.home.attach(name, &note.to_file()).at(context)?;
        self.pool(name)
    }

    /// Fails where the store has a pool of this name, or the rest of one.
    fn check_new_pool(&self, name: &str) -> Result<()> {
        if self.find_pool(name)?.is_some() {
            return fail(ErrorKind::Exists, format!("pool '{name}' already exists"));
        }
        self.check_no_pool(name)
    }

    /// Finishes the removal of a pool in a bucket: what is left there, and the note.
    pub(crate) fn clear_bucket(&self, name: &str, bucket: &Bucket) -> Result<()> {
        self.inner.home.clear_bucket(bucket);
        self.inner.home.detach(name).at(|| format!("cannot forget pool '{name}'"))
    }

    /// The bucket of a pool whose removal was interrupted; `None` for any other pool.
    pub(crate) fn half_removed(&self, name: &str) -> Result<Option<Bucket>> {
        let Some(bucket) = self.bucket_of(name)? else { return Ok(None) };
        match self.inner.home.look(&bucket) {
            Ok(Found::Removed) => Ok(Some(bucket)),
            _ => Ok(None),
        }
    }

    /// Where a pool in a bucket is; `None` for any other pool.
    pub(crate) fn bucket_of(&self, name: &str) -> Result<Option<Bucket>> {
        match self.attached_record(name)? {
            Some(record) if !record.url.is_empty() => read_note(name, &record).map(Some),
            _ => Ok(None),
        }
    }
}

fn chosen(url: &str, options: &BucketOptions) -> Result<Bucket> {
    Bucket::chosen(url, options).at(|| "cannot use the bucket".to_owned())
}

/// The bucket that a note leads to.
pub(crate) fn read_note(name: &str, record: &AttachedRecord) -> Result<Bucket> {
    let bucket = Bucket::from_record(record);
    bucket.map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("the note of pool '{name}' is damaged: {error}"))
    })
}

fn there_already(name: &str, bucket: &Bucket) -> String {
    format!(
        "{} holds a pool already: use it with 'pool attach {name} --backend {0}'",
        bucket.location
    )
}

//! Where a pool in a bucket is: `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`, and how
//! its service is reached.
//!
//! A location never holds credentials. It may name the file that has them. So it can be stored, shown and
//! logged.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::profile;

/// The longest name of a bucket that a service accepts, in bytes.
const BUCKET_BYTES_MAX: usize = 222;
/// The longest prefix. Keys have 1024 bytes at most, and a pool's own keys need their part.
const PREFIX_BYTES_MAX: usize = 512;
/// The longest name of a region.
const REGION_BYTES_MAX: usize = 64;
/// The region of S3 where nothing names one, as in other programs.
const REGION_DEFAULT: &str = "us-east-1";
/// Characters that services forbid or advise against, or that need care in shells and URLs.
const UNFIT: &[char] =
    &['\\', '{', '}', '^', '%', '`', '"', '<', '>', '[', ']', '~', '#', '|', '*', '?'];

/// The kinds of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Amazon S3 and what speaks as it does.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
}

impl Kind {
    const ALL: [Self; 3] = [Self::S3, Self::Azure, Self::Google];

    /// The part of a URL before `://`.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Azure => "az",
            Self::Google => "gs",
        }
    }

    /// What the service calls a bucket.
    #[must_use]
    pub fn bucket_word(self) -> &'static str {
        match self {
            Self::S3 | Self::Google => "bucket",
            Self::Azure => "container",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    kind: Kind,
    bucket: String,
    prefix: String,
    endpoint: Option<String>,
    region: Option<String>,
    credentials: Option<PathBuf>,
}

fn bad(sentence: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, sentence.into())
}

impl Location {
    /// True for text that looks like the URL of a bucket, not like the path of a directory.
    #[must_use]
    pub fn is_url(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| {
            !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+')
        })
    }

    /// Parses the URL of a bucket and a prefix in it. A slash at the end means nothing.
    ///
    /// # Errors
    /// `InvalidInput`, with a sentence that says what is wrong.
    pub fn parse(url: &str) -> io::Result<Self> {
        const FORMS: &str = "s3://BUCKET/PREFIX, az://CONTAINER/PREFIX or gs://BUCKET/PREFIX";
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(bad(format!("'{url}' does not name a bucket: use {FORMS}")));
        };
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.scheme() == scheme) else {
            return Err(bad(format!("'{scheme}://' is not a known back end: use {FORMS}")));
        };
        // Text with these characters may hold a password or a signature. It is not repeated.
        if rest.contains('@') {
            return Err(bad(format!(
                "a {scheme}:// URL must not have a user or a password: leave out what stands before '@'"
            )));
        }
        if rest.contains(['?', '#']) {
            return Err(bad(format!(
                "a {scheme}:// URL has a {} and a prefix only: leave out what begins with '?' or '#'",
                kind.bucket_word()
            )));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        check_bucket(kind, url, bucket)?;
        check_prefix(url, prefix)?;
        Ok(Self {
            kind,
            bucket: bucket.to_string(),
            prefix: prefix.to_string(),
            endpoint: None,
            region: None,
            credentials: None,
        })
    }

    /// Reaches the service at this URL, such as `https://objects.example.org:8080`.
    ///
    /// # Errors
    /// `InvalidInput`, with a sentence that says what is wrong.
    pub fn with_endpoint(mut self, url: &str) -> io::Result<Self> {
        check_endpoint(url)?;
        self.endpoint = Some(url.trim_end_matches('/').to_string());
        Ok(self)
    }

    /// The bucket is in this region.
    ///
    /// # Errors
    /// `InvalidInput`, with a sentence that says what is wrong.
    pub fn with_region(mut self, region: &str) -> io::Result<Self> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if region.is_empty() || region.len() > REGION_BYTES_MAX || !region.bytes().all(fits) {
            return Err(bad(format!(
                "'{region}' cannot be a region: it has letters, digits and '-', as in eu-central-1"
            )));
        }
        self.region = Some(region.to_string());
        Ok(self)
    }

    /// The credentials are read from this file. Its path is stored with the pool, so it must be absolute.
    ///
    /// # Errors
    /// `InvalidInput`, with a sentence that says what is wrong.
    pub fn with_credentials(mut self, path: &Path) -> io::Result<Self> {
        if !path.is_absolute() {
            return Err(bad(format!(
                "the path of the credentials file must be absolute, not '{}'",
                path.display()
            )));
        }
        self.credentials = Some(path.to_path_buf());
        Ok(self)
    }

    /// Fills in the endpoint and the region from where users of the service keep them. Afterwards the location
    /// means the same place in every environment, so this is done once, when a pool is created or attached.
    ///
    /// # Errors
    /// `InvalidInput` for a value that cannot be right, or for an Azure account that nothing names; what
    /// reading a profile file says.
    pub fn completed(self, environment: &Environment) -> io::Result<Self> {
        match self.kind {
            Kind::S3 => self.completed_s3(environment),
            Kind::Azure => self.completed_azure(environment),
            Kind::Google => Ok(self),
        }
    }

    fn completed_s3(mut self, environment: &Environment) -> io::Result<Self> {
        let profile = profile::find(environment, self.credentials.as_deref())?;
        let of_profile = |key: &str| profile.as_ref().and_then(|found| found.value(key));
        if self.endpoint.is_none() {
            let found = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
                .into_iter()
                .find_map(|name| environment.value(name))
                .or_else(|| of_profile("endpoint_url"));
            if let Some(url) = found {
                self = self.with_endpoint(&url)?;
            }
        }
        if self.region.is_none() {
            let found = ["AWS_REGION", "AWS_DEFAULT_REGION"]
                .into_iter()
                .find_map(|name| environment.value(name))
                .or_else(|| of_profile("region"))
                .unwrap_or_else(|| REGION_DEFAULT.to_string());
            self = self.with_region(&found)?;
        }
        Ok(self)
    }

    fn completed_azure(self, environment: &Environment) -> io::Result<Self> {
        if self.endpoint.is_some() {
            return Ok(self);
        }
        let environment =
            environment.with_file(self.credentials.as_deref())?.with_connection_string();
        if let Some(url) = environment.value("AZURE_STORAGE_ENDPOINT") {
            return self.with_endpoint(&url);
        }
        let account = ["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"]
            .into_iter()
            .find_map(|name| environment.value(name));
        match account {
            Some(account) if account.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                self.with_endpoint(&format!("https://{account}.blob.core.windows.net"))
            }
            Some(account) => Err(bad(format!("'{account}' cannot be a storage account of Azure"))),
            None => Err(bad(format!(
                "nothing says which storage account has the container '{}': set AZURE_STORAGE_ACCOUNT, or \
                 use --endpoint https://ACCOUNT.blob.core.windows.net",
                self.bucket
            ))),
        }
    }

    /// The kind of the service.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The bucket, or the container.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What the keys of the pool begin with, without a slash at its end; empty for the whole bucket.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The URL of the service; `None` for the provider's own.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// The region of the bucket.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// The file with the credentials.
    #[must_use]
    pub fn credentials(&self) -> Option<&Path> {
        self.credentials.as_deref()
    }

    /// The object's name in the bucket.
    #[must_use]
    pub(super) fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_string() } else { format!("{}/{key}", self.prefix) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.kind.scheme(), self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

fn check_bucket(kind: Kind, url: &str, bucket: &str) -> io::Result<()> {
    let word = kind.bucket_word();
    if bucket.is_empty() {
        return Err(bad(format!("'{url}' names no {word}")));
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if bucket.len() > BUCKET_BYTES_MAX
        || !bucket.bytes().all(fits)
        || !bucket.as_bytes()[0].is_ascii_alphanumeric()
    {
        return Err(bad(format!(
            "'{bucket}' cannot be a {word}: its name has letters, digits, '-', '.' and '_', and begins with \
             a letter or a digit"
        )));
    }
    Ok(())
}

fn check_prefix(url: &str, prefix: &str) -> io::Result<()> {
    if prefix.is_empty() {
        return Ok(());
    }
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err(bad(format!("the prefix in '{url}' is longer than {PREFIX_BYTES_MAX} bytes")));
    }
    if prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(bad(format!("no part of the prefix in '{url}' may be empty, '.' or '..'")));
    }
    if let Some(c) = prefix.chars().find(|c| c.is_control() || UNFIT.contains(c)) {
        return Err(bad(format!("the prefix in '{}' must not contain {c:?}", url.escape_debug())));
    }
    Ok(())
}

fn check_endpoint(url: &str) -> io::Result<()> {
    const EXAMPLE: &str = "use a URL such as https://objects.example.org:8080";
    if url.contains(['@', '?', '#']) {
        return Err(bad(format!(
            "the URL of an endpoint must not have a user, a password, '?' or '#': {EXAMPLE}"
        )));
    }
    let Some(rest) = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")) else {
        return Err(bad(format!(
            "the endpoint '{url}' does not begin with https:// or http://: {EXAMPLE}"
        )));
    };
    let host = rest.split('/').next().unwrap_or_default();
    let fits = is_url_with_host(url);
    if host.is_empty() || !fits || url.contains(char::is_whitespace) {
        return Err(bad(format!("the endpoint '{url}' names no host and port: {EXAMPLE}")));
    }
    Ok(())
}

#[cfg(feature = "services")]
fn is_url_with_host(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|parsed| parsed.has_host())
}

/// Nobody uses it.
#[cfg(not(feature = "services"))]
fn is_url_with_host(_: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(url: &str) -> String {
        Location::parse(url).unwrap_err().to_string()
    }

    #[test]
    fn urls_of_the_three_kinds_are_parsed_and_shown_again() {
        for url in ["s3://bucket/a/b", "az://con-tainer/x", "gs://b.u_c/π", "s3://bucket"] {
            assert_eq!(Location::parse(url).unwrap().to_string(), url);
        }
        let location = Location::parse("s3://bucket/a/b/").unwrap();
        assert_eq!(location.to_string(), "s3://bucket/a/b");
        assert_eq!((location.kind(), location.bucket()), (Kind::S3, "bucket"));
        assert_eq!(location.name("pool"), "a/b/pool");
        assert_eq!(Location::parse("gs://bucket").unwrap().name("pool"), "pool");
    }

    #[test]
    fn each_bad_url_gives_one_sentence_that_names_what_is_wrong() {
        for (url, part) in [
            ("bucket/prefix", "does not name a bucket"),
            ("ftp://bucket/prefix", "'ftp://' is not a known back end"),
            ("s3://", "names no bucket"),
            ("az:///prefix", "names no container"),
            ("s3://bu cket/x", "cannot be a bucket"),
            ("s3://-bucket/x", "cannot be a bucket"),
            ("s3://bucket//x", "may be empty"),
            ("s3://bucket/a/../x", "'.' or '..'"),
            ("s3://bucket/a\tb", "must not contain '\\t'"),
            ("s3://bucket/a*b", "must not contain '*'"),
        ] {
            let sentence = sentence(url);
            assert!(sentence.contains(part), "{url}: {sentence}");
            assert!(!sentence.contains('\n') && !sentence.contains('\t'), "{sentence}");
        }
        let long = format!("s3://bucket/{}", "x".repeat(PREFIX_BYTES_MAX + 1));
        assert!(sentence(&long).contains("longer than"));
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in ["s3://key:SECRET@bucket/x", "az://c/x?sig=SECRET", "gs://b/x#SECRET"] {
            let sentence = sentence(url);
            assert!(!sentence.contains("SECRET"), "{sentence}");
        }
        let location = Location::parse("s3://bucket/x").unwrap();
        for url in ["https://key:SECRET@host", "https://host/?sig=SECRET"] {
            let error = location.clone().with_endpoint(url).unwrap_err().to_string();
            assert!(!error.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn endpoints_regions_and_credential_files_are_checked() {
        let location = Location::parse("s3://bucket/x").unwrap();
        for url in ["host:80", "ftp://host", "http://", "https:///x", "http://host:port"] {
            assert!(location.clone().with_endpoint(url).is_err(), "{url}");
        }
        let found = location.clone().with_endpoint("http://127.0.0.1:80/").unwrap();
        assert_eq!(found.endpoint(), Some("http://127.0.0.1:80"));
        assert!(location.clone().with_region("eu central").is_err());
        assert!(location.clone().with_region("").is_err());
        assert!(location.clone().with_credentials(Path::new("keys")).is_err());
        assert!(location.with_credentials(Path::new("/etc/keys")).is_ok());
    }

    #[test]
    fn a_completed_location_has_endpoint_and_region_of_the_environment() {
        let location = Location::parse("s3://bucket/x").unwrap();
        let none = Environment::of(&[]);
        assert_eq!(location.clone().completed(&none).unwrap().region(), Some("us-east-1"));
        let both = Environment::of(&[
            ("AWS_ENDPOINT_URL", "http://general"),
            ("AWS_ENDPOINT_URL_S3", "http://host:1"),
            ("AWS_DEFAULT_REGION", "eu-central-1"),
        ]);
        let found = location.clone().completed(&both).unwrap();
        assert_eq!(
            (found.endpoint(), found.region()),
            (Some("http://host:1"), Some("eu-central-1"))
        );
        let chosen = location.with_endpoint("http://mine").unwrap().with_region("r").unwrap();
        let found = chosen.completed(&both).unwrap();
        assert_eq!((found.endpoint(), found.region()), (Some("http://mine"), Some("r")));
    }

    #[test]
    fn a_container_needs_its_account() {
        let location = Location::parse("az://con/x").unwrap();
        let error = location.clone().completed(&Environment::of(&[])).unwrap_err();
        assert!(error.to_string().contains("AZURE_STORAGE_ACCOUNT"), "{error}");
        let environment = Environment::of(&[("AZURE_STORAGE_ACCOUNT", "gold")]);
        let found = location.completed(&environment).unwrap();
        assert_eq!(found.endpoint(), Some("https://gold.blob.core.windows.net"));
    }
}

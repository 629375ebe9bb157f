//! Makes the client of a service, with the credentials that its users' other programs would use.
//!
//! | service | first the file of `--credentials` | then |
//! |---|---|---|
//! | S3 | a profile file | the environment, web identity, the profile files, a container's, the instance's metadata |
//! | Azure | lines `NAME=value`, or a connection string | the environment, the instance's metadata |
//! | GCS | a service account or an authorized user, in JSON | the environment, gcloud's file, the instance's metadata |
//!
//! Credentials stay in this file and in the library. The endpoint and the region come from the location alone.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::CredentialProvider;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::PaginatedListStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use super::environment::{Environment, read_secret};
use super::location::{Kind, Location};
use super::profile::{self, Keys};
use super::reason::Names;
use super::wire::{self, Connector};

/// How long the keys of a profile are used before its file is read again. Programs that renew keys replace
/// the file some minutes before the old ones expire.
const PROFILE_READ_INTERVAL: Duration = Duration::from_secs(30);

/// What is used of the library's clients.
pub(super) trait Client: ObjectStore + PaginatedListStore {}
impl<T: ObjectStore + PaginatedListStore> Client for T {}

/// A client, and how messages name what it reaches.
pub(super) struct Opened {
    pub client: Arc<dyn Client>,
    pub names: Names,
    /// Set where the service refuses: files of keys are then read again before the next request.
    pub refused: Arc<AtomicBool>,
}

/// No request is sent twice by the library. Whether one may be sent again is not for it to know.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, backoff: BackoffConfig::default() }
}

fn refused(kind: io::ErrorKind, sentence: impl Into<String>) -> io::Error {
    io::Error::new(kind, sentence.into())
}

/// Makes the client. Nothing is sent.
///
/// # Errors
/// `InvalidInput` or `PermissionDenied`, with one sentence; what reading a file says.
pub(super) fn open(location: &Location, environment: &Environment) -> io::Result<Opened> {
    match location.kind() {
        Kind::S3 => open_s3(location, environment),
        Kind::Azure => open_azure(location, environment),
        Kind::Google => open_google(location, environment),
    }
}

fn connector(service: &str, environment: &Environment) -> io::Result<Connector> {
    let bundle = environment.value("AWS_CA_BUNDLE").map(PathBuf::from);
    let pem = bundle.map(std::fs::read).transpose().map_err(|e| {
        refused(e.kind(), format!("cannot read the certificates that AWS_CA_BUNDLE names: {e}"))
    })?;
    Connector::new(service, pem.as_deref()).map_err(|why| refused(io::ErrorKind::InvalidInput, why))
}

fn names(location: &Location, service: &str, credentials: String, remedy: &'static str) -> Names {
    let host = service.split("://").nth(1).unwrap_or(service);
    Names {
        bucket_word: location.kind().bucket_word(),
        bucket: location.bucket().to_string(),
        host: host.split('/').next().unwrap_or(host).to_string(),
        region: location.region().map(str::to_string),
        credentials,
        credentials_remedy: remedy,
    }
}

const S3_REMEDY: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose a profile with AWS_PROFILE, or \
                         use --credentials FILE";
const AZURE_REMEDY: &str =
    "set AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, or use --credentials FILE";
const GOOGLE_REMEDY: &str = "set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or use --credentials FILE";

fn open_s3(location: &Location, environment: &Environment) -> io::Result<Opened> {
    let region = location.region().unwrap_or("us-east-1");
    let bucket = location.bucket();
    // Names with dots do not fit the certificates of Amazon's hosts.
    let own_host = location.endpoint().is_none() && !bucket.contains('.');
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let service = match location.endpoint() {
        Some(url) => url.to_string(),
        None if own_host => format!("https://{bucket}.s3.{region}.{domain}"),
        None => format!("https://s3.{region}.{domain}"),
    };
    let builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_endpoint(&service)
        .with_virtual_hosted_style_request(own_host)
        .with_retry(no_retries())
        // One object is one request that every service knows; the library would send lists of them.
        .with_disable_bulk_delete(true)
        .with_http_connector(connector(&service, environment)?);
    let refused_before = Arc::default();
    let (builder, credentials) = s3_credentials(builder, location, environment, &refused_before)?;
    let client = builder.build().map_err(|_| {
        let sentence = format!("the settings for {location} do not fit together: {S3_REMEDY}");
        refused(io::ErrorKind::InvalidInput, sentence)
    })?;
    Ok(Opened {
        client: Arc::new(client),
        names: names(location, &service, credentials, S3_REMEDY),
        refused: refused_before,
    })
}

/// Adds credentials, and tells where they are from.
fn s3_credentials(
    builder: AmazonS3Builder,
    location: &Location,
    environment: &Environment,
    refused_before: &Arc<AtomicBool>,
) -> io::Result<(AmazonS3Builder, String)> {
    if location.credentials().is_none() {
        if environment.is_set("AWS_SKIP_SIGNATURE") {
            return Ok((builder.with_skip_signature(true), "no credentials".to_string()));
        }
        if let Some(id) = environment.value("AWS_ACCESS_KEY_ID") {
            let Some(secret) = environment.value("AWS_SECRET_ACCESS_KEY") else {
                let sentence = "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not";
                return Err(refused(io::ErrorKind::PermissionDenied, sentence));
            };
            let mut builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            if let Some(token) = environment.value("AWS_SESSION_TOKEN") {
                builder = builder.with_token(token);
            }
            return Ok((builder, "the environment".to_string()));
        }
        if let (Some(file), Some(role)) =
            (environment.value("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.value("AWS_ROLE_ARN"))
        {
            let mut builder = builder
                .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, file)
                .with_config(AmazonS3ConfigKey::RoleArn, role);
            if let Some(name) = environment.value("AWS_ROLE_SESSION_NAME") {
                builder = builder.with_config(AmazonS3ConfigKey::RoleSessionName, name);
            }
            return Ok((builder, "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE".to_string()));
        }
    }
    if let Some(found) = profile::find(environment, location.credentials())? {
        let words = found.words();
        if found.keys()?.is_some() {
            let file = location.credentials().map(PathBuf::from);
            let keys = ProfileKeys {
                environment: environment.clone(),
                file,
                refused: Arc::clone(refused_before),
                last: Mutex::default(),
            };
            return Ok((builder.with_credentials(Arc::new(keys)), words));
        }
        if location.credentials().is_some() || environment.value("AWS_PROFILE").is_some() {
            let sentence = format!("{words} lacks aws_access_key_id and aws_secret_access_key");
            return Err(refused(io::ErrorKind::PermissionDenied, sentence));
        }
    }
    s3_metadata(builder, location, environment)
}

/// Credentials of the container or of the instance that this runs in.
fn s3_metadata(
    mut builder: AmazonS3Builder,
    location: &Location,
    environment: &Environment,
) -> io::Result<(AmazonS3Builder, String)> {
    if let Some(uri) = environment.value("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        builder = builder.with_config(AmazonS3ConfigKey::ContainerCredentialsRelativeUri, uri);
        return Ok((builder, "the container's metadata".to_string()));
    }
    if let (Some(uri), Some(file)) = (
        environment.value("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        environment.value("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
    ) {
        builder = builder
            .with_config(AmazonS3ConfigKey::ContainerCredentialsFullUri, uri)
            .with_config(AmazonS3ConfigKey::ContainerAuthorizationTokenFile, file);
        return Ok((builder, "the container's metadata".to_string()));
    }
    if environment.is_set("AWS_EC2_METADATA_DISABLED") {
        let sentence = format!("no credentials for {location} were found: {S3_REMEDY}");
        return Err(refused(io::ErrorKind::PermissionDenied, sentence));
    }
    if let Some(url) = environment.value("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        builder = builder.with_metadata_endpoint(url.trim_end_matches('/'));
    }
    Ok((builder, "the instance's metadata".to_string()))
}

/// The keys of a profile, read again from time to time and after a refusal.
struct ProfileKeys {
    environment: Environment,
    file: Option<PathBuf>,
    refused: Arc<AtomicBool>,
    last: Mutex<Option<(tokio::time::Instant, Arc<AwsCredential>)>>,
}

impl fmt::Debug for ProfileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProfileKeys")
    }
}

impl ProfileKeys {
    fn read(&self) -> io::Result<Keys> {
        let found = profile::find(&self.environment, self.file.as_deref())?;
        let keys = found.map(|profile| profile.keys()).transpose()?.flatten();
        keys.ok_or_else(|| refused(io::ErrorKind::NotFound, "the profile has no keys any more"))
    }
}

#[async_trait]
impl CredentialProvider for ProfileKeys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = tokio::time::Instant::now();
        let refused = self.refused.swap(false, Ordering::Relaxed);
        if let Some((at, keys)) = &*last
            && !refused
            && now.duration_since(*at) < PROFILE_READ_INTERVAL
        {
            return Ok(Arc::clone(keys));
        }
        let read = self.read().inspect_err(|error| {
            wire::note(|seen| seen.credentials = Some(error.to_string()));
        });
        let keys = read.map_err(|error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(error),
        })?;
        let keys = AwsCredential { key_id: keys.id, secret_key: keys.secret, token: keys.token };
        let keys = Arc::new(keys);
        *last = Some((now, Arc::clone(&keys)));
        Ok(keys)
    }
}

fn open_azure(location: &Location, environment: &Environment) -> io::Result<Opened> {
    let environment = environment.with_file(location.credentials())?.with_connection_string();
    let Some(service) = location.endpoint() else {
        let sentence =
            format!("nothing says which storage account has {location}: use --endpoint URL");
        return Err(refused(io::ErrorKind::InvalidInput, sentence));
    };
    let account = environment
        .value("AZURE_STORAGE_ACCOUNT")
        .or_else(|| environment.value("AZURE_STORAGE_ACCOUNT_NAME"))
        .unwrap_or_else(|| account_of(service));
    let mut builder = MicrosoftAzureBuilder::new()
        .with_container_name(location.bucket())
        .with_account(account)
        .with_endpoint(service.to_string())
        .with_allow_http(service.starts_with("http://"))
        .with_retry(no_retries())
        .with_http_connector(connector(service, &environment)?);
    let mut credentials = "the instance's metadata".to_string();
    for (name, key) in [
        ("AZURE_STORAGE_ACCOUNT_KEY", AzureConfigKey::AccessKey),
        ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey),
        ("AZURE_STORAGE_SAS_TOKEN", AzureConfigKey::SasKey),
        ("AZURE_STORAGE_TOKEN", AzureConfigKey::Token),
        ("AZURE_CLIENT_ID", AzureConfigKey::ClientId),
        ("AZURE_CLIENT_SECRET", AzureConfigKey::ClientSecret),
        ("AZURE_TENANT_ID", AzureConfigKey::AuthorityId),
        ("AZURE_AUTHORITY_HOST", AzureConfigKey::AuthorityHost),
        ("AZURE_FEDERATED_TOKEN_FILE", AzureConfigKey::FederatedTokenFile),
    ] {
        if let Some(value) = environment.value(name) {
            builder = builder.with_config(key, value);
            credentials = match location.credentials() {
                Some(path) => path.display().to_string(),
                None => "the environment".to_string(),
            };
        }
    }
    let client = builder.build().map_err(|_| {
        let sentence =
            format!("the credentials from {credentials} have not the right form: {AZURE_REMEDY}");
        refused(io::ErrorKind::InvalidInput, sentence)
    })?;
    let names = names(location, service, credentials, AZURE_REMEDY);
    Ok(Opened { client: Arc::new(client), names, refused: Arc::default() })
}

/// The account in `https://ACCOUNT.blob.core.windows.net`, or in `http://host:port/ACCOUNT`.
fn account_of(service: &str) -> String {
    let rest = service.split("://").nth(1).unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let first = if path.is_empty() { host.split('.').next() } else { path.split('/').next() };
    first.unwrap_or_default().to_string()
}

fn open_google(location: &Location, environment: &Environment) -> io::Result<Opened> {
    const GOOGLE: &str = "https://storage.googleapis.com";
    let service = location.endpoint().unwrap_or(GOOGLE);
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(location.bucket())
        .with_base_url(service)
        .with_retry(no_retries())
        .with_http_connector(connector(service, environment)?);
    let file = location.credentials().map(PathBuf::from).or_else(|| {
        let names = ["GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"];
        names.into_iter().find_map(|name| environment.value(name)).map(PathBuf::from)
    });
    let mut credentials = "the instance's metadata".to_string();
    if environment.is_set("GOOGLE_SKIP_SIGNATURE") && location.credentials().is_none() {
        builder = builder.with_skip_signature(true);
        credentials = "no credentials".to_string();
    } else if let Some(path) = &file {
        // The library's own errors may repeat parts of the file. This one does not.
        read_secret(path)?;
        builder = builder.with_application_credentials(path.display().to_string());
        credentials = path.display().to_string();
    } else if let Some(path) =
        environment.below_home(".config/gcloud/application_default_credentials.json")
        && path.exists()
    {
        credentials = path.display().to_string();
    }
    let client = builder.build().map_err(|_| {
        let sentence =
            format!("the credentials in {credentials} have not the right form: {GOOGLE_REMEDY}");
        refused(io::ErrorKind::InvalidInput, sentence)
    })?;
    let names = names(location, service, credentials, GOOGLE_REMEDY);
    Ok(Opened { client: Arc::new(client), names, refused: Arc::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3() -> Location {
        Location::parse("s3://bucket/x").unwrap().with_endpoint("http://127.0.0.1:1").unwrap()
    }

    #[test]
    fn credentials_come_from_the_first_place_that_has_them() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().to_str().unwrap();
        std::fs::create_dir(directory.path().join(".aws")).unwrap();
        let text = "[default]\naws_access_key_id=A\naws_secret_access_key=B\n";
        let path = directory.path().join(".aws/credentials");
        std::fs::write(&path, text).unwrap();
        let keys = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S"), ("HOME", home)];
        let from = |location: &Location, variables: &[(&str, &str)]| {
            open(location, &Environment::of(variables)).map(|opened| opened.names.credentials)
        };
        assert_eq!(from(&s3(), &keys).unwrap(), "the environment");
        assert!(from(&s3(), &keys[2..]).unwrap().starts_with("profile 'default' of"));
        let chosen = s3().with_credentials(&path).unwrap();
        assert!(from(&chosen, &keys).unwrap().starts_with("profile 'default' of"));
        assert_eq!(from(&s3(), &[]).unwrap(), "the instance's metadata");
        let error = from(&s3(), &[("AWS_EC2_METADATA_DISABLED", "true")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("AWS_PROFILE"), "{error}");
        let error = from(&s3(), &[("AWS_ACCESS_KEY_ID", "A")]).unwrap_err();
        assert!(error.to_string().contains("AWS_SECRET_ACCESS_KEY is not"), "{error}");
    }

    #[test]
    fn the_account_of_azure_is_in_its_endpoint() {
        assert_eq!(account_of("https://gold.blob.core.windows.net"), "gold");
        assert_eq!(account_of("http://127.0.0.1:10000/devstoreaccount1"), "devstoreaccount1");
    }

    #[test]
    fn a_broken_file_of_credentials_is_named_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, "SECRET").unwrap();
        for url in ["s3://b/x", "az://b/x", "gs://b/x"] {
            let location = Location::parse(url).unwrap().with_credentials(&path).unwrap();
            let location = location.with_endpoint("http://127.0.0.1:1").unwrap();
            let Err(error) = open(&location, &Environment::of(&[])) else { panic!("{url}") };
            let sentence = format!("{error} {error:?}");
            assert!(sentence.contains("keys") && !sentence.contains("SECRET"), "{sentence}");
        }
    }
}

//! The variables of a process that say where a service is and who may use it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The variables that may count where a pool lies in a bucket. A process that gets an environment of its own, and
/// opens such pools, needs those of them that are set.
pub const VARIABLES: &[&str] = &[
    // Where files of credentials lie.
    "HOME",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SKIP_SIGNATURE",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_CA_BUNDLE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SKIP_SIGNATURE",
    // What the HTTP client reads itself: proxies, and the certificates of authorities.
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Variables by name. Their values may be secrets, so they are never shown.
#[derive(Clone)]
pub struct Environment {
    /// Looked at first: what a file says.
    first: Arc<HashMap<String, String>>,
    /// False where the variables of the process do not count.
    of_process: bool,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

impl Environment {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self { first: Arc::default(), of_process: true }
    }

    /// These variables and no others.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let first = variables.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
        Self { first: Arc::new(first), of_process: false }
    }

    /// The value of one of [`VARIABLES`]; `None` also for an empty one.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<String> {
        debug_assert!(VARIABLES.contains(&name), "{name} would be missing in other processes");
        let of_process = || self.of_process.then(|| std::env::var(name).ok()).flatten();
        self.first.get(name).cloned().or_else(of_process).filter(|value| !value.is_empty())
    }

    /// True where a variable is set to `true` or `1`.
    #[must_use]
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true"))
    }

    /// A path below the user's home directory.
    #[must_use]
    pub(super) fn below_home(&self, path: &str) -> Option<PathBuf> {
        self.value("HOME").map(|home| Path::new(&home).join(path))
    }

    /// These variables, and before them those of a file with lines `NAME=value`. Lines that begin with `#` do
    /// not count. A line of an Azure connection string counts as its parts.
    ///
    /// # Errors
    /// What reading the file says; `InvalidData` for a line that is neither.
    pub(super) fn with_file(&self, path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(self.clone()) };
        let text = read_secret(path)?;
        let mut first = (*self.first).clone();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((name, value)) = line.split_once('=') else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("line {} of {} is not NAME=value", number + 1, path.display()),
                ));
            };
            let value = value.trim().trim_matches(['"', '\'']);
            if name == "DefaultEndpointsProtocol" || name == "AZURE_STORAGE_CONNECTION_STRING" {
                let string = if name == "DefaultEndpointsProtocol" { line } else { value };
                first.extend(of_connection_string(string));
            } else {
                first.insert(name.trim().to_string(), value.to_string());
            }
        }
        Ok(Self { first: Arc::new(first), of_process: self.of_process })
    }

    /// These variables, with the parts of a connection string of Azure as variables of their own.
    #[must_use]
    pub(super) fn with_connection_string(&self) -> Self {
        let Some(string) = self.value("AZURE_STORAGE_CONNECTION_STRING") else {
            return self.clone();
        };
        let mut first: HashMap<_, _> = of_connection_string(&string).collect();
        first.extend((*self.first).clone());
        Self { first: Arc::new(first), of_process: self.of_process }
    }
}

/// The parts of `AccountName=a;AccountKey=k;BlobEndpoint=u;...` that matter, by the names of variables.
fn of_connection_string(string: &str) -> impl Iterator<Item = (String, String)> {
    string.split(';').filter_map(|part| {
        let (name, value) = part.trim().split_once('=')?;
        let name = match name {
            "AccountName" => "AZURE_STORAGE_ACCOUNT",
            "AccountKey" => "AZURE_STORAGE_KEY",
            "SharedAccessSignature" => "AZURE_STORAGE_SAS_TOKEN",
            "BlobEndpoint" => "AZURE_STORAGE_ENDPOINT",
            _ => return None,
        };
        Some((name.to_string(), value.to_string()))
    })
}

/// The text of a file with credentials.
///
/// # Errors
/// What the operating system says, with the path.
pub(super) fn read_secret(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        let sentence = format!("cannot read the credentials in {}: {e}", path.display());
        io::Error::new(e.kind(), sentence)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_goes_before_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(
            &path,
            "# comment\nexport AZURE_STORAGE_ACCOUNT=gold\nAZURE_STORAGE_KEY=\"a==\"\n\n",
        )
        .unwrap();
        let environment =
            Environment::of(&[("AZURE_STORAGE_KEY", "old"), ("AZURE_TENANT_ID", "x")]);
        let found = environment.with_file(Some(&path)).unwrap();
        assert_eq!(found.value("AZURE_STORAGE_KEY").as_deref(), Some("a=="));
        assert_eq!(found.value("AZURE_STORAGE_ACCOUNT").as_deref(), Some("gold"));
        assert_eq!(found.value("AZURE_TENANT_ID").as_deref(), Some("x"));
        assert_eq!(found.value("AZURE_STORAGE_SAS_TOKEN"), None);
    }

    #[test]
    fn a_connection_string_counts_as_its_parts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let string =
            "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=k==;BlobEndpoint=http://h:1/a";
        std::fs::write(&path, string).unwrap();
        let of_file = Environment::of(&[]).with_file(Some(&path)).unwrap();
        let of_variable = Environment::of(&[("AZURE_STORAGE_CONNECTION_STRING", string)]);
        for found in [of_file, of_variable.with_connection_string()] {
            assert_eq!(found.value("AZURE_STORAGE_ACCOUNT").as_deref(), Some("a"));
            assert_eq!(found.value("AZURE_STORAGE_KEY").as_deref(), Some("k=="));
            assert_eq!(found.value("AZURE_STORAGE_ENDPOINT").as_deref(), Some("http://h:1/a"));
        }
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, "A=b\nSECRET\n").unwrap();
        let error = Environment::of(&[]).with_file(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("SECRET"), "{error}");
        assert!(!format!("{:?}", Environment::of(&[("A", "SECRET")])).contains("SECRET"));
    }
}

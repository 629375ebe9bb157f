//! The profile files of Amazon's tools: `~/.aws/credentials` and `~/.aws/config`, or one file of that form.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::environment::{Environment, read_secret};

/// The profile that is used where nothing names one.
const DEFAULT: &str = "default";

/// A named set of values. They may be secrets, so they are never shown.
pub(super) struct Profile {
    name: String,
    values: HashMap<String, String>,
    files: Vec<PathBuf>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())
    }
}

/// A key pair of a profile.
pub(super) struct Keys {
    pub id: String,
    pub secret: String,
    pub token: Option<String>,
}

impl Profile {
    /// A value; `None` also for an empty one.
    pub fn value(&self, key: &str) -> Option<String> {
        self.values.get(key).filter(|value| !value.is_empty()).cloned()
    }

    /// What messages call it.
    pub fn words(&self) -> String {
        let files: Vec<_> = self.files.iter().map(|path| path.display().to_string()).collect();
        format!("profile '{}' of {}", self.name, files.join(" and "))
    }

    /// The key pair, if the profile has one.
    ///
    /// # Errors
    /// `InvalidData` for half a pair; `Unsupported` for a profile that only says where to ask for keys.
    pub fn keys(&self) -> io::Result<Option<Keys>> {
        let id = self.value("aws_access_key_id");
        let secret = self.value("aws_secret_access_key");
        match (id, secret) {
            (Some(id), Some(secret)) => {
                Ok(Some(Keys { id, secret, token: self.value("aws_session_token") }))
            }
            (None, None) => match self.values.keys().find(|key| asks_elsewhere(key)) {
                Some(key) => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!(
                        "{} has '{key}', which marcot does not follow: run `aws configure export-credentials \
                         --format env`, or give a profile with aws_access_key_id",
                        self.words()
                    ),
                )),
                None => Ok(None),
            },
            (id, _) => {
                let missing =
                    if id.is_some() { "aws_secret_access_key" } else { "aws_access_key_id" };
                let sentence = format!("{} lacks {missing}", self.words());
                Err(io::Error::new(io::ErrorKind::InvalidData, sentence))
            }
        }
    }
}

/// True for keys of a profile whose credentials are to be had from elsewhere.
fn asks_elsewhere(key: &str) -> bool {
    matches!(key, "credential_process" | "role_arn" | "sso_session" | "sso_start_url")
        || key == "web_identity_token_file"
}

/// The profile that the environment names, or the default one. It is read from `file`, or else from the files
/// in the user's home. `None` where there are no such files.
///
/// # Errors
/// What reading the files says; `NotFound` for a profile that was named and is nowhere; `InvalidData`.
pub(super) fn find(environment: &Environment, file: Option<&Path>) -> io::Result<Option<Profile>> {
    let named = environment.value("AWS_PROFILE");
    let name = named.clone().unwrap_or_else(|| DEFAULT.to_string());
    let mut profile = Profile { name, values: HashMap::new(), files: Vec::new() };
    let mut found = false;
    let mut read = Vec::new();
    for (path, must_exist) in files(environment, file) {
        let text = match read_secret(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => continue,
            Err(error) => return Err(error),
        };
        for (key, value) in section(&text, &profile.name, &path)?.into_iter().flatten() {
            // What stands in the first file counts.
            profile.values.entry(key).or_insert(value);
            found = true;
        }
        read.push(path);
    }
    profile.files = read;
    match (found, named) {
        (true, _) => Ok(Some(profile)),
        (false, None) if file.is_none() => Ok(None),
        (false, _) => {
            let sentence = match profile.files.is_empty() {
                true => format!("there is no file with the profile '{}'", profile.name),
                false => format!("there is no {}", profile.words()),
            };
            Err(io::Error::new(io::ErrorKind::NotFound, sentence))
        }
    }
}

/// The files to read, in the order in which they count, and whether each must exist.
fn files(environment: &Environment, file: Option<&Path>) -> Vec<(PathBuf, bool)> {
    if let Some(path) = file {
        return vec![(path.to_path_buf(), true)];
    }
    [("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), ("AWS_CONFIG_FILE", ".aws/config")]
        .into_iter()
        .filter_map(|(variable, path)| match environment.value(variable) {
            Some(named) => Some((PathBuf::from(named), true)),
            None => environment.below_home(path).map(|path| (path, false)),
        })
        .collect()
}

/// The values of a profile in the text of a file; `None` where the file does not have it. Lines before the first
/// section belong to the default profile, so that a file of variables is read too.
fn section(text: &str, name: &str, path: &Path) -> io::Result<Option<HashMap<String, String>>> {
    let mut values = None;
    let mut inside = name == DEFAULT;
    for (number, line) in text.lines().enumerate() {
        // A line that begins with blanks belongs to the value above it. None of those is needed here.
        if line.trim().is_empty() || line.starts_with(['#', ';', ' ', '\t']) {
            continue;
        }
        let line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            let title = rest.split(']').next().unwrap_or_default().trim();
            inside = match title.strip_prefix("profile ") {
                Some(title) => title.trim() == name,
                None => title == name,
            };
            if inside {
                values.get_or_insert_with(HashMap::new);
            }
            continue;
        }
        if !inside {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((key, value)) = line.split_once('=') else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("line {} of {} is not a key and a value", number + 1, path.display()),
            ));
        };
        let value = value.trim().trim_matches(['"', '\'']).to_string();
        let values = values.get_or_insert_with(HashMap::new);
        values.insert(key.trim().to_ascii_lowercase(), value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "\
[default]
aws_access_key_id = AKDEFAULT
aws_secret_access_key = s1

[gold]
aws_access_key_id=AKGOLD
aws_secret_access_key = \"s2\"
aws_session_token = t
";
    const CONFIG: &str = "\
[default]
region = eu-central-1
s3 =
    addressing_style = path
[profile gold]
region = eu-west-3
endpoint_url = http://host:1
[profile sso]
sso_session = x
[profile half]
aws_access_key_id = AKHALF
";

    fn home(credentials: &str, config: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".aws")).unwrap();
        std::fs::write(directory.path().join(".aws/credentials"), credentials).unwrap();
        std::fs::write(directory.path().join(".aws/config"), config).unwrap();
        let path = directory.path().to_str().unwrap().to_string();
        (directory, path)
    }

    #[test]
    fn a_profile_is_what_both_files_say_of_it() {
        let (_directory, home) = home(CREDENTIALS, CONFIG);
        let environment = Environment::of(&[("HOME", &home)]);
        let found = find(&environment, None).unwrap().unwrap();
        assert_eq!(found.keys().unwrap().unwrap().id, "AKDEFAULT");
        assert_eq!(found.value("region").as_deref(), Some("eu-central-1"));
        let environment = Environment::of(&[("HOME", &home), ("AWS_PROFILE", "gold")]);
        let found = find(&environment, None).unwrap().unwrap();
        let keys = found.keys().unwrap().unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str()), ("AKGOLD", "s2"));
        assert_eq!(keys.token.as_deref(), Some("t"));
        assert_eq!(found.value("endpoint_url").as_deref(), Some("http://host:1"));
        assert!(!format!("{found:?}").contains("s2"));
    }

    #[test]
    fn profiles_that_cannot_be_used_say_why() {
        let (_directory, home) = home(CREDENTIALS, CONFIG);
        for (name, part) in
            [("none", "there is no"), ("sso", "sso_session"), ("half", "lacks aws_secret")]
        {
            let environment = Environment::of(&[("HOME", &home), ("AWS_PROFILE", name)]);
            let error = match find(&environment, None) {
                Ok(found) => found.unwrap().keys().err().unwrap(),
                Err(error) => error,
            };
            assert!(error.to_string().contains(part), "{name}: {error}");
        }
    }

    #[test]
    fn no_files_are_no_profile_but_a_named_file_must_exist() {
        let environment = Environment::of(&[("HOME", "/nowhere")]);
        assert!(find(&environment, None).unwrap().is_none());
        assert!(find(&environment, Some(Path::new("/nowhere/keys"))).is_err());
        let environment = Environment::of(&[("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/keys")]);
        assert!(find(&environment, None).is_err());
    }

    #[test]
    fn a_file_of_variables_is_the_default_profile() {
        let text = "AWS_ACCESS_KEY_ID=AK\nexport AWS_SECRET_ACCESS_KEY='s'\n";
        let values = section(text, DEFAULT, Path::new("f")).unwrap().unwrap();
        assert_eq!(values["aws_access_key_id"], "AK");
        assert_eq!(values["aws_secret_access_key"], "s");
        assert!(section(text, "gold", Path::new("f")).unwrap().is_none());
        let error = section("SECRET\n", DEFAULT, Path::new("f")).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("SECRET"), "{error}");
    }
}

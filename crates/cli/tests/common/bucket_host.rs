//! A host whose pools lie in a bucket of a small S3 service.

#![allow(dead_code, missing_docs, reason = "each test uses a part of it")]

use std::process::{Command, Stdio};

use marcot_s3_test::{ACCESS_KEY, SECRET_KEY, Server};

use crate::common::{Ran, World};

/// A host, and the service.
pub struct Host<'a> {
    pub world: World,
    server: &'a Server,
    secret: &'static str,
}

impl<'a> Host<'a> {
    pub fn new(server: &'a Server) -> Self {
        Self { world: World::new(), server, secret: SECRET_KEY }
    }

    /// Lets a command reach the service as a user.
    pub fn set_environment(&self, command: &mut Command, user: &str) {
        // Nothing of the one who runs the tests counts.
        for name in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"] {
            command.env_remove(name);
        }
        command
            .env("HOME", self.world.path("home"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_ENDPOINT_URL_S3", self.server.url())
            .env("AWS_ACCESS_KEY_ID", user)
            .env("AWS_SECRET_ACCESS_KEY", self.secret);
    }

    pub fn run(&self, line: &str) -> Ran {
        self.run_as(ACCESS_KEY, line)
    }

    pub fn run_as(&self, user: &str, line: &str) -> Ran {
        let mut command = self.world.marcot_command(line);
        self.set_environment(&mut command, user);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran {
            out: text(output.stdout),
            err: text(output.stderr),
            status: output.status.code().unwrap_or(-1),
        }
    }

    pub fn works(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.status, 0, "{line}: {}", ran.err);
        ran.out
    }

    pub fn refuses(&self, status: i32, words: &str, line: &str) {
        let ran = self.run(line);
        assert_eq!(ran.status, status, "{line}: {}", ran.err);
        assert!(ran.err.contains(words), "{line}: {}", ran.err);
        assert!(!ran.err.contains(self.secret), "{line}: {}", ran.err);
    }
}

//! What the outcome of a request means for whoever sent it.
//!
//! Invariant: an outcome is [`ServiceError::Conflict`] or [`ServiceError::Absent`] only where the service said
//! so in its own words. Everything that leaves a doubt is [`ServiceError::Unknown`].

use super::service::{Condition, ServiceError};
use super::wire::{Failure, Seen};

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'a> {
    Get,
    Put(&'a Condition),
    Remove,
    List,
}

impl Request<'_> {
    /// What the user must be allowed to do.
    fn right(self) -> &'static str {
        match self {
            Self::Get => "read objects",
            Self::Put(_) => "store objects",
            Self::Remove => "remove objects",
            Self::List => "list objects",
        }
    }
}

/// How messages name things.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// `bucket` or `container`.
    pub bucket_word: &'static str,
    /// The bucket.
    pub bucket: String,
    /// The host of the service, with its port where it is not the usual one.
    pub host: String,
    /// The region that requests name.
    pub region: Option<String>,
    /// Where the credentials are from: `the environment`.
    pub credentials: String,
    /// How a user gives others.
    pub credentials_remedy: &'static str,
}

/// What is known of the service before a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Past {
    /// It has answered before.
    pub answered: bool,
    /// Credentials were found before.
    pub had_credentials: bool,
}

/// The error of a request that the library calls failed.
pub(super) fn error(names: &Names, request: Request<'_>, seen: &Seen, past: Past) -> ServiceError {
    if !seen.sent {
        return no_credentials(names, seen, past);
    }
    if let Some(failure) = &seen.failure {
        return unanswered(names, failure, past);
    }
    let status = seen.status.unwrap_or_default();
    let code = seen.code.as_deref().unwrap_or_default();
    if let Some(of_credentials) = refused(names, request, status, code) {
        return ServiceError::Refused(of_credentials);
    }
    if let Some(of_place) = misplaced(names, seen, status, code) {
        return ServiceError::Invalid(of_place);
    }
    match (status, request) {
        (412, Request::Put(Condition::Absent | Condition::Is(_))) => ServiceError::Conflict,
        // Some services use the status that the condition has for reading.
        (304, Request::Put(Condition::Absent)) => ServiceError::Conflict,
        // Other services say this, and with other codes, also while a request is under way.
        (409, Request::Put(Condition::Absent)) if code == "BlobAlreadyExists" => {
            ServiceError::Conflict
        }
        (404, _) if seen.foreign => foreign(names, past, status),
        (404, Request::Put(Condition::Is(_))) => ServiceError::Conflict,
        (404, Request::Get | Request::Remove) => ServiceError::Absent,
        (200..=299, _) => foreign(names, past, status),
        (400 | 403 | 404 | 405 | 501, _) if seen.foreign => foreign(names, past, status),
        (501, _) => ServiceError::Invalid(format!(
            "the service at {} does not know a request that marcot needs ({}): use another service",
            names.host,
            words(status, code)
        )),
        (400..=499, _) if !passing(status, code) => ServiceError::Invalid(format!(
            "the service at {} does not accept the request ({})",
            names.host,
            words(status, code)
        )),
        _ => ServiceError::Unknown(format!(
            "the service at {} answered {}",
            names.host,
            words(status, code)
        )),
    }
}

fn words(status: u16, code: &str) -> String {
    if code.is_empty() { status.to_string() } else { format!("{status} {code}") }
}

/// True for a refusal that has nothing to do with the request itself.
fn passing(status: u16, code: &str) -> bool {
    matches!(status, 404 | 408 | 409 | 412 | 423 | 425 | 429)
        || matches!(code, "RequestTimeout" | "IncompleteBody" | "BadDigest" | "InvalidDigest")
        || matches!(code, "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch" | "SlowDown")
        || matches!(code, "Md5Mismatch" | "OperationTimedOut" | "ServerBusy" | "RequestAborted")
}

fn no_credentials(names: &Names, seen: &Seen, past: Past) -> ServiceError {
    if let Some(why) = &seen.credentials {
        return match past.had_credentials {
            true => ServiceError::Unknown(why.clone()),
            false => ServiceError::Refused(why.clone()),
        };
    }
    if past.had_credentials {
        return ServiceError::Unknown(format!(
            "the credentials for {} cannot be renewed from {}",
            names.host, names.credentials
        ));
    }
    ServiceError::Refused(format!(
        "no credentials for the {} '{}' were found, not even in {}: {}",
        names.bucket_word, names.bucket, names.credentials, names.credentials_remedy
    ))
}

fn unanswered(names: &Names, failure: &Failure, past: Past) -> ServiceError {
    let host = &names.host;
    match failure {
        Failure::NoHost if !past.answered => ServiceError::Invalid(format!(
            "there is no host '{host}': check the endpoint and the region"
        )),
        Failure::NoHost => {
            ServiceError::Unknown(format!("the name of the host {host} is not found"))
        }
        Failure::Lookup => {
            ServiceError::Unknown(format!("the name of the host {host} cannot be looked up"))
        }
        Failure::Connect(why) => {
            ServiceError::Unknown(format!("the service at {host} is not reached: {why}"))
        }
        Failure::Tls(why) if !past.answered => ServiceError::Invalid(format!(
            "the connection to {host} is not secure: {why}: check the endpoint and its certificate"
        )),
        Failure::Tls(why) => {
            ServiceError::Unknown(format!("the connection to {host} is not secure: {why}"))
        }
        Failure::TimedOut => {
            ServiceError::Unknown(format!("the service at {host} did not answer in time"))
        }
        Failure::Cut => ServiceError::Unknown(format!(
            "the connection to {host} broke off before the answer was whole"
        )),
    }
}

/// An answer that is not of the service's kind. A proxy may send one while the service is away.
fn foreign(names: &Names, past: Past, status: u16) -> ServiceError {
    let sentence = format!("what answers at {} ({status}) is not such a service", names.host);
    if past.answered {
        ServiceError::Unknown(sentence)
    } else {
        ServiceError::Invalid(format!("{sentence}: check the endpoint"))
    }
}

fn refused(names: &Names, request: Request<'_>, status: u16, code: &str) -> Option<String> {
    let Names { host, credentials, credentials_remedy, bucket_word, bucket, .. } = names;
    Some(match code {
        "InvalidAccessKeyId" => format!(
            "the service at {host} does not know the access key from {credentials}: {credentials_remedy}"
        ),
        "SignatureDoesNotMatch" => format!(
            "the secret key from {credentials} is not the one that the service at {host} has: \
             {credentials_remedy}"
        ),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" => {
            format!(
                "the credentials from {credentials} have expired: log in again, or {credentials_remedy}"
            )
        }
        "InvalidToken" | "InvalidClientTokenId" | "UnrecognizedClientException" => {
            format!("the session token from {credentials} is not valid: {credentials_remedy}")
        }
        "RequestTimeTooSkewed" | "RequestInTheFuture" => format!(
            "the service at {host} refuses this host's time of day: set the clock (with NTP)"
        ),
        "QuotaExceeded" | "InsufficientStorage" | "AccountIsDisabled" | "UserSuspended" => format!(
            "the service at {host} takes nothing more for the {bucket_word} '{bucket}' ({code}): ask \
             those who run it"
        ),
        _ if matches!(status, 401 | 403) => {
            let shown = if code.is_empty() { status.to_string() } else { code.to_string() };
            format!(
                "the user of the credentials from {credentials} may not {} in the {bucket_word} '{bucket}' \
                 ({shown}): give other credentials, or change the policy of the {bucket_word}",
                request.right()
            )
        }
        _ => return None,
    })
}

fn misplaced(names: &Names, seen: &Seen, status: u16, code: &str) -> Option<String> {
    let Names { bucket_word, bucket, host, .. } = names;
    let own = names.region.as_deref().unwrap_or_default();
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" => format!(
            "there is no {bucket_word} '{bucket}' at {host}: create it first, or check its name, the \
             endpoint and the region"
        ),
        "InvalidBucketName" => {
            format!("'{bucket}' cannot be a {bucket_word} of the service at {host}")
        }
        _ if matches!(
            code,
            "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"
        ) || matches!(status, 301 | 302 | 307 | 308) =>
        {
            match seen.region.as_deref().filter(|region| *region != own) {
                Some(region) => format!(
                    "the {bucket_word} '{bucket}' is in the region {region}, not in '{own}': use --region \
                     {region}"
                ),
                None => format!(
                    "the {bucket_word} '{bucket}' is not at {host} in the region '{own}' ({}): check the \
                     endpoint and the region",
                    words(status, code)
                ),
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
#[path = "reason_tests.rs"]
mod tests;

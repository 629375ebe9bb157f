//! Tests of what outcomes mean.

use super::super::service::Version;
use super::*;

fn names() -> Names {
    Names {
        bucket_word: "bucket",
        bucket: "b".to_string(),
        host: "host:1".to_string(),
        region: Some("us-east-1".to_string()),
        credentials: "the environment".to_string(),
        credentials_remedy: "check them",
    }
}

const LATER: Past = Past { answered: true, had_credentials: true };
const FIRST: Past = Past { answered: false, had_credentials: false };

fn answer(status: u16, code: &str) -> Seen {
    let code = (!code.is_empty()).then(|| code.to_string());
    Seen { sent: true, status: Some(status), code, ..Seen::default() }
}

fn put_if_absent(status: u16, code: &str) -> ServiceError {
    error(&names(), Request::Put(&Condition::Absent), &answer(status, code), LATER)
}

fn is_unknown(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Unknown(_))
}

#[test]
fn only_what_certainly_changed_nothing_is_a_conflict() {
    assert_eq!(put_if_absent(412, "PreconditionFailed"), ServiceError::Conflict);
    assert_eq!(put_if_absent(409, "BlobAlreadyExists"), ServiceError::Conflict);
    for (status, code) in [
        (409, "ConditionalRequestConflict"),
        (409, "OperationAborted"),
        (409, ""),
        (429, "SlowDown"),
        (500, "InternalError"),
        (503, "SlowDown"),
        (504, ""),
        (408, "RequestTimeout"),
        (400, "RequestTimeout"),
        (400, "IncompleteBody"),
        (200, ""),
        (404, "NoSuchKey"),
    ] {
        let error = put_if_absent(status, code);
        assert!(is_unknown(&error), "{status} {code}: {error:?}");
    }
}

#[test]
fn a_swap_of_a_missing_object_is_a_conflict() {
    let condition = Condition::Is(Version("\"1\"".to_string()));
    let swap =
        |status, code| error(&names(), Request::Put(&condition), &answer(status, code), LATER);
    assert_eq!(swap(404, "NoSuchKey"), ServiceError::Conflict);
    assert_eq!(swap(412, "PreconditionFailed"), ServiceError::Conflict);
    assert!(matches!(swap(404, "NoSuchBucket"), ServiceError::Invalid(_)));
    assert!(is_unknown(&swap(409, "ConditionalRequestConflict")));
}

#[test]
fn a_missing_object_is_absent_only_in_the_words_of_the_service() {
    let get = |seen: &Seen, past| error(&names(), Request::Get, seen, past);
    assert_eq!(get(&answer(404, "NoSuchKey"), LATER), ServiceError::Absent);
    let foreign = Seen { foreign: true, ..answer(404, "") };
    assert!(is_unknown(&get(&foreign, LATER)));
    assert!(matches!(get(&foreign, FIRST), ServiceError::Invalid(_)));
}

#[test]
fn refusals_say_what_to_do() {
    for (status, code, part) in [
        (403, "InvalidAccessKeyId", "does not know the access key"),
        (403, "SignatureDoesNotMatch", "the secret key"),
        (400, "ExpiredToken", "have expired"),
        (400, "InvalidToken", "the session token"),
        (403, "RequestTimeTooSkewed", "set the clock"),
        (403, "AccessDenied", "may not store objects in the bucket 'b' (AccessDenied)"),
        (401, "", "(401)"),
        (403, "QuotaExceeded", "takes nothing more"),
    ] {
        match put_if_absent(status, code) {
            ServiceError::Refused(sentence) => assert!(sentence.contains(part), "{sentence}"),
            other => panic!("{status} {code}: {other:?}"),
        }
    }
}

#[test]
fn a_wrong_place_is_named() {
    let elsewhere =
        Seen { region: Some("eu-west-3".to_string()), ..answer(301, "PermanentRedirect") };
    for (seen, part) in [
        (answer(404, "NoSuchBucket"), "there is no bucket 'b' at host:1"),
        (answer(400, "InvalidBucketName"), "cannot be a bucket"),
        (elsewhere, "use --region eu-west-3"),
        (answer(400, "AuthorizationHeaderMalformed"), "check the endpoint and the region"),
        (answer(307, ""), "check the endpoint and the region"),
        (answer(501, "NotImplemented"), "use another service"),
        (answer(405, "MethodNotAllowed"), "does not accept the request"),
    ] {
        match error(&names(), Request::List, &seen, LATER) {
            ServiceError::Invalid(sentence) => assert!(sentence.contains(part), "{sentence}"),
            other => panic!("{seen:?}: {other:?}"),
        }
    }
}

#[test]
fn what_fails_at_first_is_wrong_and_what_fails_later_passes() {
    let failed = |failure: Failure, past| {
        let seen = Seen { sent: true, failure: Some(failure), ..Seen::default() };
        error(&names(), Request::Get, &seen, past)
    };
    for failure in [Failure::NoHost, Failure::Tls("x".to_string())] {
        assert!(matches!(failed(failure.clone(), FIRST), ServiceError::Invalid(_)));
        assert!(is_unknown(&failed(failure, LATER)));
    }
    for failure in
        [Failure::Lookup, Failure::Connect("x".to_string()), Failure::TimedOut, Failure::Cut]
    {
        assert!(is_unknown(&failed(failure, FIRST)));
    }
    let unsent = Seen::default();
    assert!(matches!(error(&names(), Request::Get, &unsent, FIRST), ServiceError::Refused(_)));
    assert!(is_unknown(&error(&names(), Request::Get, &unsent, LATER)));
}

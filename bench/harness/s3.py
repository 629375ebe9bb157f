"""One request to an S3 service: making a bucket. Everything else is asked for by marcot."""

import datetime
import hashlib
import hmac
import os
import urllib.error
import urllib.parse
import urllib.request

from .process import Failed

# The body is empty.
BODY_HASH = hashlib.sha256(b"").hexdigest()


def make_bucket(endpoint, bucket, region):
    """Makes a bucket; one of the same user that exists is no error. The keys come from the environment."""
    try:
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    except KeyError as error:
        raise Failed(f"the keys of the service are expected in the environment: no {error}") from error
    url = urllib.parse.urlsplit(endpoint)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": url.netloc, "x-amz-content-sha256": BODY_HASH, "x-amz-date": now}
    path = f"/{bucket}"
    headers["authorization"] = _authorization(headers, path, region, keys)
    request = urllib.request.Request(f"{endpoint}{path}", method="PUT", headers=headers)
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        if "BucketAlreadyOwnedByYou" not in said:
            raise Failed(f"{endpoint} makes no bucket '{bucket}': status {error.code}: {said}") from error
    except urllib.error.URLError as error:
        raise Failed(f"{endpoint} does not answer: {error.reason}") from error


def _authorization(headers, path, region, keys):
    """Signature Version 4, as S3's documentation describes it."""
    names = ";".join(sorted(headers))
    lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
    asked = "\n".join(["PUT", path, "", *lines, "", names, BODY_HASH])
    now = headers["x-amz-date"]
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    signed = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(asked.encode()).hexdigest()])
    key = f"AWS4{keys[1]}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, signed.encode(), "sha256").hex()
    return f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={signature}"

"""The store on S3, R2 and what speaks like them: real presigned URLs, so that no byte of a transfer passes the API.

    uploads/<upload>   a single PUT's bytes, until they are checked; then copied, so that its URL can overwrite nothing
    models/<aa>/<id>   checked bytes; a multipart upload is completed here, since its URLs die with it

What S3 says of an object is not believed but its size: the bytes are read back for their SHA-256. A presigned PUT binds
the size, and the checksum if it was promised, as signed headers, so that S3 itself refuses most of what is wrong.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import boto3
import structlog
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _

from apps.common.errors import DomainError, invalid
from apps.storage.base import (
    CHUNK,
    OBJECTS,
    UPLOADS,
    Leftover,
    Mismatch,
    Part,
    Promise,
    StorageError,
    Stored,
    TooLarge,
    Upload,
    check,
    check_key,
    nothing_came,
)

logger = structlog.get_logger(__name__)

MULTIPART_ABOVE: Final = 100 << 20
"""Bytes above which an upload comes in parts (api.md, "Models")."""
PART_LEAST: Final = 32 << 20
PARTS_MOST: Final = 1_000
"""S3 would take 10 000; each is a URL in the answer to `init`."""
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_WRONG: Final = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "InvalidRange", "PreconditionFailed"})
_TYPE: Final = "application/octet-stream"


class Missing(Exception):
    """There is no such object or upload."""


class S3Store:
    """An ObjectStore on a bucket. Thread-safe. Each call waits for 2 s for a connection and 20 s for an answer."""

    def __init__(
        self,
        *,
        bucket: str,
        endpoint_url: str = "",
        public_endpoint_url: str = "",
        region: str = "",
        access_key_id: str = "",
        secret_access_key: str = "",
        prefix: str = "",
        addressing: str = "auto",
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": addressing},
            connect_timeout=2,
            read_timeout=20,
            retries={"total_max_attempts": 2, "mode": "standard"},
            max_pool_connections=32,
            # R2 and older servers do not know the checksums that boto3 would add by itself.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

        def client(url: str) -> Any:
            return boto3.session.Session().client(
                "s3",
                endpoint_url=url or None,
                region_name=region or None,
                aws_access_key_id=access_key_id or None,
                aws_secret_access_key=secret_access_key or None,
                config=config,
            )

        self._client = client(endpoint_url)
        self._public = client(public_endpoint_url) if public_endpoint_url else self._client

    def __repr__(self) -> str:
        return f"<S3Store {self._bucket}/{self._prefix}>"

    # --- uploads ------------------------------------------------------------------------------------------------------
    def begin(self, promise: Promise, *, base_url: str) -> Upload:
        """Sign one PUT, or begin a multipart upload and sign the PUT of each part."""
        if promise.size > MULTIPART_ABOVE:
            return self._begin_parts(promise)
        bound: dict[str, Any] = {"ContentLength": promise.size}
        headers = {"Content-Type": _TYPE}
        if promise.sha256:
            bound["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(promise.sha256)).decode()
            headers["x-amz-checksum-sha256"] = bound["ChecksumSHA256"]
        url = self._signed("put_object", promise.upload_key, promise.expires_at, ContentType=_TYPE, **bound)
        return Upload(promise.upload_key, promise.expires_at, url=url, headers=headers)

    def _begin_parts(self, promise: Promise) -> Upload:
        key = promise.object_key
        size = max(PART_LEAST, math.ceil(promise.size / PARTS_MOST / CHUNK) * CHUNK)
        with _mapped():
            begun = self._client.create_multipart_upload(**self._named(key), ContentType=_TYPE)
        upload_id: str = begun["UploadId"]
        parts = []
        for index in range(math.ceil(promise.size / size)):
            length = min(size, promise.size - index * size)
            named = {"UploadId": upload_id, "PartNumber": index + 1, "ContentLength": length}
            parts.append(Part(index + 1, self._signed("upload_part", key, promise.expires_at, **named)))
        return Upload(key, promise.expires_at, part_size=size, parts=parts, upload_id=upload_id)

    def settle(
        self, promise: Promise, *, upload_id: str = "", parts: Sequence[tuple[int, str]] | None = None
    ) -> Stored:
        """Check what has arrived by reading it back, and put it in its place."""
        with _mapped():
            if upload_id:
                return self._settle_parts(promise, upload_id, parts)
            try:
                stored, etag = self._checked(promise, promise.upload_key)
                self._copy(promise, etag)
            except Missing:  # nothing has come, or another call was quicker
                return self._settled_before(promise)
            self._client.delete_object(**self._named(promise.upload_key))
            return stored

    def _copy(self, promise: Promise, etag: str) -> None:
        """Within S3; only what was just read. Raises Missing, Mismatch."""
        source = {"Bucket": self._bucket, "Key": self._prefix + promise.upload_key}
        self._call(self._client.copy_object, promise.object_key, CopySource=source, CopySourceIfMatch=etag)

    def _settle_parts(self, promise: Promise, upload_id: str, parts: Sequence[tuple[int, str]] | None) -> Stored:
        if parts is not None:
            listed = [{"PartNumber": number, "ETag": _quoted(etag)} for number, etag in sorted(parts)]
            if not listed or len({number for number, _etag in parts}) < len(listed):
                raise _bad_parts()
            try:
                self._call(
                    self._client.complete_multipart_upload,
                    promise.object_key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": listed},
                )
            except Missing:
                pass  # completed by an earlier call, or given up: the object tells
        try:
            return self._settled_before(promise)
        except Mismatch:
            if parts is None:
                raise _bad_parts() from None
            # Its parts are no more: what was put together of them is of no use.
            self._client.delete_object(**self._named(promise.object_key))
            raise

    def _settled_before(self, promise: Promise) -> Stored:
        try:
            return self._checked(promise, promise.object_key)[0]
        except Missing:
            raise nothing_came() from None

    def _checked(self, promise: Promise, key: str) -> tuple[Stored, str]:
        """What is there, read to its end, and its ETag. Raises Missing, Mismatch."""
        head = self._call(self._client.head_object, key)
        size, etag = int(head["ContentLength"]), str(head["ETag"])
        if size != promise.size:
            check(promise, Stored(size, ""))
        digest = hashlib.sha256()
        answer = self._call(self._client.get_object, key, IfMatch=etag)
        for piece in _pieces(answer["Body"], size):
            digest.update(piece)
        stored = Stored(size, digest.hexdigest())
        check(promise, stored)
        return stored, etag

    # --- objects ------------------------------------------------------------------------------------------------------
    def put(self, key: str, source: BinaryIO, *, limit: int) -> Stored:
        """Send a stream's bytes; large ones in parts of 8 MiB, one after another."""
        measured = _Measured(source, limit)
        config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, use_threads=False)
        with _mapped():
            self._client.upload_fileobj(
                measured, self._bucket, self._prefix + check_key(key), ExtraArgs={"ContentType": _TYPE}, Config=config
            )
        return measured.stored()

    @contextmanager
    def open_range(self, key: str, start: int, length: int) -> Iterator[Iterator[bytes]]:
        """One GET with `Range`."""
        if not length:
            yield iter(())
            return
        with _mapped():
            try:
                answer = self._call(self._client.get_object, key, Range=f"bytes={start}-{start + length - 1}")
            except Missing:
                raise Mismatch("there is no such object") from None
        body = answer["Body"]
        try:
            if int(answer["ContentLength"]) != length:
                raise Mismatch("the range lies outside of the object")
            yield _mapped_pieces(body, length)
        finally:
            body.close()

    def discard(self, key: str, *, upload_id: str = "") -> None:
        """Delete an object; give up a multipart upload first."""
        with _mapped():
            if upload_id:
                try:
                    self._call(self._client.abort_multipart_upload, key, UploadId=upload_id)
                except Missing:
                    pass  # completed, or given up before
            self._client.delete_object(**self._named(key))

    def leftovers(self) -> Iterator[Leftover]:
        """Objects, and multipart uploads that are not completed."""
        with _mapped():
            for folder in (UPLOADS, OBJECTS):
                where = {"Bucket": self._bucket, "Prefix": self._prefix + folder}
                for page in self._client.get_paginator("list_objects_v2").paginate(**where):
                    for found in page.get("Contents", ()):
                        yield Leftover(found["Key"].removeprefix(self._prefix), found["LastModified"])
                for page in self._client.get_paginator("list_multipart_uploads").paginate(**where):
                    for found in page.get("Uploads", ()):
                        key = found["Key"].removeprefix(self._prefix)
                        yield Leftover(key, found["Initiated"], found["UploadId"])

    def download_url(
        self, key: str, *, filename: str, stored: Stored, expires_at: dt.datetime, base_url: str, owner: str = ""
    ) -> str:
        """A presigned GET."""
        return self._signed(
            "get_object",
            key,
            expires_at,
            ResponseContentType=_TYPE,
            ResponseContentDisposition=content_disposition_header(as_attachment=True, filename=filename),
        )

    # --- inside -------------------------------------------------------------------------------------------------------
    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _signed(self, operation: str, key: str, expires_at: dt.datetime, **bound: Any) -> str:
        seconds = max(1, int((expires_at - dt.datetime.now(dt.UTC)).total_seconds()))
        with _mapped():
            url: str = self._public.generate_presigned_url(
                operation, Params={**self._named(key), **bound}, ExpiresIn=seconds
            )
        return url

    def _call(self, operation: Callable[..., Any], key: str, **more: Any) -> Any:
        """One call on a key. Raises Missing, Mismatch."""
        try:
            return operation(**self._named(key), **more)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise Missing from None
            if code in _WRONG:
                raise Mismatch(_("The parts are not those that have arrived.")) from None
            raise


class _Measured:
    """A stream whose bytes are counted and hashed as they are read."""

    def __init__(self, source: BinaryIO, limit: int) -> None:
        self._source, self._limit = source, limit
        self._digest, self._size = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size if size > 0 else CHUNK)
        self._size += len(piece)
        if self._size > self._limit:
            raise TooLarge
        self._digest.update(piece)
        return piece

    def stored(self) -> Stored:
        return Stored(self._size, self._digest.hexdigest())


def _bad_parts() -> DomainError:
    return invalid(parts=_("Each part once, with the ETag of its PUT's answer."))


def _quoted(etag: str) -> str:
    return '"' + etag.strip('"') + '"'


def _pieces(body: Any, length: int) -> Iterator[bytes]:
    """The body of an answer. Raises Mismatch when it is shorter."""
    while length > 0:
        piece: bytes = body.read(min(CHUNK, length))
        if not piece:
            raise Mismatch("the object is shorter than it was")
        length -= len(piece)
        yield piece


def _mapped_pieces(body: Any, length: int) -> Iterator[bytes]:
    """As `_pieces`, for a caller that stands outside of `_mapped`."""
    pieces = _pieces(body, length)
    while True:
        with _mapped():
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


@contextmanager
def _mapped() -> Iterator[None]:
    """What S3 and the way to it say, as StorageError; the log has a code, never a URL."""
    try:
        yield
    except (DomainError, Mismatch, TooLarge):
        raise
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        logger.warning("storage_failed", error=code, operation=error.operation_name)
        raise StorageError from error
    except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        logger.warning("storage_failed", error=type(error).__name__)
        raise StorageError from error

"""The store on S3, R2 and what speaks like them: real presigned URLs, so that no byte of a transfer passes the API.

    uploads/<upload>   a single PUT's bytes, until they are checked; then copied, so that its URL can overwrite nothing
    models/<aa>/<id>   checked bytes; a multipart upload is completed here, since its URLs die with it
    deleted/<aa>/<id>  those of a deleted model: the URLs of its downloads name what is no more

A presigned PUT binds the size, and the checksum if it was promised, as signed headers. A server that was seen to refuse
bytes of another checksum is believed when it names the promised one; every other is read back for the SHA-256.

A breaker stands before the server: one call that had no answer, and the next ones are refused at once.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import math
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import boto3
import structlog
import urllib3.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, SSLError
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _

from apps.common.breaker import Breaker
from apps.common.errors import DomainError, invalid
from apps.common.ids import uuid7
from apps.storage.base import (
    CHUNK,
    OBJECTS,
    UPLOADS,
    WITHDRAWN,
    Leftover,
    Mismatch,
    Part,
    Progress,
    Promise,
    StorageError,
    Stored,
    TooLarge,
    Upload,
    check,
    check_key,
    is_key,
    no_progress,
    nothing_came,
    withdrawn,
)

logger = structlog.get_logger(__name__)

MULTIPART_ABOVE: Final = 100 << 20
"""Bytes above which an upload comes in parts (api.md, "Models")."""
PART_LEAST: Final = 32 << 20
PARTS_MOST: Final = 1_000
"""S3 would take 10 000; each is a URL in the answer to `init`."""
_COPYING: Final = TransferConfig(multipart_threshold=1 << 30, multipart_chunksize=1 << 30, use_threads=False)
"""S3 copies at most 5 GiB at once."""
_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
_WRONG: Final = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "InvalidRange", "PreconditionFailed"})
_WRONG_CHECKSUM: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch"})
"""S3's word for bytes that are not of the checksum sent with them, and MinIO's."""
_NO_BUCKET: Final = "NoSuchBucket"
_NO_ACCESS: Final = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"})
_UNKNOWN: Final = frozenset(
    {"NotImplemented", "MethodNotAllowed", "UnsupportedOperation", "InvalidRequest", "501", "405"}
)
_TYPE: Final = "application/octet-stream"


class Missing(Exception):
    """There is no such object or upload."""


class S3Store:
    """An ObjectStore on a bucket. Thread-safe.

    Each call waits for 2 s for a connection, and for an answer 20 s where bytes are moved, 5 s where none are.
    """

    settles_at_once = False

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
        ca_file: str = "",
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._ca_file = ca_file
        self._breaker = Breaker()
        self._verifies: bool | None = None
        self._probing = threading.Lock()

        def client(url: str, *, answer_within: int, attempts: int) -> Any:
            return boto3.session.Session().client(
                "s3",
                endpoint_url=url or None,
                region_name=region or None,
                aws_access_key_id=access_key_id or None,
                aws_secret_access_key=secret_access_key or None,
                verify=ca_file or None,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": addressing},
                    connect_timeout=2,
                    read_timeout=answer_within,
                    retries={"total_max_attempts": attempts, "mode": "standard"},
                    max_pool_connections=32,
                    # R2 and older servers do not know the checksums that boto3 would add by itself.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

        self._client = client(endpoint_url, answer_within=20, attempts=2)
        self._quick = client(endpoint_url, answer_within=5, attempts=1)
        self._public = client(public_endpoint_url, answer_within=5, attempts=1) if public_endpoint_url else self._quick

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
            bound["ChecksumSHA256"] = _base64(promise.sha256)
            headers["x-amz-checksum-sha256"] = bound["ChecksumSHA256"]
        url = self._signed("put_object", promise.upload_key, promise.expires_at, ContentType=_TYPE, **bound)
        return Upload(promise.upload_key, promise.expires_at, url=url, headers=headers)

    def _begin_parts(self, promise: Promise) -> Upload:
        key = promise.object_key
        size = _part_size(promise.size)
        with self._mapped():
            begun = self._quick.create_multipart_upload(**self._named(key), ContentType=_TYPE)
        upload_id: str = begun["UploadId"]
        parts = []
        for index in range(math.ceil(promise.size / size)):
            length = min(size, promise.size - index * size)
            named = {"UploadId": upload_id, "PartNumber": index + 1, "ContentLength": length}
            parts.append(Part(index + 1, self._signed("upload_part", key, promise.expires_at, **named)))
        return Upload(key, promise.expires_at, part_size=size, parts=parts, upload_id=upload_id)

    def settle(
        self,
        promise: Promise,
        *,
        upload_id: str = "",
        parts: Sequence[tuple[int, str]] | None = None,
        progress: Progress = no_progress,
    ) -> Stored:
        """Check what has arrived, and put it in its place."""
        with self._mapped():
            if upload_id:
                return self._settle_parts(promise, upload_id, parts, progress)
            try:
                stored, etag = self._checked(promise, promise.upload_key, progress)
                self._copy(promise, etag)
            except Missing:  # nothing has come, or another call was quicker
                return self._settled_before(promise, progress)
            self._client.delete_object(**self._named(promise.upload_key))
            return stored

    def _copy(self, promise: Promise, etag: str) -> None:
        """Within S3; only what was just read. Raises Missing, Mismatch."""
        source = {"Bucket": self._bucket, "Key": self._prefix + promise.upload_key}
        self._call(self._client.copy_object, promise.object_key, CopySource=source, CopySourceIfMatch=etag)

    def _settle_parts(
        self, promise: Promise, upload_id: str, parts: Sequence[tuple[int, str]] | None, progress: Progress
    ) -> Stored:
        if parts is not None:
            listed = [{"PartNumber": number, "ETag": _quoted(etag)} for number, etag in sorted(parts)]
            if not listed or len({number for number, _etag in parts}) < len(listed):
                raise _bad_parts()
            _check_whole({number for number, _etag in parts}, promise.size)
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
            return self._settled_before(promise, progress)
        except Mismatch:
            if parts is None:
                raise _bad_parts() from None
            # Its parts are no more: what was put together of them is of no use.
            self._client.delete_object(**self._named(promise.object_key))
            raise

    def _settled_before(self, promise: Promise, progress: Progress) -> Stored:
        try:
            return self._checked(promise, promise.object_key, progress)[0]
        except Missing:
            raise nothing_came() from None

    def _checked(self, promise: Promise, key: str, progress: Progress) -> tuple[Stored, str]:
        """What is there, and its ETag: read to its end, or by the server's word for the checksum that it verified.

        Raises Missing, Mismatch.
        """
        head = self._call(self._quick.head_object, key, ChecksumMode="ENABLED")
        size, etag = int(head["ContentLength"]), str(head["ETag"])
        if size != promise.size:
            check(promise, Stored(size, ""))
        progress()
        if promise.sha256 and head.get("ChecksumSHA256") == _base64(promise.sha256) and self.verifies_checksums():
            return Stored(size, promise.sha256), etag
        digest = hashlib.sha256()
        answer = self._call(self._client.get_object, key, IfMatch=etag)
        for piece in _pieces(answer["Body"], size):
            digest.update(piece)
            progress()
        stored = Stored(size, digest.hexdigest())
        check(promise, stored)
        return stored, etag

    def verifies_checksums(self) -> bool:
        """Whether the server refuses bytes that are not of the SHA-256 sent with them: tried once a process.

        One that takes them has only kept what the uploader said, and its word is worth nothing. So it is with one that
        refuses the right checksum too, or the wrong one for another reason.
        """
        with self._probing:
            if self._verifies is None:
                key = f"{UPLOADS}{uuid7().hex}"
                right, wrong = self._refusal(key, b"these", b"these"), self._refusal(key, b"these", b"another")
                self._verifies = not right and wrong in _WRONG_CHECKSUM
                self._quick.delete_object(**self._named(key))
                logger.info("storage_checksums", verified_by_the_server=self._verifies, right=right, wrong=wrong)
        return self._verifies

    def _refusal(self, key: str, body: bytes, promised: bytes) -> str:
        """The code with which the server refuses bytes as no good; empty: it takes them. Raises ClientError."""
        checksum = _base64(hashlib.sha256(promised).hexdigest())
        try:
            self._quick.put_object(**self._named(key), Body=body, ChecksumSHA256=checksum)
        except ClientError as error:
            if _status(error) != 400:  # nothing that says anything of bytes
                raise
            return _code(error) or "400"
        return ""

    # --- objects ------------------------------------------------------------------------------------------------------
    def put(self, key: str, source: BinaryIO, *, limit: int) -> Stored:
        """Send a stream's bytes; large ones in parts of 8 MiB, one after another."""
        measured = _Measured(source, limit)
        config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, use_threads=False)
        with self._mapped():
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
        with self._mapped():
            answer = self._opened(key, f"bytes={start}-{start + length - 1}")
        body = answer["Body"]
        try:
            if int(answer["ContentLength"]) != length:
                raise Mismatch("the range lies outside of the object")
            yield self._mapped_pieces(body, length)
        finally:
            body.close()

    def _opened(self, key: str, span: str) -> Any:
        for place in (key, withdrawn(key)):
            try:
                return self._call(self._client.get_object, place, Range=span)
            except Missing:
                pass
        raise Mismatch("there is no such object")

    def withdraw(self, key: str) -> None:
        """A copy within S3, then a delete: a URL that is out leads to nothing, whatever time it has left."""
        self._shift(key, withdrawn(key))

    def reinstate(self, key: str) -> None:
        """A copy back, then a delete."""
        self._shift(withdrawn(key), key)

    def _shift(self, source: str, target: str) -> None:
        with self._mapped():
            try:
                self._client.copy(
                    self._named(source), *self._named(target).values(), SourceClient=self._quick, Config=_COPYING
                )
            except ClientError as error:
                if _code(error) not in _MISSING:
                    raise
            else:
                self._quick.delete_object(**self._named(source))

    def discard(self, key: str, *, upload_id: str = "") -> None:
        """Delete an object; give up a multipart upload first."""
        with self._mapped():
            if upload_id:
                try:
                    self._call(self._quick.abort_multipart_upload, key, UploadId=upload_id)
                except Missing:
                    pass  # completed, or given up before
            self._quick.delete_object(**self._named(key))
            if key.startswith(OBJECTS) and not upload_id:
                self._quick.delete_object(**self._named(withdrawn(key)))

    def leftovers(self) -> Iterator[Leftover]:
        """Objects, and multipart uploads that are not completed. What is not of our making is passed over."""
        for folder in (UPLOADS, OBJECTS, WITHDRAWN):
            where = {"Bucket": self._bucket, "Prefix": self._prefix + folder}
            for found in self._listed("list_objects_v2", "Contents", where):
                key = found["Key"].removeprefix(self._prefix)
                if is_key(key) and folder == WITHDRAWN:
                    yield Leftover(OBJECTS + key.removeprefix(WITHDRAWN), found["LastModified"], withdrawn=True)
                elif is_key(key):
                    yield Leftover(key, found["LastModified"])
        # Without a prefix: MinIO takes one for the whole name of an object, and so names no upload at all.
        for found in self._listed("list_multipart_uploads", "Uploads", {"Bucket": self._bucket}):
            key = found["Key"].removeprefix(self._prefix)
            if found["Key"].startswith(self._prefix) and is_key(key):
                yield Leftover(key, found["Initiated"], found["UploadId"])

    def _listed(self, operation: str, name: str, where: dict[str, str]) -> Iterator[dict[str, Any]]:
        """What a listing names, over all its pages; nothing where the server does not know it."""
        pages = iter(self._client.get_paginator(operation).paginate(**where))
        while True:
            with self._mapped():
                try:
                    page = next(pages, None)
                except ClientError as error:
                    if _code(error) == "NoSuchUpload":  # rclone's word where there is none at all
                        return
                    if _code(error) not in _UNKNOWN:
                        raise
                    logger.info("storage_cannot_list", operation=operation, error=_code(error))
                    return
            if page is None:
                return
            yield from page.get(name, ())

    def problem(self) -> str:
        """What is wrong with the bucket, in words for an operator; empty: nothing.

        Raises StorageError where the server does not answer. One that lets nobody list may serve all the same.
        """
        try:
            if self._ca_file:
                ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            return f"VISIONA_S3_CA_FILE holds no certificates that can be read ({type(error).__name__})"
        with self._mapped():
            try:
                self._quick.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + UPLOADS, MaxKeys=1)
            except SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                    raise
                return "its certificate is of no authority known here (VISIONA_S3_CA_FILE names one of your own)"
            except ClientError as error:
                if _code(error) == _NO_BUCKET:
                    return f"there is no bucket named {self._bucket!r}"
                if _code(error) in _NO_ACCESS:
                    return f"the server refuses the credentials ({_code(error)})"
                if _status(error) >= 500:
                    raise
        return ""

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
        with _told():
            url: str = self._public.generate_presigned_url(
                operation, Params={**self._named(key), **bound}, ExpiresIn=seconds
            )
        return url

    def _call(self, operation: Callable[..., Any], key: str, **more: Any) -> Any:
        """One call on a key. Raises Missing, Mismatch."""
        try:
            return operation(**self._named(key), **more)
        except ClientError as error:
            if _code(error) in _MISSING:
                raise Missing from None
            if _code(error) in _WRONG:
                raise Mismatch(_("The parts are not those that have arrived.")) from None
            raise

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Calls on the server: refused at once while it is known not to answer; what they raise as `_told` says."""
        if self._breaker.ask() == "refuse":
            raise StorageError
        answered = True
        try:
            with _told():
                yield
        except StorageError as error:
            answered = isinstance(error.__cause__, ClientError) and _status(error.__cause__) < 500
            raise
        finally:
            if answered:
                self._breaker.close()
            else:
                self._breaker.trip()

    def _mapped_pieces(self, body: Any, length: int) -> Iterator[bytes]:
        """As `_pieces`, for a caller that stands outside of `_mapped`."""
        pieces = _pieces(body, length)
        while True:
            with self._mapped():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


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


def _part_size(size: int) -> int:
    """Bytes of each part but the last, of a file of `size` bytes."""
    return max(PART_LEAST, math.ceil(size / PARTS_MOST / CHUNK) * CHUNK)


def _check_whole(numbers: set[int], size: int) -> None:
    """Raises Mismatch if a part is left out, or is none of the file's: before anything is put together of them."""
    wanted = set(range(1, math.ceil(size / _part_size(size)) + 1))
    if numbers != wanted:
        strange = ", ".join(map(str, sorted(numbers ^ wanted)[:20]))
        said = _("The file has the parts 1 to %(count)d: look at %(strange)s, and finalize again.")
        raise Mismatch(said % {"count": len(wanted), "strange": strange})


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


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


@contextmanager
def _told() -> Iterator[None]:
    """What S3 and the way to it say, as StorageError; the log has a code, never a URL."""
    try:
        yield
    except (DomainError, Mismatch, TooLarge):
        raise
    except ClientError as error:
        logger.warning("storage_failed", error=_code(error), operation=error.operation_name)
        raise StorageError from error
    except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
        logger.warning("storage_failed", error=type(error).__name__)
        raise StorageError from error

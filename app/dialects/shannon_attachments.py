"""Files that come in the context of Shannon's submissions: checked, taken out of it, and kept as the task's files."""

import base64
import binascii
import re
from contextlib import ExitStack

import msgspec
from msgspec import Struct

from app.files import Upload
from app.mistakes import converted
from app.problems import BadRequest
from app.settings import HttpSettings
from app.uploads import ASIDE, MEDIA_TYPE, file_name, over
from eventstore.events import Json

MAX_BODY = 40 * 1024 * 1024
MAX_ATTACHED = 25 * 1024 * 1024
MAX_THUMBNAIL = 50 * 1024
"""Bytes of all attachments together, and of one's thumbnail, once decoded."""
MAX_ATTACHMENTS = 64
LONG_BASE64 = re.compile(rb"[A-Za-z0-9+/=\\]{1024,}")
"""One set of signs (the backslash is that of an escaped slash): with an alternation the engine would remember each sign
in some 120 bytes of memory."""


class Attachment(Struct, kw_only=True):
    """A file: its bytes in base64, or where it is."""

    media_type: str = ""
    data: str | None = None
    url: str | None = None
    filename: str | None = None
    thumbnail: str | None = None


class Kept(Struct, kw_only=True, omit_defaults=True):
    """What the context keeps of it. The bytes are those of the task's file with this digest."""

    media_type: str
    filename: str | None = None
    url: str | None = None
    thumbnail: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None


def max_bytes(http: HttpSettings) -> int:
    """Of a submission: the vendor's bound, or what the operator's leave of it."""
    return min(MAX_BODY, http.largest_body_bytes)


def check_size(content: bytes, http: HttpSettings) -> None:
    """What is no file counts as any other body: decoded, it takes many times its bytes. Raises TooLarge."""
    if len(content) > http.max_body_bytes and len(LONG_BASE64.sub(b"", content)) > http.max_body_bytes:
        raise over(http.max_body_bytes, ASIDE)


async def taken(
    context: dict[str, Json], opened: ExitStack, http: HttpSettings
) -> tuple[dict[str, Json], list[Upload], int]:
    """The context without the bytes of its attachments; these, until `opened` closes; and how many characters they
    took. Raises BadRequest."""
    attachments = _attachments(context)
    if not attachments:
        return context, [], 0
    kept: list[Json] = []
    uploads: list[Upload] = []
    most = left = min(MAX_ATTACHED, http.max_upload_bytes)
    for number, one in enumerate(attachments):
        place = f"attachments[{number}]"
        _check(one, place)
        note = Kept(media_type=one.media_type, filename=one.filename, url=one.url, thumbnail=one.thumbnail)
        if one.data:
            content = decoded(one.data, f"{place}.data")
            left -= len(content)
            if left < 0:
                raise BadRequest(f"Invalid attachments: they have at most {most} bytes in all")
            upload = Upload(file_name(one.filename or ""), _media_type(one))
            opened.callback(upload.close)
            await upload.write(content)
            uploads.append(upload)
            note.size_bytes, note.sha256 = upload.bytes, upload.sha256
        kept.append(msgspec.to_builtins(note))
    return context | {"attachments": kept}, uploads, sum(len(one.data or "") for one in attachments)


def decoded(text: str, place: str) -> bytes:
    """The bytes, of a data URL those that it holds. Raises BadRequest."""
    try:
        return base64.b64decode(text.rpartition(";base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"Invalid {place}: {error}") from error


def _attachments(context: dict[str, Json]) -> list[Attachment]:
    try:
        said = converted(context.get("attachments") or [], list[Attachment], at="context.attachments")
    except BadRequest as error:
        raise BadRequest(f"Invalid attachments: {error}") from error
    if len(said) > MAX_ATTACHMENTS:
        raise BadRequest(f"Invalid attachments: {MAX_ATTACHMENTS} at most")
    return said


def _check(one: Attachment, place: str) -> None:
    if not one.media_type:
        raise BadRequest(f"Invalid {place}: media_type is required")
    if not one.data and not one.url:
        raise BadRequest(f"Invalid {place}: data or url is required")
    if one.thumbnail and len(decoded(one.thumbnail, f"{place}.thumbnail")) > MAX_THUMBNAIL:
        raise BadRequest(f"Invalid {place}: a thumbnail has at most {MAX_THUMBNAIL} bytes")


def _media_type(one: Attachment) -> str:
    return one.media_type if MEDIA_TYPE.fullmatch(one.media_type) else "application/octet-stream"

"""What a request brings, on its way in: bounded, paced, and the files spooled out of a form."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager

from msgspec import Struct
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from app.files import Upload
from app.problems import BadRequest, TooSlow
from eventstore.log import TooLarge

MAX_PARTS = 64
MAX_NAME = 255
SILENCE_S = 30.0
"""How long the next piece of a body may let us wait."""
BODY_S = 300.0
"""And all of them."""
MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,63}/[A-Za-z0-9!#$&^_.+-]{1,63}")
BOUNDARY = re.compile(r"[ -~]{1,70}")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
FILES = "files"
ASIDE = ", its files aside"


async def paced(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """What comes. Raises TooSlow: what has come is held in memory or on disk for as long as the rest is waited for."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BODY_S
    while True:
        try:
            async with asyncio.timeout_at(min(loop.time() + SILENCE_S, end)):
                piece = await anext(stream, None)
        except TimeoutError as error:
            raise TooSlow(f"a request pauses at most {SILENCE_S:g} s, and is here within {BODY_S:g} s") from error
        if piece is None:
            return
        yield piece


def over(max_bytes: int, which: str = "") -> TooLarge:
    """What a request that is larger is told, wherever that is found out."""
    return TooLarge(f"a request has at most {max_bytes} bytes{which}")


async def bounded(stream: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """All of it. Raises TooLarge as soon as there is more, TooSlow."""
    content = bytearray()
    async for chunk in paced(stream):
        content += chunk
        if len(content) > max_bytes:
            raise over(max_bytes)
    return bytes(content)


class Form(Struct):
    """What a form says: its texts by name, and its files."""

    texts: dict[str, str]
    uploads: list[Upload]


@asynccontextmanager
async def form_of(
    stream: AsyncIterator[bytes], boundary: str, *, texts: Collection[str], max_bytes: int, max_text_bytes: int
) -> AsyncGenerator[Form]:
    """A form, as long as the context lasts; `texts` are those of its fields that are no files. Raises BadRequest,
    TooSlow, TooLarge: over so many bytes, or of text so many."""
    with ExitStack() as opened:
        yield await _read(stream, boundary, _Parts(opened, texts, max_text_bytes), max_bytes)


async def _read(stream: AsyncIterator[bytes], boundary: str, parts: "_Parts", max_bytes: int) -> Form:
    size = 0
    if not BOUNDARY.fullmatch(boundary):
        raise BadRequest("the form's Content-Type names no boundary")
    try:
        with PushMultipartParser(boundary, max_segment_count=MAX_PARTS) as parser:
            async for chunk in paced(stream):
                size += len(chunk)
                if size > max_bytes:
                    raise over(max_bytes, ", its files included")
                for event in parser.parse(chunk):
                    await parts.take(event)
    except MultipartError as error:
        raise BadRequest(f"the form can't be read: {error}") from error
    return parts.form()


class _Parts:
    """Takes a form's pieces, one by one, as the parser finds them."""

    def __init__(self, opened: ExitStack, named: Collection[str], max_text_bytes: int) -> None:
        self._opened = opened
        self._named = named
        self._max_text_bytes = self._room = max_text_bytes
        self._texts: dict[str, bytearray] = {}
        self._uploads: list[Upload] = []
        self._into: Upload | bytearray = bytearray()

    async def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        """A part's head, a piece of it, or its end. Raises BadRequest, TooLarge."""
        if isinstance(event, MultipartSegment):
            self._into = self._begun(event)
        elif event is None:
            return
        elif isinstance(self._into, Upload):
            await self._into.write(bytes(event))
        else:
            self._room -= len(event)
            if self._room < 0:
                raise over(self._max_text_bytes, ASIDE)
            self._into += event

    def form(self) -> Form:
        """All of it. Raises BadRequest."""
        try:
            texts = {name: text.decode() for name, text in self._texts.items()}
        except UnicodeDecodeError as error:
            raise BadRequest("the form is not UTF-8") from error
        return Form(texts, self._uploads)

    def _begun(self, head: MultipartSegment) -> Upload | bytearray:
        name = head.name or ""
        if head.filename is None:
            if name == FILES:
                raise BadRequest(f"`{FILES}` must be a file part with a filename (curl: -F {FILES}=@name)")
            self._texts[name] = bytearray()
            return self._texts[name]
        if name in self._named:
            raise BadRequest(f"`{name}` is text, not a file")
        if name != FILES:
            raise BadRequest(f"send files in the field `{FILES}`, not in `{_printable(name)}`")
        media_type = head.content_type or ""
        upload = Upload(
            file_name(head.filename), media_type if MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream"
        )
        self._opened.callback(upload.close)
        self._uploads.append(upload)
        return upload


def file_name(said: str) -> str:
    """The name that a client gave its file: without its folders, and without what can't be printed."""
    return _printable(said.replace("\\", "/").rsplit("/", 1)[-1]) or "file"


def _printable(said: str) -> str:
    return UNPRINTABLE.sub("", said)[:MAX_NAME].strip()

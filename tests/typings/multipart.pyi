"""What we take of `multipart`, the one that litestar uses. Another package installs the same name, which a type checker
finds instead; Python finds litestar's either way."""

from collections.abc import Generator
from types import TracebackType
from typing import Self

class MultipartError(Exception): ...

class MultipartSegment:
    name: str | None
    filename: str | None
    content_type: str | None

class PushMultipartParser:
    def __init__(self, boundary: str, *, max_segment_count: int) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def parse(self, chunk: bytes) -> Generator[MultipartSegment | bytearray | None]: ...

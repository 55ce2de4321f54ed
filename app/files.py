"""The files that come with a task: few bytes of them in memory, and stored before their task's fact."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from tempfile import SpooledTemporaryFile

import uuid_utils

from eventstore.events import FileReference, Owner, TaskId
from eventstore.log import Blobs, task_subject

IN_MEMORY = 64 * 1024
"""Bytes of a file that are kept in memory; more of them are on disk."""
PIECE = 128 * 1024
FILE_BLOB = "file_"
"""How the names of their blobs begin."""


class Upload:
    """A file that came with a request; `close` it."""

    def __init__(self, name: str, media_type: str) -> None:
        self.name = name
        self.media_type = media_type
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._file = SpooledTemporaryFile[bytes](max_size=IN_MEMORY)  # whoever has it closes it

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    async def write(self, piece: bytes) -> None:
        """Add to it."""
        self.bytes += len(piece)
        self._digest.update(piece)
        await asyncio.to_thread(self._file.write, piece)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """All of it, in pieces that fit into a message."""
        await asyncio.to_thread(self._file.seek, 0)
        while piece := await asyncio.to_thread(self._file.read, PIECE):
            yield piece

    def close(self) -> None:
        """It is gone."""
        self._file.close()


async def stored(blobs: Blobs, owner: Owner, task_id: TaskId, uploads: Sequence[Upload]) -> tuple[FileReference, ...]:
    """The files of a task that is about to be created, each under a name of its own: where no fact comes to name it, it
    is swept. Raises LogUnavailable, TooLarge."""
    references: list[FileReference] = []
    for upload in uploads:
        name = f"{FILE_BLOB}{uuid_utils.uuid7()}"
        await blobs.put_pieces(name, upload.pieces(), subject=task_subject(owner, task_id), expected=0)
        references.append(
            FileReference(
                name=upload.name, blob=name, sha256=upload.sha256, bytes=upload.bytes, media_type=upload.media_type
            )
        )
    return tuple(references)

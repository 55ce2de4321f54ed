"""A service that answers and tells nothing new: whoever reads its log gives up in time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.audit_http import HttpSource
from app.replies import NoAnswer
from eventstore.log import Arrival, task_subject
from projections.lines import line_of
from tests.log.logs import ANN, SOON_S, new_task

LINE = line_of(Arrival(1, task_subject(ANN, new_task()), b"{}"))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTasktrail-Last-Sequence: %d\r\n"
CUT = HEAD % 5 + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n" % (len(LINE), LINE)
SHORT = HEAD % 1 + b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(LINE), LINE)


@asynccontextmanager
async def saying(answer: bytes) -> AsyncGenerator[tuple[HttpSource, list[bytes]]]:
    """A service that says always the same; and what it was asked."""
    asked: list[bytes] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(on_connection, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url) as http:
            yield HttpSource(http, 1.0), asked


async def all_of(batches: AsyncGenerator[list[Arrival]]) -> list[Arrival]:
    return [one async for batch in batches for one in batch]


@pytest.mark.parametrize("answer", [CUT, SHORT], ids=["cut at the same record", "shorter than it was"])
async def test_a_service_that_tells_nothing_new_is_given_up_and_not_asked_without_a_pause(answer: bytes):
    async with asyncio.timeout(SOON_S), saying(answer) as (source, asked):
        batches = source.arrivals(0, 5)
        assert [one.sequence for one in await anext(batches)] == [1]
        with pytest.raises(NoAnswer):
            await all_of(batches)
    assert 1 < len(asked) < 50

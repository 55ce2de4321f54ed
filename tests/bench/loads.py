"""Many clients at once: `wrk`, and what it says; and other processes to send them to."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

IN_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Load(Struct):
    """What `wrk` says of its clients: answers a second, and the milliseconds within which 99 of 100 came."""

    rate: float
    p99_ms: float


async def loaded(url: str, credential: str, clients: int, seconds: int, script: Path | None = None) -> Load:
    """So many clients for so long; the script says what they send, if it is more than a GET."""
    more = () if script is None else ("-s", str(script))
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", *more),
        *("-H", f"Authorization: {credential}", url),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    text = said.decode()
    rate, slow = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    assert rate, text
    assert slow, text
    assert "Non-2xx" not in text, text
    return Load(float(rate[1]), float(slow[1]) * IN_MS[slow[2]])


@asynccontextmanager
async def listening(port: int, *words: str, given: bytes = b"") -> AsyncGenerator[None]:
    """Such a process, which is given this, while it listens on that port."""
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(given)
        process.stdin.close()
        async with asyncio.timeout(30):
            while not await _listens(port):  # noqa: ASYNC110  # another process's readiness
                await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True

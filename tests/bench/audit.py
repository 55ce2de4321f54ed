"""The audit: a replay over HTTP beside a bare reading of the same records, and how fast a log is verified."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec

from eventstore.connection import Connection, NatsAddress
from eventstore.tokens import Scope, Tokens, new_token
from tests.bench.figures import Figure
from tests.bench.records import OWNER
from tests.bench.views import bare_reading, filled, rounds
from tests.projections.databases import Cluster
from tests.walk.serving import free_port

QUIET = ("--log-level", "error")
FORMS = {"NDJSON": "application/x-ndjson", "SSE": "text/event-stream"}


@asynccontextmanager
async def serving(
    nats: NatsAddress, *options: str, scopes: tuple[Scope, ...] = ("audit", "audit:all")
) -> AsyncGenerator[tuple[str, str]]:
    """An API process; its URL, and a token that hears everything, or has these scopes."""
    async with served(nats, *options, scopes=scopes) as (url, token, _):
        yield url, token


@asynccontextmanager
async def served(
    nats: NatsAddress, *options: str, scopes: tuple[Scope, ...] = ("audit", "audit:all")
) -> AsyncGenerator[tuple[str, str, int]]:
    """The same, and the process's number."""
    connection = await Connection.open(nats, "bench")
    tokens = await Tokens.open(connection)
    token = new_token()
    await tokens.add(token, OWNER, scopes)
    await tokens.close()
    await connection.close()
    url = f"http://127.0.0.1:{free_port()}"
    port = str(urlsplit(url).port)
    api = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "api", "--nats-url", nats.url, "--port", port, *(options or QUIET))
    )
    try:
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=url) as client:
            while not await _is_ready(client):  # noqa: ASYNC110  # another process's readiness
                await asyncio.sleep(0.05)
        yield url, token, api.pid
    finally:
        api.terminate()
        await api.wait()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).is_success
    except httpx.TransportError:
        return False


async def replayed(url: str, token: str, accept: str, records: int) -> float:
    """Records a second, by a client that only counts the lines that begin a record."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024 * 1024)
    head = f"GET /events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nAccept: {accept}\r\n\r\n"
    since = time.monotonic()
    writer.write(head.encode())
    seen, rest = 0, b""
    begins = b'"sequence":'
    while seen < records:
        chunk = await reader.read(1024 * 1024)
        assert chunk, f"the feed ended after {seen} records"
        text = rest + chunk
        seen += text.count(begins)
        rest = text[-len(begins) + 1 :]
    rate = seen / (time.monotonic() - since)
    writer.close()
    return rate


async def verified(*where: str) -> float:
    """Records a second, as `tasktrail audit verify` says it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "audit", "verify", "--json", *where), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    outcome = msgspec.json.decode(said, type=dict[str, object])
    assert outcome["fault_count"] == 0, said
    return float(str(outcome["records"])) / float(str(outcome["seconds"]))


async def replays(directory: Path, records: int, _: Cluster | None) -> list[Figure]:
    """Over HTTP, in turn with bare readings; then verifications, on NATS and over HTTP."""
    bare: list[float] = []
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    checked: dict[str, list[float]] = {"on NATS": [], "over HTTP": []}
    async with filled(directory / "log", records) as (nats, last), serving(nats) as (url, token):
        for _round in range(rounds(records)):
            bare.append(await bare_reading(nats, last))
            for form, accept in FORMS.items():
                rates[form].append(await replayed(url, token, accept, last))
        checked["on NATS"].append(await verified("--nats-url", nats.url))
        checked["over HTTP"].append(await verified("--url", url, "--token", token))
    figures = [Figure(name=f"bare ordered reading, {last:,} records", values=bare, unit="records/s")]
    for form, found in rates.items():
        shares = [rate / one for rate, one in zip(found, bare, strict=True)]
        figures += [
            Figure(name=f"audit replay as {form}", values=found, unit="records/s"),
            Figure(name=f"audit replay as {form}, share", values=shares, unit="", share_of="bare reading", aim=0.5),
        ]
    return figures + [Figure(name=f"verify {how}", values=found, unit="records/s") for how, found in checked.items()]

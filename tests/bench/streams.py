"""Streams: from a fact's append to its frame at the client, how many of them reach how many, and what a client costs.

Beside a bare asyncio protocol that sends the same bytes (broadcasting.py); the clients are in C (listeners.c).
"""

import asyncio
import contextlib
import gc
import shutil
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from app.freezing import FREEZE_AFTER_S
from eventstore.events import TaskId
from eventstore.server import EmbeddedServer
from tests.bench.audit import QUIET, served
from tests.bench.emitting import Speaker
from tests.bench.figures import Figure
from tests.bench.loads import listening
from tests.bench.records import OWNER
from tests.projections.databases import Cluster
from tests.walk.serving import free_port

MANY, VERY_MANY = 1_000, 10_000
SOON_MS = 10.0
STEP_S = 2.0
RATES = (60, 90, 120, 150, 200, 300, 400)
"""Facts a second, each told to a thousand clients."""
PAUSE_S = 0.2
PAST = 1_000


class Heard(Struct):
    """What the clients report: frames in all; of one client since its beginning, the least and the most; how long they
    were under way."""

    frames: int
    least: int
    most: int
    cut: int
    p50_ns: int
    p99_ns: int
    most_ns: int
    seconds: float
    bytes: int


class Listeners:
    """So many clients of one stream, in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process, opened_s: float) -> None:
        self._process = process
        self.opened_s = opened_s

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, program: Path, side: "Side", task_id: TaskId, count: int) -> AsyncGenerator["Listeners"]:
        """All of them have the head of their answer."""
        lines = [f"GET /tasks/{task_id}/events HTTP/1.1", "Host: bench", "Accept: text/event-stream"]
        lines.append(f"Authorization: Bearer {side.token}")
        process = await asyncio.create_subprocess_exec(
            program, str(urlsplit(side.url).port), str(count), stdin=PIPE, stdout=PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("\n".join([*lines, "", "GO", ""]).encode())
            async with asyncio.timeout(60):
                said = await process.stdout.readline()
            yield cls(process, float(said.split()[1]))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def report(self) -> Heard:
        """What came since the last report."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"REPORT\n")
        return msgspec.json.decode(await self._process.stdout.readline(), type=Heard)

    async def settled(self) -> int:
        """How much each has of what was said before, once nothing more of that comes."""
        heard = await self.report()
        while heard.frames or heard.least < heard.most:
            await asyncio.sleep(PAUSE_S)
            heard = await self.report()
        return heard.most

    async def heard(self, each: int, within_s: float = 10.0) -> Heard:
        """What came since the last report, once everybody has so many frames, or the time is over."""
        until = time.monotonic() + within_s
        whole = await self.report()
        while whole.least < each and not whole.cut and time.monotonic() < until:
            await asyncio.sleep(PAUSE_S)
            whole = _together(whole, await self.report())
        return whole


def _together(one: Heard, more: Heard) -> Heard:
    """Two reports, the second of what was late: its times are the worse ones."""
    if not more.frames:
        return one
    late = more.p99_ns if more.frames * 100 > one.frames else one.p99_ns
    return Heard(
        frames=one.frames + more.frames,
        least=more.least,
        most=more.most,
        cut=more.cut,
        p50_ns=one.p50_ns,
        p99_ns=max(one.p99_ns, late),
        most_ns=max(one.most_ns, more.most_ns),
        seconds=one.seconds + more.seconds,
        bytes=one.bytes + more.bytes,
    )


class Side(Struct):
    """Who tells it: ours or bare; where, to which token, and which process it is."""

    name: str
    url: str
    token: str
    pid: int


async def streams(directory: Path, _records: int, _: Cluster | None) -> list[Figure]:
    """All that there is to say of them."""
    program = await _compiled(directory)
    if program is None:
        return [
            Figure(name="streams", values=[], unit="", missing="cc is not installed: apt-get install gcc libc6-dev")
        ]
    server = await EmbeddedServer.start(directory / "log")
    try:
        async with contextlib.AsyncExitStack() as stack:
            options = (*QUIET, "--reads", "bounded", "--streams-per-token", str(2 * VERY_MANY))
            scopes = ("tasks:read", "tasks:write")
            url, token, pid = await stack.enter_async_context(served(server.address, *options, scopes=scopes))
            ours = Side("ours", url, token, pid)
            bare = await stack.enter_async_context(_bare(server.address.url))
            await asyncio.sleep(FREEZE_AFTER_S + 1.0)  # which holds up all of a process for a tenth of a second, once
            figures: list[Figure] = []
            for measure in (_latencies, _fan_outs, _herd, _idle):
                speaker = await Speaker.open(server.address)
                figures += await measure(program, speaker, [ours, bare])
                await speaker.close()
            return figures
    finally:
        await server.stop()


async def _compiled(directory: Path) -> Path | None:
    if shutil.which("cc") is None:
        return None
    program = directory / "listeners"
    source = Path(__file__).with_name("listeners.c")
    process = await asyncio.create_subprocess_exec("cc", "-O2", "-o", program, source)
    assert await process.wait() == 0
    return program


@contextlib.asynccontextmanager
async def _bare(nats_url: str) -> AsyncGenerator[Side]:
    port = free_port()
    command = (sys.executable, "-m", "tests.bench.broadcasting", str(port), nats_url, f"tasks.*.{OWNER}.*")
    async with listening(port, *command):
        yield Side("bare", f"http://127.0.0.1:{port}", "", 0)


async def _latencies(program: Path, speaker: Speaker, sides: list[Side]) -> list[Figure]:
    """(c) From before the append to the frame at the client, one fact at a time."""
    figures: list[Figure] = []
    for count in (1, 100):
        for side in sides:
            async with Listeners.open(program, side, speaker.task_id, count) as listeners:
                before = await listeners.settled()
                took_s = await speaker.say_at(250, STEP_S)
                heard = await listeners.heard(before + len(took_s))
            append_ms, p50, p99 = statistics.median(took_s) * 1000, heard.p50_ns / 1e6, heard.p99_ns / 1e6
            who = f"{side.name}, {count} client{'s' if count > 1 else ''}"
            aims = (SOON_MS, 3.0) if side.name == "ours" else (None, None)
            of = "that append"
            figures += [
                Figure(name=f"bare append while {who}", values=[append_ms], unit="ms"),
                Figure(name=f"append to frame, {who}, p50", values=[p50], unit="ms"),
                Figure(name=f"append to frame, {who}, p99", values=[p99], unit="ms", aim=aims[0], than="under"),
                Figure(
                    name=f"append to frame, {who}",
                    values=[p50 / append_ms],
                    unit="x",
                    share_of=of,
                    aim=aims[1],
                    than="under",
                ),
            ]
    return figures


async def _fan_outs(program: Path, speaker: Speaker, sides: list[Side]) -> list[Figure]:
    """(d) A thousand streams on one task, told more and more."""
    soon: dict[str, float] = {}
    most: dict[str, float] = {}
    for side in sides:
        soon[side.name] = most[side.name] = 0.0
        async with Listeners.open(program, side, speaker.task_id, MANY) as listeners:
            before = await listeners.settled()
            for rate in RATES:
                before += len(await speaker.say_at(rate, STEP_S))
                heard = await listeners.heard(before)
                if heard.cut or heard.least < before:
                    break
                most[side.name] = max(most[side.name], heard.frames / heard.seconds)
                if heard.p99_ns / 1e6 < SOON_MS:
                    soon[side.name] = heard.frames / heard.seconds
    aims = {"ours": (120_000.0, 190_000.0)}
    figures: list[Figure] = []
    for name in soon:
        aim_soon, aim_most = aims.get(name, (None, None))
        figures += [
            Figure(
                name=f"{MANY:,} streams, {name}, p99 under 10 ms", values=[soon[name]], unit="frames/s", aim=aim_soon
            ),
            Figure(name=f"{MANY:,} streams, {name}, the most", values=[most[name]], unit="frames/s", aim=aim_most),
        ]
    return figures


async def _herd(program: Path, speaker: Speaker, sides: list[Side]) -> list[Figure]:
    """A thousand clients that come at once to a task with a long history, all of which is told to each."""
    for _ in range(PAST):
        await speaker.say()
    since = time.monotonic()
    async with Listeners.open(program, sides[0], speaker.task_id, MANY) as listeners:
        heard = await listeners.heard(PAST, within_s=30.0)
        took_s = time.monotonic() - since
    assert (heard.least, heard.cut) == (PAST, 0), heard
    return [Figure(name=f"{MANY:,} streams catch up, ours", values=[heard.frames / took_s], unit="frames/s")]


async def _idle(program: Path, speaker: Speaker, sides: list[Side]) -> list[Figure]:
    """What an idle stream costs; that each of very many hears a fact all the same."""
    figures: list[Figure] = []
    ours = sides[0]
    for count in (MANY, VERY_MANY):
        before_kb = _memory_kb(ours.pid)
        async with Listeners.open(program, ours, speaker.task_id, count) as listeners:
            await asyncio.sleep(1.0)
            taken_kb = _memory_kb(ours.pid) - before_kb
            heard = await listeners.heard(0)
            await speaker.say()
            told = await listeners.heard(heard.most + 1)
            assert told.least == told.most, told
            figures += [
                Figure(name=f"{count:,} idle streams, memory of one", values=[taken_kb / count], unit="KB"),
                Figure(name=f"{count:,} idle streams, opened", values=[count / listeners.opened_s], unit="streams/s"),
                Figure(name=f"{count:,} idle streams, the last told", values=[told.most_ns / 1e6], unit="ms"),
            ]
        await asyncio.sleep(1.0)
    return figures


def _memory_kb(pid: int) -> int:
    gc.collect()
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no memory is told of")

"""One peer: its memory, polls and streams; and, started anew, its creations. What a task of one left undone must not
run beside the other."""

import asyncio
import statistics
import subprocess
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import msgspec

from tests.bench.listening import Heard, reading
from tests.bench.peers.asking import Asked, asked, can_ask
from tests.bench.peers.peer import Answer, Order, Peer, environment_of
from tests.walk.serving import free_port

READERS = 100
IDLE = 500
PACED = Order(steps=25, takes_ms=100, gate=0)
FLOOD = Order(steps=500, takes_ms=0, gate=0)
SHORT = Order(steps=1, takes_ms=0, gate=0)
EVENTS_A_STEP = 2
FLOOD_WITHIN_S = 8
PACED_WITHIN_S = 8
START_WITHIN_S = 40.0
SETTLE_S = 0.5
"""What was just opened or closed is still worked on for a moment."""
NEAR_ALL = 0.9
"""Of a core: a generator that took more of one may have been what could not go faster."""

CREATED, CREATED_P99 = "created, tasks/s", "created, p99 ms"
POLLED, POLLED_P99 = "polled, polls/s", "polled, p99 ms"
EVENTS, MISSED = f"read by {READERS} readers, events/s", f"of these, % not read within {FLOOD_WITHIN_S} s"
LATE, LATE_P99 = "from emitted to read, p50 ms", "from emitted to read, p99 ms"
MEMORY, IDLE_KIB = "memory when started, MiB", "memory of an idle stream, KiB"
MEASURES = (CREATED, CREATED_P99, POLLED, POLLED_P99, EVENTS, MISSED, LATE, LATE_P99, MEMORY, IDLE_KIB)
BY_WRK = {CREATED, CREATED_P99, POLLED, POLLED_P99}
MORE_IS_BETTER = {CREATED, POLLED, EVENTS}
LOADED, READ = "wrk's part of a core", "the readers' part of a core"

Values = dict[str, float]


class Running:
    """A peer that answers, and the gate that its tasks wait at."""

    def __init__(self, peer: Peer, client: httpx.AsyncClient, pid: int, gate: "Gate") -> None:
        self.peer, self.pid = peer, pid
        self._client, self._gate = client, gate

    def url(self, path: str) -> str:
        """Of this peer."""
        return f"{self._client.base_url}".rstrip("/") + path

    async def waiting(self, order: Order) -> Answer:
        """A task that waits until `go`."""
        gated = Order(order.steps, order.takes_ms, self._gate.port)
        answer = await self._post(self.peer.create, self.peer.body(gated))
        async with asyncio.timeout(START_WITHIN_S):
            if self.peer.is_waiting is None:
                await self._gate.arrived.wait()
                self._gate.arrived.clear()
            else:
                while not self.peer.is_waiting(await self._polled(answer)):  # noqa: ASYNC110  # another process's task
                    await asyncio.sleep(0.02)
        return answer

    async def go(self, answer: Answer) -> None:
        """Let it begin."""
        if self.peer.go is None:
            self._gate.open()
        else:
            await self._post(*self.peer.go(answer))

    async def _polled(self, answer: Answer) -> Answer:
        said: Answer = (await self._client.get(self.peer.polled(answer))).json()
        return said

    async def _post(self, path: str, body: Answer) -> Answer:
        answer = await self._client.post(path, json=body)
        answer.raise_for_status()
        said: Answer = answer.json()
        return said


class Gate:
    """A port at which agents wait for a word: they begin when all readers are there."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.port = 0
        self._waiting: list[asyncio.StreamWriter] = []

    def open(self) -> None:
        """Whoever waits begins."""
        for writer in self._waiting:
            writer.write(b"go\n")
        self._waiting.clear()

    async def _arrive(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._waiting.append(writer)
        self.arrived.set()

    @asynccontextmanager
    async def kept(self) -> AsyncGenerator["Gate"]:
        """Listen, and let everybody go in the end."""
        server = await asyncio.start_server(self._arrive, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            for writer in self._waiting:
                writer.close()
            server.close()


@asynccontextmanager
async def started(peer: Peer, directory: Path) -> AsyncGenerator[Running]:
    """Start it, wait until it is ready, and end it. Raises RuntimeError with its last words where it does not start."""
    port = free_port()
    said = directory / f"{peer.python.parent.parent.name}.log"
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *peer.command(directory, port), env=environment_of(peer), cwd=directory, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{port}"
        async with (
            httpx.AsyncClient(base_url=url, headers=dict(peer.headers), timeout=30) as client,
            Gate().kept() as gate,
        ):
            try:
                async with asyncio.timeout(START_WITHIN_S):
                    while not await _is_ready(client, peer.ready):
                        if process.returncode is not None:
                            raise TimeoutError
                        await asyncio.sleep(0.05)
            except TimeoutError:
                words = said.read_text(errors="replace").strip().splitlines()[-3:]
                raise RuntimeError(f"it did not start: {' / '.join(words)}") from None
            yield Running(peer, client, process.pid, gate)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:  # some wait for their streams
            process.kill()
            await process.wait()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def _is_ready(client: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).is_success
    except httpx.TransportError:
        return False


async def measured(peer: Peer, directory: Path) -> tuple[Values, Values]:
    """What it did, by measure; and how busy the generators of load were, by which."""
    values, busy = Values(), Values()
    async with started(peer, _made(directory / "streams")) as running:
        paced = await running.waiting(PACED)
        await asyncio.sleep(SETTLE_S)
        values[MEMORY] = memory_mib(running.pid)
        if can_ask():
            polls = await asked(running.url(peer.polled(paced)), peer.headers, directory)
            values |= {POLLED: polls.rate, POLLED_P99: polls.p99_ms}
            busy[LOADED] = polls.busy
        values[IDLE_KIB] = await _idle(running, paced)
        heard = await _heard(running, paced, PACED, PACED_WITHIN_S, look=True)
        values |= late(heard)
        heard = await _heard(running, await running.waiting(FLOOD), FLOOD, FLOOD_WITHIN_S, look=False)
        wanted = FLOOD.steps * EVENTS_A_STEP * READERS
        values |= {EVENTS: heard.events / (heard.seconds or 1.0), MISSED: 100 * (1 - heard.events / wanted)}
        busy[READ] = heard.busy
    if can_ask():
        async with started(peer, _made(directory / "creations")) as running:
            posts = await _created(running, directory)
            values |= {CREATED: posts.rate, CREATED_P99: posts.p99_ms}
            busy[LOADED] = max(busy[LOADED], posts.busy)
    return values, busy


def late(heard: Heard) -> Mapping[str, float]:
    """The half, and the hundredth, of the events that were looked at."""
    cuts = statistics.quantiles(heard.late_ms, n=100, method="inclusive")
    return {LATE: cuts[49], LATE_P99: cuts[98]}


async def _idle(running: Running, answer: Answer) -> float:
    """KiB for each of many readers of a task that does nothing."""
    before = memory_mib(running.pid)
    url = running.url(running.peer.streamed(answer))
    async with reading(url, running.peer.headers, running.peer.marker, IDLE):
        await asyncio.sleep(SETTLE_S)
        after = memory_mib(running.pid)
    await asyncio.sleep(SETTLE_S)
    return (after - before) * 1024 / IDLE


async def _heard(running: Running, answer: Answer, order: Order, within_s: float, *, look: bool) -> Heard:
    peer = running.peer
    async with reading(running.url(peer.streamed(answer)), peer.headers, peer.marker, READERS) as readers:
        await asyncio.sleep(SETTLE_S)
        readers.begin(peer.stamp if look else None)
        await running.go(answer)
        return await readers.hear(order.steps * EVENTS_A_STEP, within_s)


async def _created(running: Running, directory: Path) -> Asked:
    body = msgspec.json.encode(running.peer.body(SHORT)).decode()
    return await asked(running.url(running.peer.create), running.peer.headers, directory, body)


def memory_mib(pid: int) -> float:
    """Of this process and all below it, what is shared counted once. Linux only: elsewhere 0."""
    asked = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    below: dict[int, list[int]] = {}
    for line in asked.splitlines():
        child, parent = map(int, line.split())
        below.setdefault(parent, []).append(child)
    total, left = 0, [pid]
    while left:
        one = left.pop()
        left += below.get(one, [])
        with suppress(OSError):  # it may be over by now
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024

"""Random valid lives of a task, written through a room, and readers of them who are cut, evicted and come back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from hypothesis import strategies as st
from litestar.types import HTTPReceiveMessage, Message
from msgspec import Struct

from app.commands import (
    CancelTask,
    Command,
    CreateTask,
    DecideReview,
    FinishStep,
    ProducePartial,
    QueueTask,
    ReceiveInput,
    RequestPause,
    ResumeTask,
)
from app.decide import Rejected
from app.feed import Follow, OurWords, frame
from app.metrics import Metrics
from app.readers import ENDED, LEFT, Paced, Straight
from app.tasks import Cause, Tasks
from app.telling import Body, Telling
from eventstore.cursor import BEGINNING, cursor_of
from eventstore.events import Owner, TaskId
from eventstore.log import EventLog
from projections.task import Task
from tests.lifecycle.commands import (
    complete,
    fail,
    fail_run,
    propose_plan,
    request_input,
    request_review,
    start_run,
    start_step,
)
from tests.log.logs import ANN, SOON_S

CAUSE = Cause(actor="test", correlation_id="request-1", causation_id="request-1")
BURST = 45
"""Four of these are more than a task keeps in memory for those who resume."""


class Reading(Struct, frozen=True):
    """One connection of a reader: it begins when the task has so many facts, and leaves after so many frames."""

    begins_at: int
    takes: int
    resumes_by: Literal["id", "sequence"] = "id"
    room_bytes: int = 1_000_000
    dawdles: bool = False
    straight: bool = True


readings = st.builds(
    Reading,
    begins_at=st.integers(0, 40),
    takes=st.integers(0, 30),
    resumes_by=st.sampled_from(["id", "id", "sequence"]),
    room_bytes=st.sampled_from([1_000_000, 3_000]),
    dawdles=st.booleans(),
    straight=st.booleans(),
)
readers = st.lists(st.lists(readings, max_size=4), min_size=1, max_size=5)
"""What each of some readers does before its last connection, which reads to the end."""

lives = st.lists(st.integers(0, 11), min_size=2, max_size=40)
"""What happens to a task; `next_command` makes a command of each number."""


def next_command(task: Task, n: int) -> Command:
    """Something that may well happen to such a task."""
    run, step = task.run, task.steps
    match task.status:
        case "absent":
            return CreateTask(agent="simulator", fingerprint="f1", input="x" * (400_000 if n == 11 else 5))
        case "pending" | "queued":
            rarely: dict[int, Command] = {0: QueueTask(limit=1), 1: RequestPause(), 2: ReceiveInput(text="hurry")}
            return rarely.get(n, start_run(run + 1))
        case "running":
            said = ProducePartial(run=run, step=step, offset=task.text_length, text=f"{n} \u00e9 \u2028 \n")
            mostly: dict[int, Command] = {
                0: start_step(step, run=run),
                1: FinishStep(run=run, step=step, kind="tool", name="search", output={"n": n}),
                2: FinishStep(run=run, step=step, kind="text", message="so be it"),
                3: request_input(step, run=run),
                4: request_review(step, run=run),
                5: propose_plan(step, run=run),
                6: RequestPause(),
                7: fail_run(run),
                8: ReceiveInput(text="wait"),
            }
            return mostly.get(n, said)
        case "waiting_for_input":
            return ReceiveInput(text="the blue one")
        case "awaiting_review":
            return DecideReview(approved=n % 2 == 0)
        case _:
            return ResumeTask()


def ending(task: Task, n: int) -> Command:
    """The end, one way or the other."""
    if task.status != "running" or n % 3 == 0:
        return CancelTask(by="ann")
    return complete(task.run) if n % 3 == 1 else fail(task.run)


async def live(rooms: list[Tasks], task_id: TaskId, life: list[int], between: Callable[[int], Awaitable[None]]) -> None:
    """Write this life, its rooms taking turns; `between` is called before each command."""
    for at, n in enumerate(life):
        await between(n)
        writer = rooms[at % len(rooms)]
        for _ in range(BURST if n == 10 else 1):
            async with writer.attach(ANN, task_id) as attached:
                command = next_command(attached.task, n)
            await writer.execute(ANN, task_id, command, CAUSE)
    while True:
        async with rooms[0].attach(ANN, task_id) as attached:
            if attached.task.ended:
                return
            command = ending(attached.task, life[-1])
        outcome = await rooms[0].execute(ANN, task_id, command, CAUSE)
        if not isinstance(outcome, Rejected):
            return


class Received:
    """What one reader has, over all its connections."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.ended = False
        self.cuts = 0
        self.resets = 0

    @property
    def last_id(self) -> str:
        """Of the last frame; empty: none has come."""
        return id_of(self.frames[-1]) if self.frames else ""


Words = Callable[[Tasks, TaskId, Received, Literal["id", "sequence"]], Telling]
"""What tells a reader that comes with what it has."""


def id_of(frame: bytes) -> str:
    """What its `id:` says."""
    return frame.partition(b"\n")[0].removeprefix(b"id: ").decode()


def our_words(tasks: Tasks, task_id: TaskId, received: Received, resumes_by: Literal["id", "sequence"]) -> OurWords:
    """Our own API's."""
    del tasks, task_id
    last = received.last_id if resumes_by == "id" else received.last_id.partition("-")[0]
    return OurWords(cursor_of(last) if last else BEGINNING)


class Client:
    """One connection's other side: a socket into which it is written straight, or a body that is taken piece by piece.
    It leaves after so many frames; a dawdler takes what is written only now and then."""

    def __init__(self, reading: Reading) -> None:
        self.frames: list[bytes] = []
        self.resets = 0
        self.left = asyncio.Event()
        self._takes = reading.takes
        self._dawdles = reading.dawdles
        self._bytes = 0
        self._on_end: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        return self._bytes > 0

    @property
    def waiting(self) -> int:
        return self._bytes

    def tell_of_end(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end

    def write(self, chunk: bytes) -> None:
        size, _, rest = chunk.partition(b"\r\n")
        assert len(rest) == int(size, 16) + 2
        assert rest.endswith(b"\r\n")
        if self._dawdles:
            if not self._bytes:
                asyncio.get_running_loop().call_later(0.005, self._take_all)
            self._bytes += len(chunk)
        self._hear(rest[:-2])

    def _take_all(self) -> None:
        self._bytes = 0

    async def send(self, message: Message) -> None:
        """What is written before it goes on straight, or all of it."""
        if self._dawdles:
            await asyncio.sleep(0.003)
        if message["type"] == "http.response.body":
            self._hear(message["body"])

    async def receive(self) -> HTTPReceiveMessage:
        """Nothing, until it leaves."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    def _hear(self, text: bytes) -> None:
        for piece in text.split(b"\n\n")[:-1]:
            if piece.startswith(b"event: reset"):
                self.resets += 1
                self.frames = []
            elif not piece.startswith((b":", b"retry:")) and len(self.frames) < self._takes:
                self.frames.append(piece + b"\n\n")
        if len(self.frames) >= self._takes and not self.left.is_set():
            self.left.set()
            if self._on_end is not None:
                self._on_end()


async def read_once(
    tasks: Tasks, task_id: TaskId, received: Received, reading: Reading, words: Words = our_words
) -> None:
    """One connection, from where the reader is."""
    telling = words(tasks, task_id, received, reading.resumes_by)
    client = Client(reading)
    reader = Straight(client, reading.room_bytes) if reading.straight else Paced(reading.room_bytes)
    async with tasks.attach(ANN, task_id) as attached:
        follow = Follow(tasks, attached, reader, telling, Body())
        try:
            why = await follow.begin(client.receive, client.send, None) or await reader.over
        finally:
            follow.leave()
            reader.cut_off(LEFT)
    if client.resets:
        received.resets += client.resets
        received.frames = []
    received.frames += client.frames
    received.ended = why == ENDED and not client.left.is_set()
    received.cuts += why not in (ENDED, LEFT)


async def read_whole(tasks: Tasks, task_id: TaskId, readings: list[Reading], words: Words = our_words) -> Received:
    """All that a reader gets by these connections and then one more, repeated as often as it is cut, to the end."""
    received = Received()
    for reading in readings:
        async with tasks.attach(ANN, task_id) as attached:
            await attached.until(lambda task, at=reading.begins_at: task.ended or task.version >= at, SOON_S)
        if not received.ended:
            await read_once(tasks, task_id, received, reading, words)
    while not received.ended:
        await read_once(tasks, task_id, received, Reading(0, 1_000_000, straight=received.cuts % 2 == 0), words)
    return received


async def frames_of(log: EventLog, task_id: TaskId, owner: Owner = ANN) -> list[bytes]:
    """The task's frames, made from what the log holds."""
    return [frame(recorded) for recorded in await log.read(owner, task_id)]


async def room(log: EventLog, *, strict_reads: bool = False, max_attached: int = 10_000) -> Tasks:
    """A room on this log, as another process would have one."""
    return await Tasks.open(log, Metrics(), strict_reads=strict_reads, max_attached=max_attached)

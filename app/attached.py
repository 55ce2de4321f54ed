"""A task held in memory: folded, fed by the tail and by acknowledgements, read by pollers and streams."""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from app.readers import Circle, Reader, Words
from eventstore.events import Owner, TaskId
from eventstore.log import Arrival, Recorded
from eventstore.tokens import Dialect
from projections.task import INITIAL, Task, evolve, follows

RECENT = 128
RECENT_BYTES = 64 * 1024
"""Records (and their bytes) kept with an attached task for those who resume; older ones come from the log."""
MAX_BUFFER = 50_000


class Head(Struct, frozen=True):
    """An answer's headers, as ASGI wants them, and as they are written."""

    headers: list[tuple[bytes, bytes]]
    lines: bytes


class Ready(Struct, frozen=True):
    """What a plain poll of one version answers, encoded: whole, or unchanged to whoever has it. How long a kind poller
    waits is part of it: it is said from one time (of the wall clock) until another."""

    version: int
    body: bytes
    whole: Head
    unchanged: Head
    since: float
    until: float


class Attached:
    """One task in memory. `apply` is synchronous and takes no lock; the lock is around decide-and-append only.

    There may be a hundred thousand of these, and most are only polled: what few need is made when it is needed.
    """

    __slots__ = (
        "_changed",
        "_circles",
        "_lock",
        "_recent_bytes",
        "bodies",
        "buffer",
        "filling",
        "owner",
        "pins",
        "readers",
        "reading",
        "ready",
        "recent",
        "task",
        "task_id",
        "void",
    )

    def __init__(self, owner: Owner, task_id: TaskId) -> None:
        self.owner = owner
        self.task_id = task_id
        self.task: Task = INITIAL
        # No deque: one has room for 64 from its first on.
        self.recent: list[Recorded] = []
        self._recent_bytes = 0
        self._lock: asyncio.Lock | None = None
        self.readers: set[Reader] = set()
        self._circles: dict[Words, Circle] = {}
        self.bodies: dict[Dialect, bytes] = {}
        self.ready: dict[Dialect, Ready] = {}
        self.buffer: list[Arrival] | None = None
        self.filling: asyncio.Task[None] | None = None
        self.void = False
        self.pins = 0
        self.reading: dict[tuple[int, int], asyncio.Task[list[Recorded]]] = {}
        self._changed: set[asyncio.Future[None]] | None = None

    @property
    def lock(self) -> asyncio.Lock:
        """Around decide-and-append."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    @property
    def idle(self) -> bool:
        """Nobody needs it to stay."""
        return not (self.pins or self.readers or self._changed or self.filling is not None)

    def take_lock(self) -> bool:
        """Have the lock, where nobody has it or waits for it."""
        if self.lock.locked():
            return False
        taking = self.lock.acquire()  # asyncio has no other way; where it need not wait, this is its end
        try:
            taking.send(None)
        except StopIteration:
            return True
        taking.close()
        return False

    def apply(self, recorded: Recorded) -> bool:
        """Take in a record; one that we have is passed over. False: it does not follow on what we have; read again."""
        if recorded.sequence <= self.task.sequence:
            return True
        if not follows(recorded, self.task):
            return False
        self.task = evolve(self.task, recorded)
        self._remember(recorded)
        self.bodies.clear()
        self.ready.clear()
        for circle in self._circles.values():
            circle.say(recorded, self.task)
        self.wake()
        return True

    def join(self, reader: Reader, words: Words) -> None:
        """Have this reader hear all that comes, in these words; it has heard all that is here."""
        circle = self._circles.get(words)
        if circle is None:
            circle = self._circles[words] = Circle(words)
        circle.join(reader)

    def leave(self, reader: Reader, words: Words) -> None:
        """A reader that goes, wherever it is."""
        self.readers.discard(reader)
        circle = self._circles.get(words)
        if circle is not None:
            circle.leave(reader)
            if not circle:
                del self._circles[words]

    def _remember(self, recorded: Recorded) -> None:
        self.recent.append(recorded)
        self._recent_bytes += len(recorded.stored)
        while len(self.recent) > RECENT or (self._recent_bytes > RECENT_BYTES and len(self.recent) > 1):
            self._recent_bytes -= len(self.recent.pop(0).stored)

    def wake(self) -> None:
        """Whoever waits for a change looks again."""
        changed, self._changed = self._changed, None
        for waiting in changed or ():
            if not waiting.done():
                waiting.set_result(None)

    def _wait_for(self, changed: asyncio.Future[None]) -> None:
        if self._changed is None:
            self._changed = set()
        self._changed.add(changed)

    def _leave(self, changed: asyncio.Future[None]) -> None:
        if self._changed is not None:
            self._changed.discard(changed)

    def make_void(self, why: str) -> None:
        """What is known of this task is not true any more (or too uncertain): everybody attaches anew."""
        self.void = True
        for reader in list(self.readers):
            reader.cut_off(why)
        self.wake()

    async def until(
        self, satisfied: Callable[[Task], bool], timeout_s: float, *, leaving: asyncio.Future[None] | None = None
    ) -> bool:
        """Wait until the task is so, or void; False when the time is over, or (where that matters) we are leaving."""
        until = asyncio.get_running_loop().time() + timeout_s
        while not self.void and not satisfied(self.task):
            left_s = until - asyncio.get_running_loop().time()
            if left_s <= 0 or (leaving is not None and leaving.done()):
                return False
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._wait_for(changed)
            try:
                waiting = {changed} if leaving is None else {changed, leaving}
                await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._leave(changed)
        return True

"""A task held in memory: folded, fed by the tail and by acknowledgements, read by pollers and streams."""

import asyncio
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from eventstore.events import Owner, TaskId
from eventstore.log import Arrival, Recorded
from eventstore.tokens import Dialect
from projections.task import INITIAL, Task, evolve, follows

RECENT = 128
RECENT_BYTES = 64 * 1024
"""Records (and their bytes) kept with an attached task for those who resume; older ones come from the log."""
MAX_BUFFER = 50_000


class Cut(Exception):
    """This reader was cut off: it fell behind, or what it followed is void. It resumes by id."""


class Reader:
    """What one stream has not written yet, bounded: whoever falls behind is cut off, and no writer waits."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[Recorded] = deque()
        self._bytes = 0
        self._woken = asyncio.Event()
        self.cut: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def push(self, recorded: Recorded) -> None:
        """One more record. Never waits."""
        if self.cut.done():
            return
        self._bytes += len(recorded.stored)
        if self._bytes > self._max_bytes:
            self.cut_off("slow")
            return
        self._waiting.append(recorded)
        self._woken.set()

    def cut_off(self, why: str) -> None:
        """No more for this reader."""
        if not self.cut.done():
            self.cut.set_result(why)
        self._waiting.clear()
        self._woken.set()

    async def take(self) -> list[Recorded]:
        """All that is waiting, at least one. Raises Cut."""
        while not self._waiting:
            if self.cut.done():
                raise Cut(self.cut.result())
            self._woken.clear()
            await self._woken.wait()
        taken = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return taken


class Ready(Struct, frozen=True):
    """What a plain poll of one version answers, encoded: whole, or unchanged to whoever has it. How long a kind poller
    waits is part of it: it is said from one time (of the wall clock) until another."""

    version: int
    body: bytes
    whole: list[tuple[bytes, bytes]]
    unchanged: list[tuple[bytes, bytes]]
    since: float
    until: float


class Attached:
    """One task in memory. `apply` is synchronous and takes no lock; the lock is around decide-and-append only."""

    def __init__(self, owner: Owner, task_id: TaskId) -> None:
        self.owner = owner
        self.task_id = task_id
        self.task: Task = INITIAL
        self.recent: deque[Recorded] = deque()
        self._recent_bytes = 0
        self.lock = asyncio.Lock()
        self.readers: set[Reader] = set()
        self.bodies: dict[Dialect, bytes] = {}
        self.ready: dict[Dialect, Ready] = {}
        self.buffer: list[Arrival] | None = None
        self.filling: asyncio.Task[None] | None = None
        self.void = False
        self.pins = 0
        self._changed: set[asyncio.Future[None]] = set()

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
        for reader in self.readers:
            reader.push(recorded)
        self.wake()
        return True

    def _remember(self, recorded: Recorded) -> None:
        self.recent.append(recorded)
        self._recent_bytes += len(recorded.stored)
        while len(self.recent) > RECENT or (self._recent_bytes > RECENT_BYTES and len(self.recent) > 1):
            self._recent_bytes -= len(self.recent.popleft().stored)

    def wake(self) -> None:
        """Whoever waits for a change looks again."""
        changed, self._changed = self._changed, set()
        for waiting in changed:
            if not waiting.done():
                waiting.set_result(None)

    def make_void(self, why: str) -> None:
        """What is known of this task is not true any more (or too uncertain): everybody attaches anew."""
        self.void = True
        for reader in self.readers:
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
            self._changed.add(changed)
            try:
                waiting = {changed} if leaving is None else {changed, leaving}
                await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._changed.discard(changed)
        return True

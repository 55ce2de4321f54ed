"""How much a process holds in memory for those who ask: bytes of bodies and of answers, and streams of one token."""

import asyncio
from collections import Counter, deque

import structlog
from msgspec import Struct

from app.auth import Principal
from app.settings import MIB, HttpSettings
from eventstore.events import Owner, TaskId

log = structlog.stdlib.get_logger()

PATIENCE_S = 5.0
"""So long a request waits for room."""
MAX_WAITING = 256
"""So many of them do; whoever comes later is told at once."""
OF_ONE_OWNER = 4
"""One owner's share is a quarter, of the room and of the places to wait for it: nobody keeps all others out."""
LARGEST_ANSWER = 32 * MIB


class NoRoom(Exception):
    """This process holds as much as it may. `task_id` is the task to which what was asked for has happened all the
    same."""

    def __init__(self, task_id: TaskId | None = None) -> None:
        said = "this is done, but there is no room for the answer now" if task_id else "nothing was done"
        super().__init__(f"this process has as much in hand as it may; {said}")
        self.task_id = task_id


class TooManyStreams(Exception):
    """The token has as many streams open in this process as it may."""


class _Waiting(Struct, eq=False):
    owner: Owner
    size: int
    share: int
    granted: asyncio.Future[None]


class Bound:
    """So many bytes for all, and a share of them for one owner; whoever finds no room waits for a little while."""

    def __init__(self, most: int, *, largest: int) -> None:
        self.most = max(most, largest)
        self.held = 0
        self._share = max(self.most // OF_ONE_OWNER, largest)
        self._of: Counter[Owner] = Counter()
        self._waiting: deque[_Waiting] = deque()

    def share_of(self, principal: Principal) -> int:
        """As many bytes as may be held for their owner at once."""
        return self.most if principal.plan.unlimited else self._share

    async def take(self, principal: Principal, size: int) -> None:
        """Hold so many more for them; `give_back` as many. Raises NoRoom."""
        waiting = _Waiting(principal.owner, size, self.share_of(principal), asyncio.get_running_loop().create_future())
        if self._grants(waiting):
            return
        if self._may_wait(principal.owner):
            self._waiting.append(waiting)
            await self._wait(waiting)
        if not waiting.granted.done():
            log.info("bounds.refused", owner=principal.owner, bytes=size, held=self.held)
            raise NoRoom

    def give_back(self, owner: Owner, size: int) -> None:
        """Hold so many less for this owner."""
        self.held -= size
        self._of[owner] -= size
        if not self._of[owner]:
            del self._of[owner]
        # Not strictly in turn: who waits for much, or for others of the same owner, keeps nobody else waiting.
        if self._waiting:
            self._waiting = deque(waiting for waiting in self._waiting if not self._grants(waiting))

    def _may_wait(self, owner: Owner) -> bool:
        of_owner = sum(waiting.owner == owner for waiting in self._waiting)
        return len(self._waiting) < MAX_WAITING and of_owner < MAX_WAITING // OF_ONE_OWNER

    async def _wait(self, waiting: _Waiting) -> None:
        waited = False
        try:
            await asyncio.wait({waiting.granted}, timeout=PATIENCE_S)
            waited = True
        finally:
            if not waiting.granted.done():
                self._waiting.remove(waiting)
            elif not waited:  # granted to somebody who has left
                self.give_back(waiting.owner, waiting.size)

    def _grants(self, waiting: _Waiting) -> bool:
        of_owner = self._of.get(waiting.owner, 0)
        if self.held + waiting.size > self.most or of_owner + waiting.size > waiting.share:
            return False
        self.held += waiting.size
        self._of[waiting.owner] += waiting.size
        waiting.granted.set_result(None)
        return True


class Held:
    """What is held for one request; give back what is left of it."""

    def __init__(self, bound: Bound, principal: Principal) -> None:
        self._bound = bound
        self._principal = principal
        self._size = 0

    async def more(self, size: int) -> None:
        """So many bytes more, before they are there. Raises NoRoom. What is larger than all that may be held is held
        as if it were as large."""
        size = min(size, self._bound.share_of(self._principal) - self._size)
        if size > 0:
            await self._bound.take(self._principal, size)
            self._size += size

    def keep(self, size: int) -> None:
        """No more than so many are still needed."""
        if size < self._size:
            left, self._size = self._size - size, size
            self._bound.give_back(self._principal.owner, left)


class Bounds:
    """One process's."""

    def __init__(self, http: HttpSettings) -> None:
        self.bodies = Bound(http.max_bodies_bytes, largest=http.largest_body_bytes)
        self.answers = Bound(http.max_answers_bytes, largest=LARGEST_ANSWER)

"""Carries the views along the log from their checkpoint: one batch, to the log's end, or for as long as it leads."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from msgspec import Struct

from eventstore import codec
from eventstore.codec import Unreadable
from eventstore.log import Arrival, EventLog, LogIsAnother, LogUnavailable, Recorded, Replay, SessionRecorded
from projections.checkpoint import is_of
from projections.database import Database
from projections.generations import Generation
from projections.seldom import Seldom
from projections.views_errors import Superseded, ViewsUnavailable

log = structlog.stdlib.get_logger()

BATCH = 2_000
LINGER_S = 0.05
"""How long a batch that is not full waits for more: what a list is behind at most, while the database keeps up."""
LOOK_S = 0.25
"""How often it is looked whether we still lead, and whether there is an end that no arrival announces."""
AGAIN_S = 0.5
DATABASE_S = 1.0
"""How often it is looked whether the database is still the one that was written to, where nothing new comes."""
OneRead = TypeVar("OneRead")


class Progress(Struct, frozen=True, kw_only=True):
    """How far the projector is: `records` taken in since it began `seconds` ago, from `begun` on, at `position` now,
    of a log whose last sequence was `end`."""

    begun: int
    position: int
    end: int
    records: int
    seconds: float

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds > 0 else 0.0

    @property
    def share(self) -> float:
        """How much of the way is done, 0 to 1."""
        way = self.end - self.begun
        return min(1.0, (self.position - self.begun) / way) if way > 0 else 1.0


class _Batch(Struct):
    """What was read and is to be carried: all of the log up to `upto`, `arrivals` of its records."""

    upto: int
    arrivals: int
    records: list[Recorded]
    sessions: list[SessionRecorded]


class Projector:
    """One carrier. Several processes may run one; whoever `leading` names carries, and no other can do harm.

    With a `generation` it carries this one only (a rebuild beside the served one); else whichever is to be carried.
    Whatever fails, it begins again from what the database says. `close` last.
    """

    def __init__(
        self,
        event_log: EventLog,
        database: Database,
        *,
        generation: Generation | None = None,
        leading: Callable[[], bool] = lambda: True,
        on_progress: Callable[[Progress], None] | None = None,
        batch: int = BATCH,
    ) -> None:
        self._log = event_log
        self._database = database
        self._given = generation
        self._leading = leading
        self._on_progress = on_progress
        self._batch = batch
        self._generation: Generation | None = None
        self._replay: Replay | None = None
        self._reading: asyncio.Task[_Batch | None] | None = None
        self._served = False
        self._well = False
        self._seldom = Seldom()
        self._looked_at = 0.0
        self._begun = self._position = self._end = self._records = 0
        self._begun_at = 0.0

    @property
    def position(self) -> int:
        """The last sequence that it has taken in."""
        return self._position

    @property
    def well(self) -> bool:
        """Whether log and database did what was asked of them when last they were asked."""
        return self._well

    async def run_once(self) -> int:
        """One batch; how many of the log's records were in it (0: it is at the end, or does not lead).

        Raises LogUnavailable, ViewsUnavailable; LogIsAnother, Superseded where its generation was given."""
        return await self._batch_to(await self._log.last_sequence())

    async def run_to_end(self) -> int:
        """All that is in the log now; then this generation is served. How many records. Raises as `run_once`."""
        end = await self._log.last_sequence()
        total = 0
        while taken := await self._batch_to(end):
            total += taken
        return total

    async def run(self) -> None:
        """Carry what comes for as long as we lead, whatever log and database do meanwhile."""
        while self._leading():
            try:
                await self._step()
            except (ViewsUnavailable, LogUnavailable) as error:
                if self._seldom.due(str(error)):
                    log.warning("projector.not_yet", error=str(error))
                await asyncio.sleep(AGAIN_S)
        await self.close()

    async def close(self) -> None:
        """Carry no more; what is begun next begins from the checkpoint."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
            _ = reading.cancelled() or reading.exception()  # whatever it was: it is begun anew
        replay, self._replay = self._replay, None
        if replay is not None:
            await replay.close()

    async def _batch_to(self, end: int) -> int:
        while self._leading():
            if self._replay is not None and self._reached(self._replay) >= end and self._served:
                return 0
            if taken := await self._step():
                return taken
        return 0

    def _reached(self, replay: Replay) -> int:
        """All up to here was carried, or is not to come."""
        return self._position if self._reading else max(self._position, replay.position)

    async def _step(self) -> int:
        """One batch, if one comes before we have to look round; else, at the end, serve what is not served yet."""
        try:
            generation, replay = await self._begin()
            if not self._served and self._reached(replay) >= self._end:
                end = await self._log.last_sequence()
                further = await generation.serve(reached=self._reached(replay), end=end)
                self._served, self._end = further is None, further or self._end
                return 0
            wait_s = 0.0 if replay.position >= self._end and not self._served else LOOK_S
            batch = await (self._reading or self._read(replay, wait_s))
            self._reading = None
            if batch and self._leading():
                await self._carry(generation, replay, batch)
                return batch.arrivals
            if batch:
                await self.close()  # it was taken and will not be carried
            if time.monotonic() >= self._looked_at + DATABASE_S:
                await self._look(generation)
            return 0
        except BaseException as error:
            self._well = False
            await self.close()
            if not await self._recovered(error):
                raise
            return 0

    async def _look(self, generation: Generation) -> None:
        """Raises ViewsUnavailable, Superseded where the database is gone, spoilt, or not where we left it."""
        await self._database.look()
        reached = (await generation.checkpoint()).sequence
        if reached < self._position:
            raise Superseded(f"the views are at {reached}, not at {self._position}")
        self._looked_at = time.monotonic()

    async def _recovered(self, error: BaseException) -> bool:
        """What a new beginning cures: the log is another one; the generation is gone, or is not where we left it."""
        generation, self._generation = self._generation, None
        match error:
            case LogIsAnother():
                if generation is not None:
                    await generation.void()
                return self._given is None
            case Superseded():
                log.info("projector.superseded", reason=str(error))
                return self._given is None
            case _:
                return False

    async def _begin(self) -> tuple[Generation, Replay]:
        """Where the database says that we are; the same again until something fails."""
        if self._generation is not None and self._replay is not None:
            return self._generation, self._replay
        generation = self._generation = self._given or await Generation.current(self._database)
        await self._database.look()
        self._looked_at = time.monotonic()
        checkpoint = await generation.checkpoint()
        self._end = await self._log.last_sequence()
        if not await is_of(self._log, checkpoint, end=self._end):
            raise LogIsAnother("the log does not hold what the views were made of")
        self._served = await generation.is_served()
        self._begun = self._position = checkpoint.sequence
        self._begun_at, self._records = time.monotonic(), 0
        self._replay = await self._log.replay(after=checkpoint.sequence)
        self._well = True
        log.info("projector.begins", generation=generation.number, checkpoint=checkpoint.sequence, end=self._end)
        return generation, self._replay

    async def _read(self, replay: Replay, within_s: float) -> _Batch | None:
        arrivals = await replay.take(self._batch, within_s=within_s, linger_s=LINGER_S)
        if not arrivals:
            return None
        records = [one for arrival in arrivals if (one := _read(arrival, "tasks.", codec.recorded))]
        sessions = [one for arrival in arrivals if (one := _read(arrival, "sessions.", codec.session_recorded))]
        return _Batch(arrivals[-1].sequence, len(arrivals), records, sessions)

    async def _carry(self, generation: Generation, replay: Replay, batch: _Batch) -> None:
        """Write it; while the database does, the next one is read."""
        self._reading = asyncio.create_task(self._read(replay, LOOK_S))
        reached = await generation.apply(batch.records, sessions=batch.sessions, after=self._position, upto=batch.upto)
        self._position = batch.upto
        self._records += batch.arrivals
        if self._on_progress is not None:
            self._end = max(self._end, batch.upto + replay.lag)
            seconds = time.monotonic() - self._begun_at
            self._on_progress(
                Progress(begun=self._begun, position=batch.upto, end=self._end, records=self._records, seconds=seconds)
            )
        if reached > batch.upto:
            await self.close()  # another projector is ahead: go on from where it is


def _read(arrival: Arrival, begins: str, read: Callable[[Arrival], OneRead]) -> OneRead | None:
    """What it says, if it is of this kind."""
    if not arrival.subject.startswith(begins):
        return None
    try:
        return read(arrival)
    except Unreadable as error:
        log.error("projector.unreadable", sequence=arrival.sequence, error=str(error))
        return None

"""Which records of the log somebody asks for: by owner, task, agent and type."""

from collections import OrderedDict

import msgspec
from msgspec import Struct

from eventstore.codec import Unreadable
from eventstore.events import Owner, TaskId
from eventstore.log import Arrival, EventLog, subjects_about, task_of_subject
from projections.cloudevents import type_of
from projections.lines import whose

MAX_KNOWN = 10_000
BORN = "task.created"


class Wanted(Struct, frozen=True, kw_only=True):
    """What is asked for; whatever names nothing asks for all. A record must be of each kind that is named."""

    owners: frozenset[Owner] = frozenset()
    tasks: frozenset[TaskId] = frozenset()
    agents: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()

    @property
    def subjects(self) -> tuple[str, ...]:
        """What the server can tell apart for us."""
        return subjects_about(self.owners, self.tasks)

    @property
    def everything(self) -> bool:
        """Whether nothing is named."""
        return not (self.owners or self.tasks or self.agents or self.types)


class _Born(Struct):
    agent: str = ""


class _First(Struct):
    fact: _Born


_first = msgspec.json.Decoder(_First)


class Agents:
    """Which agent a task is for. The tasks that were asked about last are remembered."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self._known: OrderedDict[str, str] = OrderedDict()

    async def of(self, arrival: Arrival) -> str | None:
        """The agent of a record's task; None: it is no task's. Raises LogUnavailable."""
        if (agent := self._known.get(arrival.subject)) is not None:
            self._known.move_to_end(arrival.subject)
            return agent
        task = task_of_subject(arrival.subject)
        if task is None:
            return None
        if type_of(arrival) == BORN:
            born = arrival.stored
        else:
            # What began it lies before where this reader began.
            try:
                first = await self._log.read(*task, limit=1)
            except Unreadable:
                return None
            if not first:
                return None
            born = first[0].stored
        try:
            agent = _first.decode(born).fact.agent
        except (msgspec.DecodeError, RecursionError):
            return None
        self._known[arrival.subject] = agent
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return agent


async def is_wanted(arrival: Arrival, wanted: Wanted, agents: Agents) -> bool:
    """Whether it is asked for; the owner too is looked at here, whatever the server was told. Raises LogUnavailable."""
    owned = whose(arrival.subject)
    if wanted.owners and (owned is None or owned[0] not in wanted.owners):
        return False
    if wanted.tasks and (owned is None or owned[1] not in wanted.tasks):
        return False
    if wanted.types and type_of(arrival) not in wanted.types:
        return False
    return not wanted.agents or await agents.of(arrival) in wanted.agents

"""Which tasks a list shows: filter, order, cursor and the queries that stay fast anywhere in a million tasks."""

import base64
import binascii
from datetime import datetime

from msgspec import Struct
from sqlalchemy import ColumnElement, Select, Table, func, or_, select, union_all

from eventstore.events import Owner
from projections.schema import indexed, micros, searched, session_key
from projections.task import Status
from projections.views_errors import BadCursor

MAX_SEARCHED = 20_000
"""Tasks that one page of a search looks through; the next page goes on behind them."""


class Filter(Struct, frozen=True, kw_only=True):
    """Which tasks: those to which all that is given applies. `q` is found in the title or the input (`title_only`: in
    the title), whatever its case. Both times are exclusive; statuses None are all of them. `started`: whether a worker
    has ever taken it; `above`: its first fact has a higher sequence."""

    statuses: frozenset[Status] | None = None
    started: bool | None = None
    agent: str | None = None
    session_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None
    title_only: bool = False
    above: int = 0


EVERYTHING = Filter()


class Between(Struct, frozen=True):
    """Places in the list: above `low` (exclusive), below `high` (exclusive)."""

    low: int = 0
    high: int = 2**63 - 1


def cursor_of(created: int) -> str:
    """The cursor of what comes after this place in the list."""
    return base64.urlsafe_b64encode(b"t" + created.to_bytes(8, "big")).decode()


def place_of(cursor: str) -> int:
    """The place that a cursor names. Raises BadCursor."""
    try:
        words = base64.urlsafe_b64decode(cursor.encode("ascii"))
    except (binascii.Error, ValueError):
        words = b""
    place = int.from_bytes(words[1:], "big")
    if len(words) != 9 or not 0 < place < 2**63 or cursor_of(place) != cursor:
        raise BadCursor("this is no cursor that a page of tasks gave")
    return place


def living(table: Table, between: Between, limit: int) -> Select[int, bytes]:
    """Places and bodies of the tasks, of any owner, that have not ended, oldest first."""
    c = table.c
    # As an index has it, so that both databases know it again.
    alive = select(c.created, c.body).where(c.ended_at.is_(None), c.created > between.low)
    return alive.order_by(c.created).limit(limit)


class Listing:
    """The queries for one owner's tasks that pass one filter. Every one of them is for this owner only."""

    def __init__(self, table: Table, owner: Owner, wanted: Filter, *, sqlite: bool) -> None:
        self._c = table.c
        self._owner = owner
        self._wanted = wanted
        self._sqlite = sqlite

    def first_since(self, time: datetime) -> Select[int]:
        """The first place whose tasks may have been created after this time."""
        c = self._c
        later = select(c.created).where(c.owner == self._owner, c.listed_at > micros(time))
        return later.order_by(c.listed_at, c.created).limit(1)

    def last_until(self, time: datetime, skew: int) -> Select[int]:
        """The last place whose tasks may have been created before this time, where no clock was late by more."""
        c = self._c
        earlier = select(c.created).where(c.owner == self._owner, c.listed_at < micros(time) + skew)
        return earlier.order_by(c.listed_at.desc(), c.created.desc()).limit(1)

    def horizon(self, between: Between) -> Select[int]:
        """The last place that a search from here looks at, where there are more beyond it."""
        places = self._places(between, MAX_SEARCHED + 1).subquery()
        return select(places.c.created).order_by(places.c.created.desc()).offset(MAX_SEARCHED - 1).limit(2)

    def page(self, between: Between, limit: int, offset: int = 0) -> Select[int, bytes]:
        """Places and bodies, newest first, without the first `offset`: those are walked by their index only."""
        c = self._c
        places = self._places(between, offset + limit, self._found()).subquery()
        wanted = select(places.c.created)
        if offset:
            wanted = wanted.order_by(places.c.created.desc()).offset(offset).limit(limit)
        listed = select(c.created, c.body).where(c.created.in_(wanted))
        return listed.order_by(c.created.desc()).limit(limit)

    def count(self, between: Between) -> Select[int]:
        """How many there are."""
        c = self._c
        conditions = [*self._conditions(between), *self._found()]
        if self._wanted.statuses is not None:
            conditions.append(c.status.in_(sorted(self._wanted.statuses)))
        if self._wanted.agent is not None:
            conditions.append(c.agent == indexed(self._wanted.agent))
        return select(func.count()).where(*conditions)

    def _places(self, between: Between, limit: int, found: list[ColumnElement[bool]] | None = None) -> Select[int]:
        """The newest places that pass; each arm of it walks one index backwards and stops early."""
        c = self._c
        arms = [
            select(c.created)
            .where(*self._conditions(between), *arm, *(found or []))
            .order_by(c.created.desc())
            .limit(limit)
            .subquery()
            for arm in self._arms()
        ]
        if len(arms) == 1:
            return select(arms[0].c.created)
        together = union_all(*(select(arm.c.created) for arm in arms)).subquery()
        return select(together.c.created).order_by(together.c.created.desc()).limit(limit)

    def _arms(self) -> list[list[ColumnElement[bool]]]:
        """What splits the list so that each part is one range of an index: the statuses. (A session is short.)"""
        c, wanted = self._c, self._wanted
        if wanted.session_id is not None:
            # As expressions, which no index has: SQLite would else as soon walk all of a status as the session.
            others = [] if wanted.agent is None else [c.agent.concat("") == indexed(wanted.agent)]
            if wanted.statuses is not None:
                others.append(c.status.concat("").in_(sorted(wanted.statuses)))
            return [others]
        agent = [] if wanted.agent is None else [c.agent == indexed(wanted.agent)]
        if wanted.statuses is None:
            return [agent]
        return [[*agent, c.status == status] for status in sorted(wanted.statuses)]

    def _conditions(self, between: Between) -> list[ColumnElement[bool]]:
        c, wanted = self._c, self._wanted
        conditions = [c.owner == self._owner, c.created > between.low, c.created < between.high]
        if wanted.session_id is not None:
            conditions.append(c.session_id == session_key(wanted.session_id))
        if wanted.started is not None:
            conditions.append(c.started == wanted.started)
        if wanted.created_after is not None:
            conditions.append(c.created_at > micros(wanted.created_after))
        if wanted.created_before is not None:
            conditions.append(c.created_at < micros(wanted.created_before))
        return conditions

    def _found(self) -> list[ColumnElement[bool]]:
        c, wanted = self._c, self._wanted
        if not wanted.q:
            return []
        # Not LIKE: nothing in what is looked for is a wildcard, and no pattern is too long.
        at = func.instr if self._sqlite else func.strpos
        text = searched(wanted.q)
        in_title = at(c.title, text) > 0
        return [in_title if wanted.title_only else or_(in_title, at(c.input_text, text) > 0)]

"""A generation's rows: the tasks of a batch folded, and written."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import CTE, JSON, Select, Table, Text, bindparam, cast, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore.events import Owner, TaskId
from eventstore.log import Recorded
from projections.schema import body_of, indexed, micros, searched, session_key, task_of, text_of
from projections.task import INITIAL, Task, evolve, follows

MAX_HELD = 8_192
MAX_HELD_BYTES = 4_096
"""Of the tasks last written so many, none larger than this, are kept: their next records are near."""

Key = tuple[Owner, TaskId]
Kept = tuple[int, Task, bool]
"""A row: its place, its task, whether it is whole."""
Values = dict[str, object]


class Control(Struct, frozen=True):
    """A generation's row of control: how far it is, and what its tasks' times are like (microseconds)."""

    checkpoint: int
    latest_at: int
    skew: int


class Folding(Struct):
    """A task while a batch is folded, and what it was before. `created` is its place in the lists, and its row's key;
    `bytes` its row's; `whole`: no record of it was left out."""

    created: int
    task: Task
    whole: bool
    before: Task
    new: bool = False
    begun_at: int = 0
    bytes: int = 0


class Rows:
    """The rows of one generation, for its carrier."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._held: dict[Key, Kept] = {}
        self._held_at = -1

    async def fold(
        self, connection: AsyncConnection, records: Sequence[Recorded], checkpoint: int
    ) -> dict[Key, Folding]:
        """The batch's tasks after it, in the order in which it first names them; the rows are at `checkpoint`."""
        if checkpoint != self._held_at:
            self._held.clear()  # another projector wrote in between
        keys = [(one.owner, one.task_id) for one in records]
        stored = await self._stored(connection, [key for key in dict.fromkeys(keys) if key not in self._held])
        folding: dict[Key, Folding] = {}
        for key, one in zip(keys, records, strict=True):
            now = folding.get(key)
            if now is None:
                kept = self._held.get(key) or stored.get(key) or (one.sequence, INITIAL, True)
                new = kept[1].version == 0
                now = folding[key] = Folding(*kept, kept[1], new=new, begun_at=micros(one.record.at))
            if one.sequence > now.task.sequence:
                now.whole = now.whole and follows(one, now.task)
                now.task = evolve(now.task, one)
        return folding

    async def _stored(self, connection: AsyncConnection, keys: list[Key]) -> dict[Key, Kept]:
        found: dict[Key, Kept] = {}
        if not keys:
            return found
        asked = rows_of(self._table, sqlite=connection.dialect.name == "sqlite")
        for owner, task_id, created, body, whole in await connection.execute(asked, keys_of(keys)):
            found[owner, task_id] = created, task_of(body), whole
        return found

    async def write(self, connection: AsyncConnection, folded: dict[Key, Folding], control: Control) -> Values:
        """What they are now, into the table; what of the generation's row of control changes."""
        latest_at, skew = control.latest_at, control.skew
        inserts: list[Values] = []
        updates: list[Values] = []
        for (owner, task_id), now in folded.items():
            body = body_of(now.task)
            now.bytes = len(body)
            if not now.new:
                updates.append({"row": now.created, **_changing(now, body)})
                continue
            latest_at = max(latest_at, now.begun_at)
            skew = max(skew, latest_at - now.begun_at)
            begun = {"created": now.created, "owner": owner, "task_id": task_id}
            times = {"created_at": now.begun_at, "listed_at": latest_at}
            inserts.append({**begun, **times, **_fixed(now.task), **_changing(now, body)})
        if inserts:
            await connection.execute(insert(self._table), inserts)
        if updates:
            c = self._table.c
            changed: Values = {name: bindparam(name, type_=c[name].type) for name in updates[0] if name != "row"}
            # Guarded although the row of control is locked: no row ever goes back.
            older = (c.created == bindparam("row")) & (c.sequence < bindparam("sequence"))
            await connection.execute(update(self._table).where(older).values(changed), updates)
        return {"latest_at": latest_at, "skew": skew}

    def hold(self, folded: dict[Key, Folding], upto: int) -> None:
        """Remember those whose next records are near: this was committed, and the rows are at `upto`."""
        for key, now in folded.items():
            self._held.pop(key, None)
            if not now.task.ended and now.bytes <= MAX_HELD_BYTES:
                self._held[key] = now.created, now.task, now.whole
        while len(self._held) > MAX_HELD:
            del self._held[next(iter(self._held))]
        self._held_at = upto


def rows_of(table: Table, *, sqlite: bool) -> Select[Owner, TaskId, int, bytes, bool]:
    """The rows of the tasks that are asked for."""
    c, these = table.c, asked_for(sqlite=sqlite)
    theirs = (c.owner == these.c.owner) & (c.task_id == these.c.name)
    return select(c.owner, c.task_id, c.created, c.body, c.whole).join_from(these, table, theirs)


def asked_for(*, sqlite: bool) -> CTE:
    """Owners and names of what is in the parameter `keys`, a JSON list of pairs: one statement, however many there are.
    To be joined: where (owner, name) is looked for in a list, SQLite reads the whole table."""
    keys = bindparam("keys", type_=Text)
    if sqlite:
        pair = func.json_each(keys).table_valued("value").c.value
        owner, name = func.json_extract(pair, "$[0]"), func.json_extract(pair, "$[1]")
    else:
        pair = func.json_array_elements(cast(keys, JSON)).column_valued("pair")
        owner, name = func.json_extract_path_text(pair, "0"), func.json_extract_path_text(pair, "1")
    return select(owner.label("owner"), name.label("name")).cte("these")


def keys_of(keys: Sequence[tuple[Owner, str]]) -> dict[str, str]:
    """The parameter of `asked_for`."""
    return {"keys": msgspec.json.encode(keys).decode()}


def _fixed(task: Task) -> Values:
    """What a task's first fact says, and none later."""
    return {
        "agent": indexed(task.agent),
        "session_id": None if task.session_id is None else session_key(task.session_id),
        "title": searched(task.title or ""),
        "input_text": searched(text_of(task.input)),
    }


def _changing(now: Folding, body: bytes) -> Values:
    task = now.task
    return {
        "status": task.status,
        "started": task.started_at is not None,
        "updated_at": 0 if task.updated_at is None else micros(task.updated_at),
        "ended_at": None if task.ended_at is None else micros(task.ended_at),
        "sequence": task.sequence,
        "version": task.version,
        "sha256": task.sha256,
        "whole": now.whole,
        "body": body,
    }

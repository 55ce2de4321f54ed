"""A generation's rows of sessions: those that a batch of the log has a word on, folded, and written."""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import Table, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore.events import Owner, UnknownFact
from eventstore.log import SessionRecorded
from projections.rows import Folding, Key, asked_for, keys_of
from projections.schema import owners_table, session_key, sessions_table
from projections.session import SessionView, gathered, told

SessionKey = tuple[Owner, str]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SessionView).decode


def view_of(body: bytes) -> SessionView:
    """The session of a row. Raises msgspec.ValidationError."""
    return _decode(body)


async def carry(
    connection: AsyncConnection,
    generation: int,
    tasks: Mapping[Key, Folding],
    records: Sequence[SessionRecorded],
    upto: int,
) -> None:
    """Take in what the batch, which ends at `upto`, says of sessions, and what became of their tasks in it."""
    grouped = [
        ((owner, session_key(now.task.session_id)), now)
        for (owner, _), now in tasks.items()
        if now.task.session_id is not None
    ]
    keys = dict.fromkeys([*((one.owner, one.word) for one in records), *(key for key, _ in grouped)])
    if not keys:
        return
    table = sessions_table(generation)
    stored = await _stored(connection, table, list(keys))
    views = {key: stored.get(key) or SessionView(owner=key[0], session_id=key[1]) for key in keys}
    # A task that begins before a deletion in the same batch is passed over then: it has no part in what is there now.
    for one in records:
        key = (one.owner, one.word)
        views[key] = told(_named(views[key], one), one)
    for key, now in grouped:
        views[key] = gathered(views[key], now.created, now.before, now.task)
    await _write(connection, table, views, set(stored), upto)
    more = Counter[Owner]()
    more.update(view.owner for view in views.values() if view.first)
    more.subtract(view.owner for view in stored.values() if view.first)
    await _count(connection, owners_table(generation), more)


def _named(view: SessionView, one: SessionRecorded) -> SessionView:
    """The first word on a session may be its own: it says what the subject may only have a digest of."""
    fact = one.record.fact
    if isinstance(fact, UnknownFact) or not fact.session_id or view.session_id != one.word:
        return view
    return msgspec.structs.replace(view, session_id=fact.session_id)


async def _stored(connection: AsyncConnection, table: Table, keys: list[SessionKey]) -> dict[SessionKey, SessionView]:
    c = table.c
    found: dict[SessionKey, SessionView] = {}
    these = asked_for(sqlite=connection.dialect.name == "sqlite")
    theirs = (c.owner == these.c.owner) & (c.word == these.c.name)
    rows = await connection.execute(select(c.owner, c.word, c.body).join_from(these, table, theirs), keys_of(keys))
    for owner, word, body in rows:
        found[owner, word] = view_of(body)
    return found


async def _count(connection: AsyncConnection, table: Table, more: Mapping[Owner, int]) -> None:
    c = table.c
    for owner, by in more.items():
        if not by:
            continue
        counted = await connection.execute(
            update(table).where(c.owner == owner).values(sessions=c.sessions + by).returning(c.sessions)
        )
        if counted.scalar_one_or_none() is None:
            await connection.execute(insert(table).values(owner=owner, sessions=by))


async def _write(
    connection: AsyncConnection,
    table: Table,
    views: Mapping[SessionKey, SessionView],
    there: set[SessionKey],
    upto: int,
) -> None:
    c = table.c
    rows = {
        key: {"created": view.first or None, "sequence": upto, "body": _encode(view)} for key, view in views.items()
    }
    if new := [{"owner": key[0], "word": key[1], **row} for key, row in rows.items() if key not in there]:
        await connection.execute(insert(table), new)
    if old := [{"whose": key[0], "which": key[1], **row} for key, row in rows.items() if key in there]:
        changed = {name: bindparam(name, type_=c[name].type) for name in ("created", "sequence", "body")}
        # Guarded although the row of control is locked: no row ever goes back.
        older = (c.owner == bindparam("whose")) & (c.word == bindparam("which")) & (c.sequence < bindparam("sequence"))
        await connection.execute(update(table).where(older).values(changed), old)

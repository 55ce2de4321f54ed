"""What may happen to a session: its commands, `decide` (pure), and the one door to its part of the log."""

import time
from datetime import UTC, datetime
from typing import assert_never

import structlog
import uuid_utils

from app.commands import Wish
from app.conversation import seen
from app.decide import Rejected
from app.executor import ROUNDS
from app.tasks import Cause, Tasks
from app.views import Lists
from eventstore.events import Owner, SessionDeleted, SessionFact, SessionRecord, SessionTitled
from eventstore.log import LogUnavailable, OutcomeUnknown, WrongExpectedSequence
from projections.session import INITIAL, Session, SessionView, evolve, follows

log = structlog.stdlib.get_logger()


class TitleSession(Wish, frozen=True, kw_only=True):
    """Call the session this."""

    title: str


class DeleteSession(Wish, frozen=True, kw_only=True):
    """Take the session out of its owner's lists, with all tasks so far."""


SessionCommand = TitleSession | DeleteSession


def decide(command: SessionCommand, session: Session, *, session_id: str, newest: int) -> SessionFact | Rejected | None:
    """One fact, None (the wish is already true), or Rejected.

    A session is there because a task names it: `newest` is the sequence at which the last one begins (0: there was
    none). A task that came after the deletion begins it anew, so nothing else need undo one.
    """
    if session.unknown is not None:
        return Rejected("written_by_newer_release", f"{session.unknown} is unknown to this release")
    if command.key is not None and command.key in session.keys:
        return None
    there = newest > session.deletion
    match command:
        case TitleSession(title=title):
            if not there:
                return Rejected("not_found", "there is no such session")
            return None if title == session.title else SessionTitled(title=title, session_id=session_id)
        case DeleteSession():
            if there:
                return SessionDeleted(session_id=session_id)
            return None if session.deletion else Rejected("not_found", "there is no such session")
        case _:
            assert_never(command)


class Sessions:
    """All sessions. Their tasks are counted by the views, and so are they; what is written rests on the log."""

    def __init__(self, tasks: Tasks, lists: Lists) -> None:
        self._tasks = tasks
        self._lists = lists

    async def execute(self, owner: Owner, session_id: str, command: SessionCommand, cause: Cause) -> Session | Rejected:
        """Decide, append; the session after it. Goes on if the caller goes away.

        Raises OutcomeUnknown, LogUnavailable, LogFull, ViewsUnavailable; BadSubject where there are tasks by an id that
        no session can have.
        """
        return await self._tasks.see_through(self._execute(owner, session_id, command, cause))

    async def _execute(
        self, owner: Owner, session_id: str, command: SessionCommand, cause: Cause
    ) -> Session | Rejected:
        for _ in range(ROUNDS):
            view = await seen(self._tasks, self._lists, owner, session_id)
            session = INITIAL if view is None else await self._now(view)
            newest = 0 if view is None else view.latest
            decision = decide(command, session, session_id=session_id, newest=newest)
            if decision is None or isinstance(decision, Rejected):
                return decision or session
            record = _record(decision, session, command, cause)
            since = time.monotonic()
            try:
                recorded = await self._tasks.log.append_session(owner, session_id, record, session.sequence)
            except WrongExpectedSequence as conflict:
                log.info("session.append_conflict", expected=conflict.expected, found=conflict.found)
                self._tasks.metrics.conflicts.inc()
                continue
            self._tasks.metrics.appended(recorded, time.monotonic() - since)
            return evolve(session, recorded)
        raise OutcomeUnknown(f"others were faster {ROUNDS} times")

    async def _now(self, view: SessionView) -> Session:
        """The session as the leader has it: the views may lack its last words, or one that they could not read."""
        session = view.session if view.whole else INITIAL
        for recorded in await self._tasks.log.read_session(view.owner, view.session_id, after=session.sequence):
            if not follows(recorded, session):
                raise LogUnavailable("the session's records do not follow on each other")
            session = evolve(session, recorded)
        return session


def _record(fact: SessionFact, session: Session, command: SessionCommand, cause: Cause) -> SessionRecord:
    now = datetime.now(UTC)
    return SessionRecord(
        version=session.version + 1,
        at=now if session.updated_at is None else max(now, session.updated_at),
        actor=cause.actor,
        causation_id=cause.causation_id,
        correlation_id=cause.correlation_id,
        previous=session.sha256,
        record_id=str(uuid_utils.uuid7()),
        traceparent=cause.traceparent,
        key=command.key,
        fact=fact,
    )

"""Shannon's sessions: wire structs, the rules of a title, and how a session and its turns read. Pure."""

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app.dialects.shannon import context_of, error_of, query_of, result_of, short_mode_of, word_of
from app.dialects.shannon_frames import Event
from app.dialects.shannon_submission import is_true
from app.problems import BadRequest
from eventstore.events import Json
from projections.session import NANOS, SessionView
from projections.session_views import ListedSession
from projections.task import Task, metadata_of

MAX_TITLE = 60


class NewTitle(Struct, kw_only=True):
    """What a session is to be called."""

    title: str | None = None


class Titled(Struct, kw_only=True):
    """What it is called now."""

    session_id: str
    title: str


class SessionBody(Struct, kw_only=True, omit_defaults=True):
    """One session."""

    session_id: str
    user_id: str
    context: dict[str, str] = {}
    title: str | None = None
    task_count: int
    tokens_used: int
    cost_usd: float
    created_at: datetime | None
    updated_at: datetime | None = None
    is_research_session: bool
    research_strategy: str = ""


class SessionItem(Struct, kw_only=True):
    """One session of a list."""

    session_id: str
    user_id: str
    context: dict[str, str]
    title: str | UnsetType = UNSET
    task_count: int
    tokens_used: int
    created_at: datetime | None
    updated_at: datetime | None
    last_activity_at: datetime | None
    is_active: bool = True
    successful_tasks: int
    failed_tasks: int
    success_rate: float
    total_cost_usd: float
    average_cost_per_task: float
    is_near_budget_limit: bool = False
    latest_task_query: str
    latest_task_status: str
    is_research_session: bool
    first_task_mode: str


class SessionList(Struct, kw_only=True):
    """A page of them; `total_count` counts all that there are."""

    sessions: list[SessionItem]
    total_count: int


class PastTask(Struct, kw_only=True, omit_defaults=True):
    """One task of a session's history."""

    task_id: str
    workflow_id: str
    query: str
    status: str
    mode: str = ""
    result: str = ""
    error_message: str = ""
    total_tokens: int
    total_cost_usd: float
    duration_ms: int | None = None
    agents_used: int
    tools_invoked: int
    started_at: datetime | None
    completed_at: datetime | None = None


class TurnEvent(Struct, kw_only=True, omit_defaults=True):
    """One event of a turn; its payload, where it was asked for, is JSON in a string."""

    workflow_id: str
    type: str
    agent_id: str
    message: str
    timestamp: datetime
    seq: int
    stream_id: str
    payload: str = ""


class TurnMetadata(Struct, kw_only=True, omit_defaults=True):
    """What a turn took."""

    tokens_used: int
    execution_time_ms: int
    agents_involved: list[str]
    attachments: Json = None


class Turn(Struct, kw_only=True):
    """One task of a session, with what happened in it. `turn` counts from 1, whatever the page."""

    turn: int
    task_id: str
    user_query: str
    final_output: str
    timestamp: datetime | None
    events: list[TurnEvent]
    metadata: TurnMetadata


class Turns(Struct, kw_only=True):
    """Some of a session's turns, oldest first; `count` counts all that there are."""

    session_id: str
    count: int
    turns: list[Turn]


def title_of(said: str | None) -> str:
    """A title as it is kept. Raises BadRequest."""
    kept = "".join(letter for letter in said or "" if unicodedata.category(letter) != "Cc").strip()
    if not kept:
        raise BadRequest("Title cannot be empty")
    if len(kept) > MAX_TITLE:
        raise BadRequest(f"Title must be {MAX_TITLE} characters or less")
    return kept


def render_session(view: SessionView, first: Task) -> bytes:
    """One session."""
    strategy = _strategy(first)
    return msgspec.json.encode(
        SessionBody(
            session_id=view.session_id,
            user_id=view.owner,
            context=_context(view.session_id),
            title=view.session.title,
            task_count=view.tally.tasks,
            tokens_used=_tokens(view),
            cost_usd=view.tally.cost_nanos / NANOS,
            created_at=first.created_at,
            updated_at=_updated_at(view),
            is_research_session=strategy is not None,
            research_strategy=strategy or "",
        )
    )


def item_of(listed: ListedSession) -> SessionItem:
    """One session as a list has it; a large query is not in it."""
    view, tally = listed.view, listed.view.tally
    cost = tally.cost_nanos / NANOS
    return SessionItem(
        session_id=view.session_id,
        user_id=view.owner,
        context=_context(view.session_id),
        title=view.session.title or UNSET,
        task_count=tally.tasks,
        tokens_used=_tokens(view),
        created_at=listed.first.created_at,
        updated_at=_updated_at(view),
        last_activity_at=view.active_at,
        successful_tasks=tally.completed,
        failed_tasks=tally.failed,
        success_rate=tally.completed / tally.tasks,
        total_cost_usd=cost,
        average_cost_per_task=cost / tally.tasks,
        latest_task_query=query_of(listed.latest, {}),
        latest_task_status=word_of(listed.latest),
        is_research_session=any(_strategy(task) is not None for task in (listed.first, listed.latest)),
        first_task_mode=short_mode_of(listed.first),
    )


def past_task(task: Task, large: Mapping[str, object]) -> PastTask:
    """One task of a history."""
    usage = task.usage
    return PastTask(
        task_id=task.task_id,
        workflow_id=task.task_id,
        query=query_of(task, large),
        status=word_of(task),
        mode=short_mode_of(task),
        result=result_of(task, large),
        error_message=error_of(task),
        total_tokens=_tokens_of(task),
        total_cost_usd=usage.cost if usage else 0.0,
        duration_ms=_ms(task) if task.ended else None,
        agents_used=int(task.run > 0),
        tools_invoked=len(task.tools_used),
        started_at=task.created_at,
        completed_at=task.ended_at,
    )


def turn_of(number: int, task: Task, large: Mapping[str, object], events: list[TurnEvent]) -> Turn:
    """One turn of a session."""
    metadata = TurnMetadata(
        tokens_used=_tokens_of(task),
        execution_time_ms=_ms(task),
        agents_involved=[task.agent],
        attachments=context_of(task, large).get("attachments"),
    )
    return Turn(
        turn=number,
        task_id=task.task_id,
        user_query=query_of(task, large),
        final_output=result_of(task, large),
        timestamp=task.created_at,
        events=events,
        metadata=metadata,
    )


def turn_event(event: Event, *, payload: bool) -> TurnEvent:
    """One event of a turn."""
    return TurnEvent(
        workflow_id=event.workflow_id,
        type=event.type,
        agent_id=event.agent_id,
        message=event.message,
        timestamp=event.timestamp,
        seq=event.seq,
        stream_id=event.stream_id,
        payload=msgspec.json.encode(event.payload).decode() if payload and event.payload else "",
    )


def _context(session_id: str) -> dict[str, str]:
    """The vendor keeps what is no UUID beside one, and its clients look for it there first."""
    try:
        return {} if str(UUID(session_id)) == session_id.lower() else {"external_id": session_id}
    except ValueError:
        return {"external_id": session_id}


def _strategy(task: Task) -> str | None:
    """How its research is to be done; empty: it is research all the same; None: it is none."""
    metadata = metadata_of(task, {})
    context, options = (_object(metadata.get(name)) for name in ("context", "options"))
    said = options.get("research_strategy") or context.get("research_strategy")
    if isinstance(said, str) and said:
        return said
    return "" if is_true(context.get("force_research")) else None


def _object(value: Json) -> dict[str, Json]:
    return msgspec.convert(value, dict[str, Json]) if isinstance(value, dict) else {}


def _updated_at(view: SessionView) -> datetime | None:
    """The time of its last title, or of the last word on a task of its."""
    if view.session.title is None or view.session.updated_at is None or view.active_at is None:
        return view.active_at
    return max(view.active_at, view.session.updated_at)


def _tokens(view: SessionView) -> int:
    return view.tally.input_tokens + view.tally.output_tokens


def _tokens_of(task: Task) -> int:
    return 0 if task.usage is None else task.usage.input_tokens + task.usage.output_tokens


def _ms(task: Task) -> int:
    """From its beginning to its end, or to the last word on it: nothing here depends on the clock."""
    until = task.ended_at or task.updated_at
    if task.created_at is None or until is None:
        return 0
    return round((until - task.created_at).total_seconds() * 1000)

"""Shannon's `unified_response`: how an ended task went, in one object, as far as facts tell it."""

from datetime import datetime

from msgspec import UNSET, Struct, UnsetType

from projections.task import Task


class About(Struct, kw_only=True):
    """By whom it was done."""

    execution_mode: str
    agents_used: list[str]
    model: str | UnsetType = UNSET


class Used(Struct, kw_only=True):
    """What it used, in all."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: float


class Performance(Struct, kw_only=True):
    """How long it took, from its first run to its end; null where it never ran."""

    execution_time_ms: int | None


class Unified(Struct, kw_only=True):
    """What the vendor has besides (complexity, service tier, cache, tool errors), no fact of ours says."""

    task_id: str
    session_id: str
    status: str
    result: str
    metadata: About
    usage: Used
    performance: Performance
    error: str | None
    timestamp: datetime | None


def unified(task: Task, *, word: str, mode: str, result: str, error: str) -> Unified | UnsetType:
    """Not before the end."""
    if not task.ended:
        return UNSET
    usage = task.usage
    read, written, cost = (usage.input_tokens, usage.output_tokens, usage.cost) if usage else (0, 0, 0.0)
    took = None if task.started_at is None or task.ended_at is None else task.ended_at - task.started_at
    return Unified(
        task_id=task.task_id,
        session_id=task.session_id or "",
        status=word.lower(),
        result=result,
        metadata=About(execution_mode=mode, agents_used=[task.agent], model=(usage and usage.model) or UNSET),
        usage=Used(input_tokens=read, output_tokens=written, total_tokens=read + written, cost_usd=cost),
        performance=Performance(execution_time_ms=None if took is None else round(took.total_seconds() * 1000)),
        error=error or None,
        timestamp=task.ended_at,
    )

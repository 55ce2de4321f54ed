"""Shannon's list of tasks, under `/shannon`, read from the views."""

from datetime import datetime

from litestar import Response, get
from litestar.di import NamedDependency
from msgspec import UNSET, Struct, UnsetType

from app.bounding import held_by
from app.conversation import catch_up
from app.dialects.asked import Asked
from app.dialects.shannon import Word, mode_of, query_of, status_of
from app.dialects.shannon_asked import LIMITED, answer, checked_id, number_of
from app.problems import BadRequest
from app.tasks import Tasks
from app.views import Lists
from eventstore.codec import MAX_INLINE
from projections.listing import Filter
from projections.task import Status, Task

MAX_LIMIT = 100
UNDER_WAY: frozenset[Status] = frozenset({"pending", "queued", "running", "waiting_for_input", "awaiting_review"})
LISTED: dict[Word, tuple[frozenset[Status], bool | None]] = {
    "QUEUED": (UNDER_WAY, False),
    "RUNNING": (UNDER_WAY, True),
    "COMPLETED": (frozenset({"completed"}), None),
    "FAILED": (frozenset({"failed"}), None),
    "CANCELLED": (frozenset({"cancelled"}), None),
    "TIMEOUT": (frozenset({"timed_out"}), None),
}
"""What may be asked for: statuses, and whether they have started. PAUSED is not among them, as in the vendor's."""


class TotalUsage(Struct, kw_only=True):
    """What a task used so far."""

    total_tokens: int
    cost_usd: float
    prompt_tokens: int
    completion_tokens: int


class Item(Struct, kw_only=True):
    """One task of a list."""

    task_id: str
    query: str
    status: str
    mode: str
    created_at: datetime | None
    completed_at: datetime | UnsetType | None = UNSET
    total_token_usage: TotalUsage


class Page(Struct, kw_only=True):
    """A page of them; `total_count` counts all that there are."""

    tasks: list[Item]
    total_count: int


@get("/api/v1/tasks", opt=LIMITED | {"tells": Page})
async def list_tasks(request: Asked, tasks: NamedDependency[Tasks], lists: NamedDependency[Lists]) -> Response[bytes]:
    """The owner's tasks, newest first: what its caller was told of is in it."""
    request.user.need("tasks:read")
    limit = number_of(request, "limit", 20, low=1, high=MAX_LIMIT)
    offset = number_of(request, "offset", 0, low=0)
    wanted = wanted_of(request)
    await held_by(request.scope).more(limit * MAX_INLINE)
    await catch_up(tasks, lists)
    owner = request.user.owner
    total = (await lists.count(owner, wanted)).tasks
    # Behind the end nothing needs to be walked, however far.
    found = (await lists.page(owner, wanted, offset=offset, limit=limit)).tasks if offset < total else []
    return answer(Page(tasks=[item_of(task) for task in found], total_count=total))


def wanted_of(request: Asked) -> Filter:
    """Raises BadRequest."""
    session_id = request.query_params.get("session_id") or None
    if session_id is not None:
        checked_id(session_id, "session_id")
    said = request.query_params.get("status") or None
    if said is None:
        return Filter(session_id=session_id)
    word = said.upper().replace("CANCELED", "CANCELLED")
    for known, (statuses, started) in LISTED.items():
        if known == word:
            return Filter(session_id=session_id, statuses=statuses, started=started)
    raise BadRequest("Invalid status value")


def item_of(task: Task) -> Item:
    """A large query is not in a list."""
    usage = task.usage
    read, written = (0, 0) if usage is None else (usage.input_tokens, usage.output_tokens)
    return Item(
        task_id=task.task_id,
        query=query_of(task, {}),
        status=status_of(task),
        mode=mode_of(task),
        created_at=task.created_at,
        completed_at=task.ended_at or UNSET,
        total_token_usage=TotalUsage(
            total_tokens=read + written,
            cost_usd=0.0 if usage is None else usage.cost,
            prompt_tokens=read,
            completion_tokens=written,
        ),
    )

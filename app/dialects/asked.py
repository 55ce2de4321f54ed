"""What a request's headers ask for: who, under which name, which version is known, how long to wait."""

import re
from typing import TypeVar

import msgspec
import uuid_utils
from litestar import Request
from litestar.datastructures import State

from app.auth import Principal
from app.commands import Command
from app.dialects.native import MAX_WAIT_S
from app.keys import hashed_key
from app.mistakes import decoded
from app.problems import BadRequest
from app.tasks import Cause
from projections.task import Task

Asked = Request[Principal, None, State]
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")
Said = TypeVar("Said", bound=msgspec.Struct)
Word = TypeVar("Word", bound=str)
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def cause_of(request: Asked) -> Cause:
    """Who asks, and by which request."""
    return caused(request.user, str(request.scope["state"]["request_id"]), request.headers.get("traceparent"))


def caused(principal: Principal, request_id: str, traceparent: str | None) -> Cause:
    """The same, of a request that came by another way."""
    return Cause(
        actor=principal.actor,
        causation_id=request_id,
        correlation_id=request_id,
        traceparent=traceparent if TRACEPARENT.fullmatch(traceparent or "") else None,
    )


def request_id_of(given: bytes) -> str:
    """The client's own name for its request, if it gave a usable one, else a new one. Logs and facts carry it."""
    return given.decode() if REQUEST_ID.fullmatch(given) else f"req_{uuid_utils.uuid7()}"


def idempotency_key(request: Asked) -> str | None:
    """The key, quoted or bare, 1 to 255 characters. Raises BadRequest."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    key = given[1:-1] if len(given) > 1 and given[0] == given[-1] == '"' else given
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise BadRequest("an Idempotency-Key has 1 to 255 printable ASCII characters")
    return key


def keyed(request: Asked, command: Command, *, wish: str = "") -> Command:
    """The command, which a repeat under the same Idempotency-Key does not carry out again; another `wish` is none.
    Raises BadRequest."""
    key = idempotency_key(request)
    if key is None:
        return command
    return msgspec.structs.replace(command, key=hashed_key(type(command).__name__, f"{key}\x00{wish}" if wish else key))


def wait_of(request: Asked) -> float | None:
    """Seconds of `Prefer: wait=N`, at most 60; None without it, or where `respond-async` wants no waiting."""
    prefer = ",".join(request.headers.getall("prefer", []))
    found = WAIT.search(prefer)
    if found is None or "respond-async" in prefer.lower():
        return None
    return min(float(found[1]), MAX_WAIT_S)


def known_versions(request: Asked, task: Task) -> set[int]:
    given = request.headers.get("if-none-match", "")
    if given.strip() == "*":
        return {task.version}
    return {int(version) for version in re.findall(r'"(\d{1,9})"', given)}


def every(request: Asked, name: str) -> str | None:
    """All that is given of a comma list in the query: who names it twice means both."""
    return ",".join(request.query_params.getall(name, [])) if name in request.query_params else None


def flag(name: str, text: str) -> bool:
    """True or false, in these words. Raises BadRequest."""
    return one_of(name, text, "true", "false") == "true"


def one_of(name: str, text: str, *words: str) -> str:
    """One of these. Raises BadRequest."""
    if text not in words:
        raise BadRequest(f"{name}: there is no {text[:60]!r}; there are: {', '.join(words)}")
    return text


def words_of(name: str, text: str, known: tuple[Word, ...]) -> list[Word]:
    """Those of these that a comma list names. Raises BadRequest."""
    named = set(text.split(","))
    if unknown := sorted(named - {*known}):
        raise BadRequest(f"{name}: there is no {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    return [word for word in known if word in named]


async def strictly(request: Asked, data: Said) -> Said:
    """What was said, if it was said so: the framework takes "60" for 60 and 1 for true. Raises BadRequest."""
    body = await request.body()
    for name, value in msgspec.json.decode(body, type=dict[str, object]).items():
        taken = msgspec.to_builtins(getattr(data, name))
        if taken != value or isinstance(taken, bool) != isinstance(value, bool):
            return decoded(body, type(data))
    return data

"""What the headers of Shannon's requests ask for: ids, traces, idempotency."""

import re
import secrets
from collections.abc import Iterable

from litestar.datastructures import MultiDict

from app.dialects.asked import Asked, idempotency_key
from app.dialects.shannon import ID
from app.dialects.shannon_submission import digest_of
from app.problems import BadRequest

TRACE = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")


def checked_id(text: str, what: str = "task ID") -> str:
    """The id, if it has the form of one. Raises BadRequest."""
    if not ID.fullmatch(text):
        raise BadRequest(f"Invalid {what} format")
    return text


def query_token(query: MultiDict[str]) -> str | None:
    """The token in the query, by either name: for streams only."""
    return query.get("api_key") or query.get("token")


def keyed(request: Asked, content: bytes) -> str | None:
    """What stands for this wish: the key and the body, since another body is another wish. Raises BadRequest."""
    key = idempotency_key(request) if request.headers.get("idempotency-key") else None
    return None if key is None else f"{key}\x00{digest_of(content)}"


def replayed(request: Asked, again: bool) -> dict[str, str]:
    """The headers of an answer that was given before."""
    if not again:
        return {}
    return {"X-Idempotency-Cached": "true", "X-Idempotency-Key": request.headers["idempotency-key"]}


def traced(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that name the request's trace, by whatever name it came with, and this answer's span."""
    given = dict(headers)
    parts = given.get(b"traceparent", b"").split(b"-")
    names = [parts[1] if len(parts) > 1 else b"", given.get(b"x-trace-id", b""), given.get(b"x-request-id", b"")]
    trace_id = next((name for name in names if TRACE.fullmatch(name)), secrets.token_hex(16).encode())
    return [(b"x-trace-id", trace_id), (b"x-span-id", secrets.token_hex(7).encode())]

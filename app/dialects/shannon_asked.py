"""What Shannon's requests have in common: ids, idempotency keys, what they cost."""

import re

import msgspec
from litestar import Response
from litestar.datastructures import MultiDict
from msgspec import Struct

from app.dialects.asked import Asked, idempotency_key
from app.dialects.shannon import ID
from app.dialects.shannon_submission import digest_of
from app.problems import BadRequest

DIGITS = re.compile(r"[0-9]{1,18}")
LIMITED: dict[str, object] = {"limit": "shannon"}
"""What a route says that costs its caller something."""


def checked_id(text: str, what: str = "task ID") -> str:
    """The id, if it has the form of one. Raises BadRequest."""
    if not ID.fullmatch(text):
        raise BadRequest(f"Invalid {what} format")
    return text


def query_token(query: MultiDict[str]) -> str | None:
    """The token in the query, by either name: for streams only."""
    return query.get("api_key") or query.get("token")


def number_of(request: Asked, name: str, default: int, *, low: int, high: int | None = None) -> int:
    """A number of the query, which is refused rather than corrected. Raises BadRequest."""
    said = request.query_params.get(name)
    if said is None or said == "":
        return default
    if not DIGITS.fullmatch(said) or int(said) < low or (high is not None and int(said) > high):
        raise BadRequest(f"Invalid {name} parameter")
    return int(said)


def answer(body: Struct, status_code: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """As JSON."""
    return Response(
        msgspec.json.encode(body), status_code=status_code, headers=headers or {}, media_type="application/json"
    )


def keyed(request: Asked, content: bytes) -> str | None:
    """What stands for this wish: the key and the body, since another body is another wish. Raises BadRequest."""
    key = idempotency_key(request) if request.headers.get("idempotency-key") else None
    return None if key is None else f"{key}\x00{digest_of(content)}"


def replayed(request: Asked, again: bool) -> dict[str, str]:
    """The headers of an answer that was given before."""
    if not again:
        return {}
    return {"X-Idempotency-Cached": "true", "X-Idempotency-Key": request.headers["idempotency-key"]}

"""What Shannon's requests have in common: ids, idempotency keys, what they cost."""

from app.dialects.asked import Asked, idempotency_key
from app.dialects.shannon import ID
from app.dialects.shannon_submission import digest_of
from app.problems import BadRequest

LIMITED = {"limit": "shannon"}
"""What a route says that costs its caller something."""


def checked_id(text: str, what: str = "task ID") -> str:
    """The id, if it has the form of one. Raises BadRequest."""
    if not ID.fullmatch(text):
        raise BadRequest(f"Invalid {what} format")
    return text


def keyed(request: Asked, content: bytes) -> str | None:
    """What stands for this wish: the key and the body, since another body is another wish. Raises BadRequest."""
    key = idempotency_key(request) if request.headers.get("idempotency-key") else None
    return None if key is None else f"{key}\x00{digest_of(content)}"


def replayed(request: Asked, again: bool) -> dict[str, str]:
    """The headers of an answer that was given before."""
    if not again:
        return {}
    return {"X-Idempotency-Cached": "true", "X-Idempotency-Key": request.headers["idempotency-key"]}

"""How each dialect tells its clients of their budgets: the headers, and Shannon's words for a budget that is spent."""

from collections.abc import Callable, Sequence
from math import ceil

import msgspec
from msgspec import Struct

from app.limits import RateLimited, Standing
from eventstore.tokens import Dialect

Headers = dict[str, str]
WINDOWS = {"shannon.minute": "minute", "shannon.hour": "hour", "shannon.day": "day"}
"""Shannon's words for its three."""


class ShannonRefusal(Struct, kw_only=True):
    """Its body of a 429."""

    error: str
    message: str
    window: str


def native_headers(standings: Sequence[Standing], _now: float) -> Headers:
    """As the IETF's draft has them (draft-ietf-httpapi-ratelimit-headers, 11)."""
    if not standings:
        return {}
    return {
        "RateLimit-Policy": ", ".join(f'"{one.name}";q={one.limit};w={one.per_s}' for one in standings),
        "RateLimit": ", ".join(f'"{one.name}";r={one.remaining};t={ceil(one.changes_in_s)}' for one in standings),
    }


def niyra_headers(standings: Sequence[Standing], now: float) -> Headers:
    """Reset is when more may be asked than now."""
    if not standings:
        return {}
    one = standings[0]
    return {
        "X-RateLimit-Limit": str(one.limit),
        "X-RateLimit-Remaining": str(one.remaining),
        "X-RateLimit-Reset": str(ceil(now + one.changes_in_s)),
    }


def shannon_headers(standings: Sequence[Standing], now: float) -> Headers:
    """Two of the three, and one Reset: of the one that is spent, else of the minute."""
    headers: Headers = {}
    for one in standings:
        if one.name in ("shannon.minute", "shannon.hour"):
            window = WINDOWS[one.name].capitalize()
            headers[f"X-RateLimit-Limit-{window}"] = str(one.limit)
            headers[f"X-RateLimit-Remaining-{window}"] = str(one.remaining)
    if standings:
        spent = [one for one in standings if not one.remaining]
        resets = max((one.changes_in_s for one in spent), default=standings[0].changes_in_s)
        headers["X-RateLimit-Reset"] = str(ceil(now + resets))
    return headers


def nanonets_headers(_standings: Sequence[Standing], _now: float) -> Headers:
    """It has none, but for Retry-After."""
    return {}


def shannon_refusal(error: RateLimited) -> bytes:
    """Its body of a 429."""
    window = WINDOWS.get(error.spent.name, "minute")
    message = f"Too many requests. {window} limit exceeded. Please retry after {error.retry_after_s} seconds."
    body = ShannonRefusal(error="Rate limit exceeded", message=message, window=window)
    return msgspec.json.encode(body) + b"\n"


HEADERS: dict[Dialect, Callable[[Sequence[Standing], float], Headers]] = {
    "native": native_headers,
    "niyra": niyra_headers,
    "shannon": shannon_headers,
    "nanonets": nanonets_headers,
}

"""Many clients of a peer, by `wrk`: each has one connection, and asks again as soon as it is answered."""

import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.bench.loads import loaded

MISSING = "wrk is not installed: apt-get install -y wrk"
CLIENTS = 64
SECONDS = 3
HEADER = "wrk.headers[{name}] = {value}\n"
COUNTED = """wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
local body, number = {body}, 0
function request()
  number = number + 1
  return wrk.format(nil, nil, nil, (body:gsub("@@", number)))
end
"""
"""What wrk runs to POST: `@@` in the body is a number that no other request has."""


class Asked(Struct):
    """Answers a second, and the milliseconds within which 99 of 100 came. `busy` is the part of a core that `wrk` took:
    near 1, it was `wrk` that could not go faster."""

    rate: float
    p99_ms: float
    busy: float


def can_ask() -> bool:
    """Whether `wrk` is here."""
    return shutil.which("wrk") is not None


def script(headers: Mapping[str, str], body: str | None) -> str:
    """For wrk, in Lua: a GET with these headers, or a POST of this body."""
    # A JSON string is a Lua string, but for what JSON may escape and nobody's headers and bodies have.
    lines = [HEADER.format(name=_quoted(name), value=_quoted(value)) for name, value in headers.items()]
    return "".join(lines) + ("" if body is None else COUNTED.format(body=_quoted(body)))


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


async def asked(url: str, headers: Mapping[str, str], directory: Path, body: str | None = None) -> Asked:
    """By all clients at once, for so long. An answer that is not 2xx is a failure."""
    path = directory / "wrk.lua"
    path.write_text(script(headers, body))
    before, since = _spent_s(), time.monotonic()
    load = await loaded(url, headers.get("Authorization", "none"), CLIENTS, SECONDS, path)
    return Asked(load.rate, load.p99_ms, (_spent_s() - before) / (time.monotonic() - since))


def _spent_s() -> float:
    """Of processor time, by children that have ended: nobody else's ends while `wrk` runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

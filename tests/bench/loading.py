"""Many HTTP clients at once, by `wrk`: each has one connection, and asks again as soon as it is answered."""

import asyncio
import re
import resource
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

INSTALL = "apt-get update && apt-get install -y wrk"
MISSING = f"wrk is not installed: {INSTALL}"
CLIENTS = 64
SECONDS = 3
IN_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
COUNTED = """
local body, number = {body}, 0
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request()
  number = number + 1
  return wrk.format(nil, nil, nil, (body:gsub("@@", number)))
end
"""
"""What wrk runs to POST: `@@` in the body is a number that no other request has."""


class Load(Struct):
    """What `wrk` says of its clients: answers a second, and the milliseconds within which 99 of 100 came. `busy` is the
    part of a core that it took itself: near 1, it was `wrk` that could not go faster."""

    rate: float
    p99_ms: float
    busy: float


def can_load() -> bool:
    """Whether `wrk` is here."""
    return shutil.which("wrk") is not None


def posting(body: str, script: Path) -> tuple[str, ...]:
    """Options of `load` that POST this body; the script is written there."""
    # A JSON string is a Lua string, but for what JSON may escape and nobody's body has.
    script.write_text(COUNTED.format(body=msgspec.json.encode(body).decode()))
    return ("-s", str(script))


async def load(url: str, headers: Mapping[str, str], *options: str, seconds: int = SECONDS) -> Load:
    """By so many clients, for so long. An answer that is not 2xx is a failure."""
    heads = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    before, since = _spent_s(), time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "10s", "--latency", *heads, *options, url),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    busy = (_spent_s() - before) / (time.monotonic() - since)
    return read(said.decode(), busy)


def read(text: str, busy: float) -> Load:
    """What `wrk` printed."""
    rate, slow = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", text)
    assert rate, text
    assert slow, text
    assert "Non-2xx" not in text, text
    return Load(float(rate[1]), float(slow[1]) * IN_MS[slow[2]], busy)


def _spent_s() -> float:
    """Of processor time, by children that have ended: nobody else's ends while `wrk` runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

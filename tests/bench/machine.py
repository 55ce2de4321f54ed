"""The machine that figures were taken on, named so that somebody else knows whether theirs is like it."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import Struct

from eventstore.server import find_binary

PACKAGES = ("nats-py", "uvicorn", "litestar", "uvloop", "httptools")
QUIET = 0.25
"""Of each core, at most so much is busy on a quiet machine."""


class Machine(Struct, frozen=True, kw_only=True):
    """What figures depend on. `load` is the load average of the minute before the run."""

    processor: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    versions: dict[str, str]
    load: float

    @property
    def title(self) -> str:
        """On one line."""
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.kernel}, Python {self.python}, "
            + ", ".join(f"{name} {number}" for name, number in self.versions.items())
        )

    @property
    def warning(self) -> str:
        """What there is to say where it was busy with something else; empty where it was not."""
        if self.load <= QUIET * self.cores:
            return ""
        return (
            f"This machine was not quiet: its load average was {self.load:.2f} on {self.cores} cores. "
            "Ratios suffer less from that than figures do; still, repeat it in quiet."
        )


def this_machine() -> Machine:
    """Asked now, before anything is measured."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={"nats-server": _nats_server()} | {name: _version(name) for name in PACKAGES},
        load=os.getloadavg()[0],
    )


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", described.read_text(), re.M) if described.exists() else None
    # An ARM machine's has no such line; macOS has no such file.
    return found[1].strip() if found else platform.processor() or platform.machine()


def _nats_server() -> str:
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True, timeout=5).stdout
    return said.strip().rpartition("v")[2]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"

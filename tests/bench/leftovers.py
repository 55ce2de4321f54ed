"""Processes that a bench leaves behind when it is broken off: found, and ended."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Have what outlives its parent become our child, so that it is found. Elsewhere than on Linux it is lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Ours that run now."""
    with subprocess.Popen(
        ["ps", "-ww", "-eo", "pid=,ppid=,stat="], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as asked:
        said, _ = asked.communicate()
        rows = [line.split() for line in said.splitlines()]
        return {
            int(pid)
            for pid, parent, state in rows
            if int(parent) == os.getpid() and int(pid) != asked.pid and not state.startswith("Z")
        }


def kill_all_but(kept: set[int]) -> None:
    """Kill our children but these, and theirs, which become ours; return once none runs."""
    while left := children() - kept:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


async def kill_in_loop(kept: set[int]) -> None:
    """The same, of what this loop has started too. It has to see their ends before it is closed: uvloop's would wait
    for ever for a pipe that somebody holds."""
    kill_all_but(kept)
    await asyncio.sleep(0.05)

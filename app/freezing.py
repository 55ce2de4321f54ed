"""What a process has after its start, out of the garbage collector's sight."""

import asyncio
import gc
from collections.abc import Coroutine
from typing import TypeVar

FREEZE_AFTER_S = 2.0
Answer = TypeVar("Answer")


def run_frozen(work: Coroutine[object, object, Answer]) -> Answer:
    """asyncio.run for what goes through a whole log: a quarter of its time would be the garbage collector's."""
    freeze()
    return asyncio.run(work)


def freeze_soon() -> None:
    """`freeze`, when a process of the service has what it has for its life."""
    asyncio.get_running_loop().call_later(FREEZE_AFTER_S, freeze)


def freeze() -> None:
    """Take what a process has now out of the garbage collector's sight: it stays, and to look at it again and again
    made the slowest polls five times slower."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)

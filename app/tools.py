"""Where tools act: coroutines in the loop, plain functions in threads; and what becomes of one whose task is over."""

import asyncio
import inspect
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor

from app.agents.agent import Act, CallTool
from app.answers import plain
from eventstore.events import Json, Owner
from eventstore.switches import Switches


class Tools:
    """One worker's. A step in hand is not interrupted when its task ends, but it holds the worker no longer: it ends
    by itself, and nobody hears its answer. `threads` bounds the plain functions that run at once. Which tools an owner
    has switched off, `switches` knows."""

    def __init__(self, threads: int, switches: Switches) -> None:
        self._switches = switches
        self._executor = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="tool")
        self._left: set[asyncio.Task[Json]] = set()

    async def call(self, step: CallTool, act: Act, over: Awaitable[None]) -> tuple[bool, Json]:
        """Whether it was answered before the task was `over`, and its answer. Raises what the tool raises."""
        acting = asyncio.ensure_future(self._act(step, act))
        waiting = asyncio.ensure_future(over)
        try:
            await asyncio.wait({acting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            acting.cancel()
            raise
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        if acting.done():
            return True, acting.result()
        self._left.add(acting)
        acting.add_done_callback(self._forget)
        return False, None

    async def disabled(self, owner: Owner, name: str) -> bool:
        """Whether this owner has switched the tool off. Raises LogUnavailable."""
        return await self._switches.disabled(owner, name)

    def close(self) -> None:
        """No more; threads that still act are not waited for."""
        for acting in self._left:
            acting.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _act(self, step: CallTool, act: Act) -> Json:
        if inspect.iscoroutinefunction(step.act):
            return plain(await step.act(act))
        output = await asyncio.get_running_loop().run_in_executor(self._executor, step.act, act)
        return plain(await output if inspect.isawaitable(output) else output)

    def _forget(self, acting: asyncio.Task[Json]) -> None:
        self._left.discard(acting)
        if not acting.cancelled():
            acting.exception()  # seen: the task is over, and its failure nobody's

"""A process of ours, brought back whenever it dies, and never left behind."""

import asyncio
import os
import secrets
import signal
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from eventstore.lock import dies_with

log = structlog.stdlib.get_logger()

FIRST_DELAY_S, LONGEST_DELAY_S, STEADY_AFTER_S = 0.05, 5.0, 10.0
COULD_NOT_TRY = 2
"""The exit code of a process that never got to work; it has said why."""
SUPERVISOR = "TASKTRAIL_SUPERVISOR"


class ChildGaveUp(Exception):
    """A child could not begin; the message is one line for people."""


class Child:
    """`python -m app <arguments>`; `environment` is all that it is told besides. Each life has a name of its own, which
    a worker takes for its id, and `on_death` is called with it.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        environment: dict[str, str],
        *,
        inherits: tuple[int, ...] = (),
        on_death: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._inherits = inherits
        self._on_death = on_death
        self._process: Process | None = None

    async def keep(self, ready: asyncio.Event) -> None:
        """Run it until cancelled, which does not end it: `stop` does. Raises ChildGaveUp, only before `ready`."""
        delay_s = FIRST_DELAY_S
        while True:
            life = f"{self.name}-{secrets.token_hex(6)}"
            since = time.monotonic()
            try:
                self._process = await self._begun(life)
            except OSError as error:
                log.error("child.did_not_start", child=self.name, reason=str(error), again_in_s=delay_s)
            else:
                log.info("child.started", child=self.name, pid=self._process.pid)
                code = await self._process.wait()
                if code == COULD_NOT_TRY and not ready.is_set():
                    raise ChildGaveUp(f"{self.name} could not begin; what it said stands above")
                log.warning("child.exited", child=self.name, pid=self._process.pid, code=code, again_in_s=delay_s)
                if self._on_death is not None:
                    await self._on_death(life)
            if time.monotonic() - since > STEADY_AFTER_S:
                delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Tell it to end, and kill it when it takes too long or there is a hurry. Call it when `keep` was cancelled."""
        if self._process is None or self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
            # One that is stopped would only hear it when it goes on.
            self._process.send_signal(signal.SIGCONT)
        ended = asyncio.create_task(self._process.wait())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            log.warning("child.killed", child=self.name, pid=self._process.pid)
            with suppress(ProcessLookupError):
                self._process.kill()
        await ended

    async def _begun(self, life: str) -> Process:
        environment = self._environment | {SUPERVISOR: str(os.getpid()), "TASKTRAIL_WORKER_ID": life}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # else an `app` package in the current directory would be taken for ours
            "-m",
            "app",
            *self._arguments,
            stdin=DEVNULL,
            stdout=sys.stderr.fileno(),
            env=environment,
            pass_fds=self._inherits,
            # Its own session: Ctrl-C in the terminal reaches us alone, and we decide who stops first.
            start_new_session=True,
            preexec_fn=dies_with(os.getpid()),
        )


def die_with_supervisor() -> None:
    """Have this process killed when the supervisor that started it is gone, where the system does not do it (Linux
    does): a worker that outlives it would go on working beside its successor."""
    parent = os.environ.get(SUPERVISOR)
    if parent is not None and sys.platform != "linux":
        threading.Thread(target=_outlive_no, args=(int(parent),), name="supervisor watch", daemon=True).start()


def _outlive_no(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)

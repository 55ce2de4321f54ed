"""Agents of the tests' own, and what they are told to do."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.agents.agent import (
    Act,
    Brief,
    Work,
    call_tool,
)
from app.commands import CreateTask
from eventstore.events import (
    ApprovalMode,
    Json,
)

STEPS: list[Json] = [{"tool": f"t{n}", "takes": 0.2} for n in range(5)]
"""Of the simulator: about a second."""


class Own:
    """An agent of the test's own."""

    description = "does what a test wants"

    def __init__(self, work: Callable[[Brief], Work], *, name: str = "own", limit: int = 32) -> None:
        self.name = name
        self.limit = limit
        self._work = work

    def run(self, brief: Brief) -> Work:
        return self._work(brief)


def acted(effects: Path) -> Counter[str]:
    """How often each step acted, counted outside the log."""
    return Counter(effects.read_text().split("\n")[:-1]) if effects.exists() else Counter()


def told(agent: str = "own", *, given: Json = None, mode: ApprovalMode = "auto", max_failures: int = 5) -> CreateTask:
    return CreateTask(agent=agent, fingerprint="f", input=given, approval_mode=mode, max_failures=max_failures)


def scenario(*steps: Json, mode: ApprovalMode = "auto", timeout_s: float | None = None) -> CreateTask:
    deadline = None if timeout_s is None else datetime.now(UTC) + timedelta(seconds=timeout_s)
    return CreateTask(
        agent="simulator", fingerprint="f", input={"steps": list(steps)}, approval_mode=mode, deadline=deadline
    )


class Gate:
    """A tool that says that it acts, and ends when it is let."""

    def __init__(self) -> None:
        self.acting = asyncio.Event()
        self.let = asyncio.Event()
        self.acted = 0

    async def act(self, _: Act) -> Json:
        self.acting.set()
        await self.let.wait()
        self.acted += 1
        return "acted"


def acts_twice(gate: Gate, acted: list[str]) -> Own:
    """Its first tool is the gate; its second tells that it was reached."""

    def work(_: Brief) -> Work:
        yield from call_tool("first", None, gate.act)
        yield from call_tool("second", None, lambda act: acted.append(act.idempotency_key))
        return "both"

    return Own(work)

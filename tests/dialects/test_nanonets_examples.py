"""The vendor's own polling loop, run as it stands but for address, key and task id: it meets every status."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

from msgspec import Struct

from app.dialects.nanonets import NanonetsStatus
from eventstore.connection import NatsAddress
from tests.api import running
from tests.dialects.lists import until_listed
from tests.dialects.nanonets import TASKS, Nanonets
from tests.dialects.niyra import scenario
from tests.worker.house import SOON_S, opened

EXAMPLE = Path(__file__).parent / "examples" / "nanonets" / "wait_for_task.py"
ADDRESS, TASK = "https://agents.nanonets.com", "f1c2a3b4-..."
TOLD = """
import requests, sys
got = requests.get
def get(url, **more):
    answer = got(url, **more)
    print(answer.json()["status"], file=sys.stderr, flush=True)
    return answer
requests.get = get
"""
"""What it is answered is told, so that a test sees what it met."""
LONG_S = 3_600


class Loop(Struct):
    """The loop at its work."""

    process: Process
    met: list[str]

    async def meets(self, status: str) -> None:
        """Return once it was answered this status."""
        assert self.process.stderr is not None
        async with asyncio.timeout(SOON_S):
            while status not in self.met:
                line = (await self.process.stderr.readline()).decode().strip()
                assert line, f"it ended, and met {self.met}"
                self.met.append(line)

    async def ends(self) -> str:
        """What it wrote, and the last line of its complaint."""
        out, err = await asyncio.wait_for(self.process.communicate(), SOON_S)
        lines = err.decode().splitlines()
        self.met += [line for line in lines if line in get_args(NanonetsStatus)]
        return out.decode() or "".join(line for line in lines[-1:] if line not in self.met)


@asynccontextmanager
async def waiting(nanonets: Nanonets, task_id: str) -> AsyncGenerator[Loop]:
    """The loop, begun for this task."""
    text = EXAMPLE.read_text()
    assert ADDRESS in text
    assert TASK in text
    text = TOLD + text.replace(ADDRESS, nanonets.api.url).replace(TASK, task_id)
    env = os.environ | {"NANONETS_API_KEY": nanonets.api.token}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", text, stdout=PIPE, stderr=PIPE, env=env)
    try:
        yield Loop(process, [])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_vendors_loop_meets_every_status(nats_address: NatsAddress, tmp_path: Path):
    views_url = f"sqlite:///{tmp_path / 'views.sqlite'}"
    async with opened(nats_address) as house, running(nats_address, views_url=views_url) as api:
        house.dispatch(limit=1, views_url=views_url)
        await until_listed(api, 0)
        nanonets = Nanonets(api)
        long = await nanonets.run({"sleep": LONG_S})
        sent = await nanonets.run({"review": "Send it?"}, {"complete": "Sent."})
        async with waiting(nanonets, long) as first, waiting(nanonets, sent) as second:
            # Nobody works yet, and one at a time may.
            await first.meets("pending")
            await second.meets("queued")
            house.work()
            await first.meets("running")
            await api.client.post(f"{TASKS}/{long}/cancel")
            await second.meets("awaiting_review")
            await api.client.post(f"/tasks/{sent}/review", json={"approved": True})
            assert await first.ends() == ""
            assert "'summary': 'Sent.'" in await second.ends()
        asked = await nanonets.run({"ask": "For whom?"})
        failed = await nanonets.run({"fail": {"code": "no_luck"}})
        late = {"agent": "simulator", "input": scenario({"sleep": LONG_S}), "timeout_s": 0.5}
        timed_out = (await api.client.post("/tasks", json=late)).json()["task_id"]
        async with (
            waiting(nanonets, asked) as third,
            waiting(nanonets, failed) as fourth,
            waiting(nanonets, timed_out) as fifth,
        ):
            assert "needs a reply" in await third.ends()
            assert [await fourth.ends(), await fifth.ends()] == ["", ""]
        assert (first.met[-1], fourth.met[-1], fifth.met[-1]) == ("stopped", "failed", "stopped")
        met = {status for loop in (first, second, third, fourth, fifth) for status in loop.met}
        assert met == set(get_args(NanonetsStatus))

"""The examples of Niyra's own pages, run as they stand but for address, key and task id."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.dialects.niyra import Niyra, scenario, speaking
from tests.dialects.programs import output_of, tool

EXAMPLES = Path(__file__).parent / "examples" / "niyra"
ADDRESS, KEY = "https://api.niyra.ai", "pat_…"


def example(name: str, niyra: Niyra) -> str:
    """Its text, with our address and key."""
    text = (EXAMPLES / name).read_text()
    assert ADDRESS in text
    return text.replace(ADDRESS, niyra.api.url).replace(KEY, niyra.api.token)


@pytest.mark.parametrize("window_s", [60.0, 0.2], ids=["in_the_window", "past_the_window"])
async def test_the_vendors_examples_run_as_they_stand(nats_address: NatsAddress, tmp_path: Path, window_s: float):
    async with speaking(nats_address, tmp_path, window_s=window_s) as niyra:
        in_the_window = window_s > 1
        await asyncio.gather(
            curl_executes(niyra, in_the_window), javascript_executes(niyra), python_waits(niyra), python_is_told(niyra)
        )


async def curl_executes(niyra: Niyra, in_the_window: bool) -> None:
    tool("curl")
    said = await output_of(tool("bash"), "-c", example("execute.sh", niyra))
    answer = msgspec.json.decode(said, type=dict[str, Json])
    assert answer["terminal"] is in_the_window
    assert (answer["result"] is not None) is in_the_window
    assert (await niyra.ended(str(answer["task_id"])))["status"] == "complete"


async def javascript_executes(niyra: Niyra) -> None:
    instruction = scenario({"sleep": 0.5}, {"complete": "Summarized."})
    call = f"niyraExecute({msgspec.json.encode(instruction).decode()}, '{niyra.api.token}').then(console.log)"
    assert await output_of(tool("node"), "-e", f"{example('execute.js', niyra)}\n{call}") == "Summarized.\n"


async def python_waits(niyra: Niyra) -> None:
    done = (await niyra.execute({"sleep": 0.5}, {"complete": "Summarized."})).json()["task_id"]
    call = f"print(wait_for_task({done!r}, {niyra.api.token!r}))"
    said = await output_of(sys.executable, "-c", f"{example('wait_for_task.py', niyra)}\n{call}")
    assert said == "Summarized.\n"


async def python_is_told(niyra: Niyra) -> None:
    failed = (await niyra.execute({"fail": {"code": "no_luck"}})).json()["task_id"]
    call = f"try: wait_for_task({failed!r}, {niyra.api.token!r})\nexcept RuntimeError as error: print(error)"
    said = await output_of(sys.executable, "-c", f"{example('wait_for_task.py', niyra)}\n{call}")
    assert said == "task failed: {'code': 'no_luck', 'message': 'the scenario says so'}\n"

"""Tools that an owner has switched off, from the command line to the vendor's 403."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from app.local import Local, write_local
from eventstore.connection import NatsAddress
from tests.dialects.niyra import ASK, EXECUTE, Niyra, scenario, speaking
from tests.walk.terminal import Said, environment, tasktrail
from tests.worker.house import SOON_S


@pytest.fixture
async def niyra(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Niyra]:
    write_local(tmp_path, Local(token="tt_dev", nats=nats_address))
    async with speaking(nats_address, tmp_path) as niyra:
        yield niyra


async def tools(directory: Path, *words: str) -> Said:
    return await tasktrail("tools", *words, env=environment(TASKTRAIL_DATA_DIR=str(directory)))


async def test_a_tool_that_is_off_is_refused_until_it_is_on_again(niyra: Niyra, tmp_path: Path):
    said = await tools(tmp_path, "disable", "gmail.send *", "--owner", "dev")
    assert said == Said(0, "gmail.send * is off for dev\n", "")
    answer = await until_refused(niyra, "gmail.send *")
    refusal = answer.json()
    assert refusal.keys() == {"error", "error_description", "task_id"}
    assert refusal["error_description"] == "the tool gmail.send * is switched off"
    poll = await niyra.poll(refusal["task_id"])
    assert (poll["status"], poll["tools_used"]) == ("failed", ["read"])
    assert poll["error"] == {"code": "tool_disabled", "message": "the tool gmail.send * is switched off"}

    question = {"question": scenario({"tool": "gmail.send *", "read_only": True})}
    asked = await niyra.api.client.post(ASK, json=question)
    assert (asked.status_code, asked.json()["error"]) == (403, "tool_disabled")
    other = await niyra.execute({"tool": "read"}, {"complete": "fine"})
    assert other.json()["result"] == "fine"
    async with niyra.bearer("pat_eve", "tasks:write", owner="eve") as eve:
        hers = await eve.post(EXECUTE, json={"instruction": scenario({"tool": "gmail.send *"}, {"complete": "hers"})})
    assert hers.json()["result"] == "hers"

    said = await tools(tmp_path, "enable", "gmail.send *", "--owner", "dev")
    assert said == Said(0, "gmail.send * is on for dev\n", "")
    async with asyncio.timeout(SOON_S):
        while (await niyra.execute({"tool": "gmail.send *"}, {"complete": "Sent."})).status_code == 403:
            pass


async def until_refused(niyra: Niyra, tool: str) -> httpx.Response:
    """The first answer that is a refusal: the worker hears of the switch within a second."""
    async with asyncio.timeout(SOON_S):
        while True:
            answer = await niyra.execute({"tool": "read"}, {"tool": tool}, {"complete": "Sent."})
            if answer.status_code == 403:
                return answer


async def test_what_is_off_is_listed_by_owner(nats_address: NatsAddress, tmp_path: Path):
    write_local(tmp_path, Local(token="tt_dev", nats=nats_address))
    wanted = (("b", "ann"), ("a", "ann"), ("a", "ann"), ("c", "Eve"))
    done = await asyncio.gather(*(tools(tmp_path, "disable", name, "--owner", owner) for name, owner in wanted))
    assert [one.code for one in done] == [0] * 4
    listed, as_json, said, nameless = await asyncio.gather(
        tools(tmp_path, "list", "--owner", "ann"),
        tools(tmp_path, "list", "--owner", "Eve", "--json"),
        tools(tmp_path, "enable", "never", "--owner", "ann"),
        tools(tmp_path, "disable", "", "--owner", "ann"),
    )
    assert [line.split()[0] for line in listed.out.splitlines()] == ["TOOL", "a", "b"]
    assert [json.loads(line)["tool"] for line in as_json.out.splitlines()] == ["c"]
    assert (said.code, said.out) == (1, "")
    assert "'never' is not off for ann" in said.err
    assert (nameless.code, nameless.out) == (2, "")
    assert "a tool's name has 1 to 512 bytes" in nameless.err

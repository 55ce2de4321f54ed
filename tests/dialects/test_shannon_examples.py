"""The examples of Shannon's own page, run as they stand but for address, key and task id. Those that go on from an
example before them, which has their imports or functions, are run after it."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest

from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.dialects.programs import PROJECT, missing, output_of, tool
from tests.dialects.shannon import Shannon, speaking

EXAMPLES = Path(__file__).parent / "examples" / "shannon"
ADDRESS, KEY, IDS = "http://localhost:8080", "sk_test_123456", ("task_abc123", "task_01HQZX3Y9K8M2P4N5S7T9W2V")


@pytest.fixture
async def shannon(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    async with speaking(nats_address, tmp_path) as shannon:
        yield shannon


async def done(shannon: Shannon, *steps: Json) -> str:
    """A task that has ended; `Paris.` is its result unless it is told otherwise."""
    task_id = await shannon.begun(*(steps or ({"complete": "Paris."},)), query="What is the capital of France?")
    await shannon.ended(task_id)
    return task_id


def example(name: str, shannon: Shannon, task_id: str = "") -> str:
    """Its text, with our address, our key and this task."""
    text = (EXAMPLES / name).read_text().replace(ADDRESS, shannon.address).replace(KEY, shannon.api.token)
    for other in IDS:
        text = text.replace(other, task_id)
    return text


async def python(text: str) -> str:
    return await output_of(sys.executable, "-c", text)


async def test_the_curl_and_the_bash_example_run_as_they_stand(shannon: Shannon, tmp_path: Path):
    for name in ("curl", "jq"):
        tool(name)
    task_id, failed = await done(shannon), await done(shannon, {"fail": {"message": "no luck"}})
    said = await output_of(tool("bash"), "-c", example("get_task.sh", shannon, task_id))
    assert msgspec.json.decode(said, type=dict[str, Json])["status"] == "TASK_STATUS_COMPLETED"
    script = tmp_path / "monitor.sh"
    script.write_text(example("monitor.sh", shannon))
    assert (await output_of(tool("bash"), str(script), task_id)).endswith("✓ Task completed!\n\nParis.\n")
    told = await output_of(tool("bash"), "-c", f"bash {script} {failed} || echo it is told by the status")
    assert "Error: no luck\nit is told by the status\n" in told


async def test_the_python_examples_run_as_they_stand(shannon: Shannon):
    task_id, failed = await done(shannon), await done(shannon, {"fail": {"message": "no luck"}})
    assert await asyncio.gather(
        python(example("get_task_status.py", shannon, task_id)),
        python(example("get_task_status.py", shannon, "task_unknown")),
        python(example("wait_for_completion.py", shannon, task_id)),
        python(example("wait_for_completion.py", shannon, failed)),
    ) == [
        "Status: TASK_STATUS_COMPLETED\nResult: Paris.\n",
        "",
        "Result: Paris.\n",
        "Error: Task failed: no luck\n",
    ]


async def test_the_use_cases_run_as_they_stand(shannon: Shannon):
    task_id, failed = await done(shannon), await done(shannon, {"fail": {"message": "no luck"}})
    several = example("check_multiple_tasks.py", shannon).replace("task_1", task_id).replace("task_2", failed)
    submitted, summary, statuses = await asyncio.gather(
        python(example("submit_and_wait.py", shannon)),
        python("import httpx\n" + example("task_summary.py", shannon, task_id)),
        python("import httpx\n" + several),
    )
    assert submitted.startswith("Task submitted: task_")
    assert submitted.endswith("Both agree, so this is short.\n")
    assert summary == "COMPLETED: What is the capital of France?...\n"
    assert statuses.splitlines() == [
        f"{task_id}: TASK_STATUS_COMPLETED",
        f"{failed}: TASK_STATUS_FAILED",
        *(f"task_{n}: ERROR: 'status'" for n in (3, 4, 5)),
    ]


async def test_the_best_practices_run_as_they_stand(shannon: Shannon):
    task_id = await done(shannon)
    before = (
        example("get_task_status.py", shannon, task_id) + f"task_id, api_key = {task_id!r}, {shannon.api.token!r}\n"
    )
    backoff = example("poll_with_backoff.py", shannon) + "print(poll_with_backoff(task_id, api_key)['result'])"
    cached = example("cached_status.py", shannon, task_id) + "print(status['result'])"
    told = example("extract_task_info.py", shannon) + "print(extract_task_info(task_id, api_key)['has_result'])"
    said = await asyncio.gather(
        *(python(before + then) for then in (example("handle_all_states.py", shannon), backoff, cached, told))
    )
    assert [one.splitlines()[-1] for one in said] == ["Result: Paris.", "Paris.", "Paris.", "True"]


async def test_the_javascript_examples_run_as_they_stand(shannon: Shannon):
    try:
        await output_of(tool("node"), "-e", "require('axios')")
    except AssertionError:
        missing(f"axios in {PROJECT.name}/node_modules")
    task_id, failed = await done(shannon), await done(shannon, {"fail": {"message": "no luck"}})
    waiting = "const axios = require('axios');\n"
    assert await asyncio.gather(
        output_of(tool("node"), "-e", example("get_task_status.js", shannon, task_id)),
        output_of(tool("node"), "-e", waiting + example("wait_for_completion.js", shannon, task_id)),
        output_of(
            tool("node"),
            "-e",
            f"{waiting}console.error = console.log;" + example("wait_for_completion.js", shannon, failed),
        ),
    ) == [
        "Status: TASK_STATUS_COMPLETED\nResult: Paris.\n",
        "Result: Paris.\n",
        "Error: Task failed: no luck\n",
    ]


async def test_the_go_example_runs_as_it_stands(shannon: Shannon, tmp_path: Path):
    go = tool("go")
    program = tmp_path / "wait_for_completion.go"
    program.write_text(example("wait_for_completion.go", shannon, await done(shannon)))
    assert await output_of(go, "run", str(program)) == "Result: map[result:Paris.]\n"

"""The streams of the client that Shannon publishes, unmodified, against our API: live, filtered, cut, asked again."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from shannon import AsyncShannonClient, EventType, ShannonClient
from shannon.errors import AuthenticationError, ConnectionError, PermissionDeniedError
from shannon.models import Event, TaskStatusEnum

from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.api import DEV
from tests.dialects.shannon import PREFIX, Shannon, speaking
from tests.walk.terminal import line_to
from tests.worker.house import SOON_S

WORK: list[Json] = [
    {"tool": "search", "input": {"q": "tides"}},
    {"say": "Two \u2028hits. "},
    {"complete": "Two\u0085 hits."},
]
ENDS = ["AGENT_COMPLETED", "WORKFLOW_COMPLETED", "done"]
STORY = [
    *("WORKFLOW_STARTED", "AGENT_STARTED", "TOOL_INVOKED", "TOOL_OBSERVATION", "thread.message.delta"),
    *("PROGRESS", "thread.message.completed", *ENDS),
]


@pytest.fixture
async def shannon(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    async with speaking(nats_address, tmp_path) as shannon:
        yield shannon


@pytest.fixture
async def sdk(shannon: Shannon) -> AsyncGenerator[AsyncShannonClient]:
    async with AsyncShannonClient(shannon.address, api_key=shannon.api.token) as sdk:
        yield sdk


def playing(*steps: Json) -> dict[str, Json]:
    return {"scenario": {"steps": list(steps)}}


async def all_of(stream: AsyncIterator[Event]) -> list[Event]:
    async with asyncio.timeout(SOON_S):
        return [event async for event in stream]


def types_of(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def told(events: list[Event]) -> list[tuple[str, str, int, str | None]]:
    """What was said, but for times: where an event has none the SDK says when it came."""
    return [(event.type, event.message, event.seq, event.stream_id) for event in events]


async def test_a_task_is_submitted_streamed_and_done(sdk: AsyncShannonClient):
    handle, _ = await sdk.submit_and_stream("Tides?", context=playing(*WORK))
    live: list[Event] = []
    async with asyncio.timeout(SOON_S):
        async for event in handle.stream():
            live.append(event)
            if event.type == "WORKFLOW_COMPLETED":
                assert (await sdk.get_status(handle.task_id)).status == TaskStatusEnum.COMPLETED
    assert types_of(live) == STORY
    assert live[2].payload == {"tool": "search", "params": {"q": "tides"}}
    assert (live[4].message, live[6].message, live[-1].message) == ("Two \u2028hits. ", "Two\u0085 hits.", "[DONE]")
    assert [event.seq for event in live[:-1]] == list(range(1, 10))
    assert told(await all_of(sdk.stream(handle.task_id))) == told(live)
    kept = await sdk.get_task_events(handle.task_id)
    assert [event.seq for event in kept] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert [event.timestamp for event in kept[:2]] == [event.timestamp for event in live[:2]]
    timeline = await sdk.get_task_timeline(handle.task_id)
    assert [event["type"] for event in timeline["events"]][::3] == ["WF_STARTED", "ACT_COMPLETED"]


async def test_a_finished_stream_is_done_wherever_it_is_asked_again(sdk: AsyncShannonClient):
    handle = await sdk.submit_task("x", context=playing(*WORK))
    story = await all_of(sdk.stream(handle.workflow_id))
    for n, event in enumerate(story, 1):
        rest = told(story[n:]) or told(story[-1:])
        assert told(await all_of(sdk.stream(handle.workflow_id, last_event_id=event.id))) == rest
    assert types_of(await all_of(sdk.stream(handle.workflow_id, last_event_id="999999"))) == ["done"]


async def test_filters_are_taken_by_the_sdks_own_names(sdk: AsyncShannonClient):
    handle = await sdk.submit_task("x", context=playing(*WORK))
    wanted: list[tuple[list[str | EventType], list[str]]] = [
        (
            [EventType.TOOL_INVOKED, EventType.THREAD_MESSAGE_COMPLETED],
            ["TOOL_INVOKED", "thread.message.completed", "done"],
        ),
        ([EventType.LLM_PARTIAL], ["thread.message.delta", "done"]),
        ([EventType.STREAM_END], ["done"]),
        ([EventType.WORKFLOW_PAUSED, "WORKFLOW_COMPLETED"], ["WORKFLOW_COMPLETED", "done"]),
    ]
    for types, names in wanted:
        assert types_of(await all_of(sdk.stream(handle.workflow_id, types=types))) == names


async def test_a_stream_that_is_cut_goes_on_by_itself_and_nothing_is_lost_or_said_twice(shannon: Shannon):
    steps: list[Json] = [{"say": "One. "}, {"ask": "Go on?"}, {"say": "Two. "}, {"complete": "x"}]
    task_id = await shannon.begun(*steps)
    async with line_to(shannon.api.url) as line:
        async with AsyncShannonClient(line.url + PREFIX, api_key=shannon.api.token) as sdk:
            seen: list[Event] = []
            async with asyncio.timeout(SOON_S):
                async for event in sdk.stream(task_id):
                    seen.append(event)
                    if event.type == "WAITING":  # it has all that there is, and is cut in the middle of the task
                        line.cut()
                        await shannon.api.client.post(f"/tasks/{task_id}/messages", json={"text": "yes"})
        assert line.connections == 2
    story = await all_of(AsyncShannonClient(shannon.address, api_key=shannon.api.token).stream(task_id))
    assert told(seen) == told(story)
    assert max(Counter(event.stream_id for event in seen).values()) == 1


async def test_a_stream_that_we_cut_goes_on_too(shannon: Shannon, sdk: AsyncShannonClient):
    task_id = await shannon.begun({"ask": "Go on?"}, {"complete": "x"})
    seen: list[Event] = []
    async with asyncio.timeout(SOON_S):
        async for event in sdk.stream(task_id):
            seen.append(event)
            if event.type == "WAITING":
                for reader in list(shannon.api.rooms.streams.readers):
                    reader.cut_off("slow")
                await shannon.api.client.post(f"/tasks/{task_id}/messages", json={"text": "yes"})
    assert told(seen) == told(await all_of(sdk.stream(task_id)))


async def test_an_approval_is_given_by_what_the_event_says(sdk: AsyncShannonClient):
    handle = await sdk.submit_task("x", context=playing({"review": "Send it?"}, {"complete": "sent"}))
    async with asyncio.timeout(SOON_S):
        async for event in sdk.stream(handle.workflow_id):
            if event.type == EventType.APPROVAL_REQUESTED:
                assert event.payload is not None
                assert await sdk.approve(event.payload["approval_id"], handle.workflow_id, approved=True)
    assert (await sdk.get_status(handle.task_id)).result == "sent"


async def test_a_websocket_tells_the_same_story_and_closes(sdk: AsyncShannonClient):
    handle = await sdk.submit_task("x", context=playing(*WORK))
    live = await all_of(sdk.stream_ws(handle.workflow_id))
    assert [event.seq for event in live] == list(range(1, 11))
    assert types_of(live)[-3:] == ["AGENT_COMPLETED", "WORKFLOW_COMPLETED", "STREAM_END"]
    story = await all_of(sdk.stream(handle.workflow_id))
    assert [event.stream_id for event in live] == [event.stream_id for event in story]
    rest = await all_of(sdk.stream_ws(handle.workflow_id, last_event_id=live[6].id, types=["WORKFLOW_COMPLETED"]))
    assert types_of(rest) == ["WORKFLOW_COMPLETED", "STREAM_END"]


async def test_the_sdk_is_given_the_bare_address_as_well(shannon: Shannon):
    async with AsyncShannonClient(shannon.api.url, api_key=shannon.api.token) as sdk:
        handle, url = await sdk.submit_and_stream("x", context=playing(*WORK))
        assert url == f"/api/v1/stream/sse?workflow_id={handle.task_id}"
        assert types_of(await all_of(handle.stream())) == STORY
        assert len(await all_of(sdk.stream_ws(handle.workflow_id))) == len(STORY)
        assert len(await sdk.get_task_events(handle.task_id)) == len(STORY) - 1


async def test_an_unknown_workflow_has_no_events(sdk: AsyncShannonClient):
    assert await all_of(sdk.stream("task_abc123")) == []


async def test_who_may_not_have_a_stream_is_told_so_by_a_poll_at_once_and_by_the_stream_after_its_retries(
    shannon: Shannon,
):
    """The SDK asks again whatever it is answered, but for 404 and 400, which it takes for the end of an empty story."""
    task_id = await shannon.begun(*WORK)
    await shannon.api.rooms.tokens.add("tt_writes", DEV, ("tasks:write",))
    for token, status, error in (
        ("tt_unknown", 401, AuthenticationError),
        ("tt_writes", 403, PermissionDeniedError),
    ):
        async with line_to(shannon.api.url) as line, AsyncShannonClient(line.url + PREFIX, api_key=token) as sdk:
            with pytest.raises(error):
                await sdk.get_status(task_id)
            with pytest.raises(ConnectionError, match=f"HTTP {status}"):
                await all_of(sdk.stream(task_id, reconnect=False))
            before = line.connections
            with pytest.raises(ConnectionError, match=f"HTTP {status}"):
                await all_of(sdk.stream(task_id, max_retries=1))
            assert line.connections - before == 2


async def test_the_blocking_client_streams_the_same(shannon: Shannon):
    def work() -> list[str]:
        try:
            with ShannonClient(shannon.address, bearer_token=shannon.api.token) as sdk:
                handle = sdk.submit_task("x", context=playing(*WORK))
                return [event.type for event in handle.stream()]
        finally:
            asyncio.get_event_loop().close()  # which the client leaves open

    assert await asyncio.to_thread(work) == STORY

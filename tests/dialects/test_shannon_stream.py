"""Shannon's stream over real HTTP: its frames, resuming, its end, whom it is refused, and every way to be cut off."""

import asyncio

import msgspec
import pytest

from app.commands import CancelTask, Command, RequestPause
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Owner, TaskId
from tests.api import DEV, Api, running
from tests.dialects.shannon import PREFIX
from tests.lifecycle.commands import complete, fail, finish_step, produce, request_review, start_run, start_step
from tests.log.logs import until
from tests.walk.lives import id_of
from tests.walk.wire import Wire, frames_in

STREAM = f"{PREFIX}/api/v1/stream/sse"
WORKED: list[Command] = [
    start_run(),
    start_step(),
    finish_step(kind="tool", name="search"),
    produce("a\u2028b", step=1),
]
DONE = b"event: done\ndata: [DONE]\n\n"


async def follow(
    api: Api, task_id: str, query: str = "", *, token: str | None = None, last: str = "", room_bytes: int = 0
) -> Wire:
    """A stream of this task, its head not read yet."""
    headers = {"X-API-Key": token or api.token} | ({"Last-Event-ID": last} if last else {})
    return await Wire.ask(api.url, f"{STREAM}?workflow_id={task_id}{query}", headers, room_bytes=room_bytes)


async def whole(wire: Wire) -> list[bytes]:
    """All frames up to the end that was said."""
    await wire.head()
    assert wire.status == 200
    text, ended = await wire.rest()
    await wire.close()
    assert ended
    return frames_in(text)


def name_of(frame: bytes) -> str:
    return frame.split(b"\n")[1].removeprefix(b"event: ").decode()


def said_in(frame: bytes) -> dict[str, object]:
    return msgspec.json.decode(frame.partition(b"\ndata: ")[2], type=dict[str, object])


async def test_a_stream_opens_with_a_comment_and_ends_with_done(api: Api):
    task_id = await api.begin(*WORKED, complete())
    wire = await (await follow(api, task_id)).head()
    assert wire.headers["content-type"].startswith("text/event-stream")
    assert (wire.headers["cache-control"], wire.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert wire.headers.keys() >= {"x-trace-id", "x-span-id"}
    text, ended = await wire.rest()
    await wire.close()
    assert ended
    assert text.startswith(b": connected to workflow %b\n\nretry: 1000\n\nid: " % task_id.encode())
    assert text.endswith(DONE)
    names = ["WORKFLOW_STARTED", "AGENT_STARTED", "TOOL_INVOKED", "TOOL_OBSERVATION", "thread.message.delta"]
    ends = ["thread.message.completed", "AGENT_COMPLETED", "WORKFLOW_COMPLETED", "done"]
    assert [name_of(frame) for frame in frames_in(text)] == names + ends


async def test_each_kind_of_frame_has_its_own_fields(api: Api):
    task_id = await api.begin(*WORKED, RequestPause(reason="lunch"), CancelTask(by="ann", reason="no need"))
    frames = {name_of(frame): frame for frame in await whole(await follow(api, task_id))}
    whose = {"workflow_id": task_id, "agent_id": "simulator"}
    assert said_in(frames["AGENT_STARTED"]).keys() == {
        *("workflow_id", "type", "agent_id", "message", "payload", "timestamp", "seq", "stream_id")
    }
    delta = said_in(frames["thread.message.delta"])
    assert delta == whose | {
        "delta": "a\u2028b",
        "message": "a\u2028b",
        "seq": 5,
        "stream_id": id_of(frames["thread.message.delta"]),
    }
    assert said_in(frames["workflow.pausing"]) == whose | {"message": "lunch"}
    assert said_in(frames["workflow.cancelling"]) == whose | {"message": "no need"}
    checkpoint = {"checkpoint": "version-7", "was_paused": False}
    assert said_in(frames["workflow.cancelled"]) == whose | {"message": "no need"} | checkpoint


@pytest.mark.parametrize(
    ("ending", "names"),
    [
        (complete(), ["thread.message.completed", "AGENT_COMPLETED", "WORKFLOW_COMPLETED", "done"]),
        (complete(result=None), ["AGENT_COMPLETED", "WORKFLOW_COMPLETED", "done"]),
        (fail(), ["error", "WORKFLOW_FAILED", "done"]),
        (CancelTask(by="ann"), ["workflow.cancelling", "workflow.cancelled", "done"]),
    ],
)
async def test_every_end_is_told_live_and_again_and_its_status_is_true_by_then(
    api: Api, ending: Command, names: list[str]
):
    task_id = await api.begin(start_run())
    wire = await (await follow(api, task_id)).head()
    live = await wire.frames(2)
    await api.tell(task_id, ending)
    live += await wire.frames(1)
    status = (await api.client.get(f"{PREFIX}/api/v1/tasks/{task_id}")).json()["status"]
    assert status in ("TASK_STATUS_COMPLETED", "TASK_STATUS_FAILED", "TASK_STATUS_CANCELLED")
    live += await wire.frames(len(names) - 1)
    assert await wire.rest() == (b"", True)
    await wire.close()
    assert [name_of(frame) for frame in live[2:]] == names
    assert live == await whole(await follow(api, task_id))


async def test_a_finished_stream_asked_again_is_the_rest_and_done_also_past_its_end(api: Api):
    task_id = await api.begin(*WORKED, complete())
    frames = await whole(await follow(api, task_id))
    for n, frame in enumerate(frames, 1):
        left = frames[n:] or frames[-1:]
        one = id_of(frame)
        assert await whole(await follow(api, task_id, f"&last_event_id={one}")) == left
        assert await whole(await follow(api, task_id, last=one)) == left
        assert await whole(await follow(api, task_id, f"&last_event_id={n}")) == left
        assert await whole(await follow(api, task_id, f"&last_event_id={id_of(frames[0])}", last=one)) == left
    for past in ("10", "99999999", "999999999999-0", "1763776800000-3"):
        assert await whole(await follow(api, task_id, f"&last_event_id={past}")) == frames[-1:], past
    for beginning in ("0", "0-0", ""):
        assert await whole(await follow(api, task_id, f"&last_event_id={beginning}")) == frames, beginning
    assert await whole(await follow(api, task_id, last="garbage")) == frames


async def test_a_position_of_another_life_is_answered_by_a_reset_and_the_whole_story(api: Api):
    ended, runs = await api.begin(*WORKED, complete()), await api.begin(start_run())
    story = await whole(await follow(api, ended))
    check = id_of(story[2]).partition("-")[2]
    reset, *rest = await whole(await follow(api, ended, f"&last_event_id=2-{check}"))
    assert (reset.split(b"\n")[0], rest) == (b"event: reset", story)
    assert said_in(reset)["workflow_id"] == ended
    for known in (f"2-{check}", "999", "999999999-0"):
        wire = await (await follow(api, runs, f"&last_event_id={known}")).head()
        reset, first, _ = await wire.frames(3)
        assert (reset.split(b"\n")[0], name_of(first)) == (b"event: reset", "WORKFLOW_STARTED"), known
        await wire.close()


async def test_a_filter_takes_raw_names_and_those_of_the_stream_and_always_ends(api: Api):
    task_id = await api.begin(*WORKED, request_review(1), CancelTask(by="ann"))
    wanted = {
        "LLM_PARTIAL": ["thread.message.delta", "done"],
        "thread.message.delta": ["thread.message.delta", "done"],
        "workflow.cancelled,AGENT_STARTED": ["AGENT_STARTED", "workflow.cancelled", "done"],
        "done": ["done"],
        "STREAM_END": ["done"],
        "agent_started,NO_SUCH": ["done"],
        ",".join(f"T{n}" for n in range(5_000)): ["done"],
    }
    for types, names in wanted.items():
        assert [name_of(one) for one in await whole(await follow(api, task_id, f"&types={types}"))] == names, types[:60]
    assert len(await whole(await follow(api, task_id, "&types=,"))) == 9


async def test_what_is_asked_wrongly_is_a_bad_request(api: Api):
    task_id = await api.begin()
    for bad in ("x", "-", "1-", "-1", "1-x", "1.5", "1-2-3", "1" * 30, "%C2%B2", "0x10", "%ff", "%00"):
        wire = await (await follow(api, task_id, f"&last_event_id={bad}", last="1")).head()
        assert wire.status == 400, bad
        assert await wire.reader.readexactly(34) == b'{"error":"Invalid last_event_id"}\n'
        await wire.close()
    for workflow in ("", "%20", "a/b", "x" * 129, "%ff", "a%0Ab"):
        answer = await api.client.get(f"{STREAM}?workflow_id={workflow}")
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid or missing workflow_id"}), workflow
    assert (await api.client.get(STREAM)).status_code == 400


async def test_another_owners_workflow_is_not_found_and_neither_is_an_unknown_one(api: Api):
    await api.rooms.tokens.add("tt_reader", DEV, ("tasks:read",))
    hers = await api.begin()
    await api.rooms.tokens.add("tt_eve_2", Owner("eve"), ("tasks:read",))
    for asked, token in ((hers, "tt_eve_2"), (TaskId("task_abc123"), "tt_reader"), (TaskId("no:such"), "tt_reader")):
        key = {"X-API-Key": token}
        answer = await api.client.get(f"{STREAM}?workflow_id={asked}", headers=key)
        assert (answer.status_code, answer.json()) == (404, {"error": "Workflow not found"})
        for what in ("events", "timeline"):
            answer = await api.client.get(f"{PREFIX}/api/v1/tasks/{asked}/{what}", headers=key)
            assert (answer.status_code, answer.json()) == (404, {"error": "Task not found"})


async def test_a_token_may_come_in_the_query_of_a_stream_and_nowhere_else(api: Api):
    task_id = await api.begin(CancelTask(by="ann"))
    for name in ("api_key", "token"):
        wire = await Wire.ask(api.url, f"{STREAM}?workflow_id={task_id}&{name}={api.token}")
        assert len(await whole(wire)) == 4
    tasks = f"{PREFIX}/api/v1/tasks"
    refused = [
        *(f"{tasks}/{task_id}{what}?api_key={api.token}" for what in ("", "/events", "/timeline", "/stream")),
        f"{tasks}?api_key={api.token}",
        f"{STREAM}?workflow_id={task_id}&api_key=",
        f"{STREAM}?workflow_id={task_id}&api_key=wrong&token={api.token}",
        f"{STREAM}?workflow_id={task_id}&apikey={api.token}",
        f"{STREAM}?workflow_id={task_id}&token=%ff%00",
        f"{STREAM}?workflow_id={task_id}",
    ]
    for path in refused:
        wire = await (await Wire.ask(api.url, path, {"Accept": "text/event-stream"})).head()
        assert (wire.status, wire.headers.get("www-authenticate")) == (401, 'Bearer realm="Shannon API"'), path
        await wire.close()


async def cut(wire: Wire) -> bytes:
    """What came until it was broken off; nothing about it looks like an end."""
    text, ended = await wire.rest()
    await wire.close()
    assert not ended
    assert b"[DONE]" not in text
    return text


async def test_a_drain_and_a_revoked_token_break_a_stream_which_never_looks_like_its_end(api: Api):
    made = await api.rooms.tokens.add("tt_short", DEV, ("tasks:read",))
    task_id = await api.begin(start_run())
    wires = [await follow(api, task_id, token="tt_short"), await follow(api, task_id)]
    for wire in wires:
        await (await wire.head()).frames(2)
    await api.rooms.tokens.revoke(made.id)
    await cut(wires[0])
    api.rooms.streams.drain()
    await cut(wires[1])
    await until(lambda: api.metric("open_streams") == 0)
    assert api.metric("streams_cut_total", why="drain") == 1


async def test_slow_readers_are_cut_and_resume_and_cost_the_others_nothing(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_stream_bytes=400_000)) as api:
        task_id = await api.begin(start_run())
        slow = [await follow(api, task_id, room_bytes=4_096) for _ in range(2)]
        quick = await (await follow(api, task_id)).head()
        reading = asyncio.ensure_future(quick.rest())
        await until(lambda: api.metric("open_streams") == 3)
        said, text = 0, "x" * 100_000
        while api.metric("streams_cut_total", why="slow") < 2:
            assert said < 500, "it takes in more than any kernel should"
            await api.tell(task_id, produce(text, offset=said * len(text)))
            said += 1
            await asyncio.sleep(0)
        await api.tell(task_id, complete())
        frames = frames_in((await reading)[0])
        await quick.close()
        assert [name_of(frame) for frame in frames[-2:]] == ["WORKFLOW_COMPLETED", "done"]
        for wire in slow:
            there = frames_in(await cut(await wire.head()))
            assert there == frames[: len(there)]
            last = id_of(there[-1]) if there else "0"
            assert await whole(await follow(api, task_id, last=last)) == frames[len(there) :]


async def test_an_idle_stream_is_pinged(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(ping_s=0.02)) as api:
        task_id = await api.begin()
        wire = await (await follow(api, task_id)).head()
        text = b""
        while text.count(b": ping\n\n") < 2:
            text += await wire.chunk()
        wire.reset()
        await until(lambda: api.metric("open_streams") == 0)


@pytest.mark.parametrize("prefix", ["", PREFIX])
async def test_a_tasks_own_path_leads_to_its_stream(api: Api, prefix: str):
    task_id = await api.begin(CancelTask(by="ann"))
    path = f"{prefix}/api/v1/tasks/{task_id}/stream"
    answer = await api.client.get(f"{path}?types=done,%0d%0aX&last_event_id=3-1&api_key=secret")
    location = f"{prefix}/api/v1/stream/sse?workflow_id={task_id}&types=done%2C%0D%0AX&last_event_id=3-1"
    assert (answer.status_code, answer.headers["Location"]) == (307, location)
    assert (await api.client.get(path, follow_redirects=True)).text.endswith(DONE.decode())
    wire = await Wire.ask(api.url, f"{prefix}/api/v1/stream/sse?workflow_id={task_id}&token={api.token}")
    assert len(await whole(wire)) == 4
    answer = await api.client.get(f"{PREFIX}/api/v1/tasks/a%20b/stream")
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid task ID format"})

"""What no client should send: each is a clear 4xx, never a fault of ours, and nothing of it harms the log."""

import json

import httpx

from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from tests.api import DEV, Api, running
from tests.dialects.test_native import is_problem
from tests.walk.wire import Wire

JSON = {"Content-Type": "application/json"}


async def post(api: Api, content: str | bytes, path: str = "/tasks") -> httpx.Response:
    return await api.client.post(path, content=content, headers=JSON)


async def kept(api: Api, answer: httpx.Response) -> object:
    """The input of a task that was made, as everybody else reads it: from the log alone."""
    assert answer.status_code == 201, answer.text
    task_id = TaskId(answer.json()["task_id"])
    (recorded,) = await api.rooms.tasks.log.read(DEV, task_id)
    page = await api.client.get(f"/tasks/{task_id}/events")
    assert page.status_code == 200
    stored = json.loads(recorded.stored)["fact"].get("input")
    assert json.loads(page.content)["data"][0]["fact"].get("input") == stored == json.loads(answer.content)["input"]
    return stored


async def test_what_is_no_json_is_a_bad_request(api: Api):
    no_json = [
        b"",
        b"{",
        b"nonsense",
        b'{"input": NaN}',
        b'{"input": Infinity}',
        b'{"input": 01}',
        b'{"input": "\xff"}',
        b'{"input": "\\ud800"}',
        b'{"input": "\\udc00\\ud800"}',
        b'{"metadata": {"\\ud800": 1}}',
        b'{"input": 1} trailing',
        b"\xef\xbb\xbf{}",
        b"\x00",
        '{"input": "ä"}'.encode("utf-16"),
    ]
    for content in no_json:
        answer = await post(api, content)
        is_problem(answer, 400, "bad_request")


async def test_what_is_not_asked_for_is_a_bad_request(api: Api):
    no_wishes: list[object] = [
        [],
        "x",
        1,
        None,
        True,
        {"inputs": 1},
        {"agent": 1},
        {"agent": ""},
        {"agent": "simulator\n"},
        {"agent": "a.b"},
        {"agent": "a" * 65},
        {"title": "t" * 201},
        {"title": ["t"]},
        {"session_id": "a b"},
        {"session_id": "a\n"},
        {"session_id": ""},
        {"session_id": "a" * 129},
        {"metadata": []},
        {"metadata": None},
        {"metadata": {"a": "x" * 20_000}},
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": 1e9},
        {"timeout_s": "60"},
        {"max_failures": 0},
        {"max_failures": 101},
        {"max_failures": 1.5},
        {"max_failures": True},
        {"approval_mode": "never"},
    ]
    for wish in no_wishes:
        answer = await post(api, json.dumps(wish))
        is_problem(answer, 400, "bad_request")
        assert api.token not in answer.text
    task_id = await api.begin()
    wrong: dict[str, list[object]] = {
        "messages": [{}, {"text": ""}, {"text": 1}, {"text": None}, {"text": "x", "more": 1}, [], "x", None],
        "review": [{}, {"approved": "yes"}, {"approved": 1}, {"approved": None}, {"approved": True, "more": 1}],
        "cancel": [{"reason": 1}, {"more": 1}, [], "x", {"reason": "r" * 1001}],
        "pause": [{"reason": 1}, {"more": 1}, [], "x"],
    }
    for path, wishes in wrong.items():
        for wish in wishes:
            answer = await post(api, json.dumps(wish), f"/tasks/{task_id}/{path}")
            is_problem(answer, 400, "bad_request")
    assert (await api.client.get(f"/tasks/{task_id}")).json()["version"] == 1


async def test_a_page_size_that_makes_no_sense_is_a_bad_request(api: Api):
    task_id = await api.begin()
    for limit in ("-1", "0", "1001", "x", "", "1.5", "9" * 40):
        is_problem(await api.client.get(f"/tasks/{task_id}/events?limit={limit}"), 400, "bad_request")
    for after in ("9" * 19, "9" * 18 + "-1"):
        page = await api.client.get(f"/tasks/{task_id}/events?after={after}")
        assert page.status_code in (200, 400), page.text


async def test_numbers_are_kept_as_they_were_sent_or_refused(api: Api):
    for number in ("0", "-0.0", "1.5", "1e-5", str(2**53 + 1), str(2**63 - 1), str(-(2**63)), str(2**64 - 1), "1e308"):
        answer = await post(api, f'{{"input": {{"n": {number}}}}}')
        assert await kept(api, answer) == {"n": json.loads(number)}, number
    for number in (str(2**64), str(-(2**63) - 1), "9" * 400, "9" * 5_000, "1e309", "-1e999", "1e99999"):
        answer = await post(api, f'{{"input": {{"n": {number}}}}}')
        if answer.status_code == 201:
            await kept(api, answer)
        else:
            is_problem(answer, 400, "bad_request")


async def test_text_is_kept_as_it_was_sent(api: Api):
    for text in (
        "\x00",
        "a\x00b",
        "\u2028\u2029",
        "\r\n\n\ndata: x\n\n",
        "\U0001f600",
        "\ufeff",
        "\x7f\x1b[0m",
        "e\u0301",
    ):
        assert await kept(api, await api.client.post("/tasks", json={"input": {text or "k": text}})) == {text: text}
        task_id = await api.begin()
        said = await api.client.post(f"/tasks/{task_id}/messages", json={"text": text})
        assert said.status_code == 200
        await api.client.post(f"/tasks/{task_id}/cancel", json={"reason": text})
        wire = await Wire.ask(api.url, f"/tasks/{task_id}/events", {"Accept": "text/event-stream", **api.bearer})
        frames = await (await wire.head()).frames(3)
        assert frames == await api.frames(task_id)
        await wire.close()


async def test_what_is_nested_too_deeply_is_a_bad_request_and_the_rest_is_kept(api: Api):
    for depth in (10, 60, 99, 100, 101, 120, 200, 500, 900, 960, 980, 990, 1_000, 1_100, 10_000, 100_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            nested = opening * depth + "1" + closing * depth
            answer = await post(api, f'{{"input": {nested}}}')
            if depth <= 100:
                await kept(api, answer)
            else:
                is_problem(answer, 400, "bad_request")
            answer = await post(api, f'{{"metadata": {{"a": {nested}}}}}')
            assert answer.status_code == (201 if depth <= 100 else 400)
    task_id = await api.begin()
    for path in ("messages", "review", "cancel", "pause"):
        for content in ("[" * 10_000, '{"text":' * 10_000, '{"reason":' + "[" * 100_000 + "]" * 100_000 + "}"):
            is_problem(await post(api, content, f"/tasks/{task_id}/{path}"), 400, "bad_request")


async def test_a_body_over_the_bound_is_too_large(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_body_bytes=10_000)) as api:
        task_id = await api.begin()
        large = json.dumps({"input": "x" * 20_000}).encode()

        async def bit_by_bit():
            for at in range(0, len(large), 1_000):
                yield large[at : at + 1_000]

        for content in (large, bit_by_bit()):
            answer = await api.client.post("/tasks", content=content, headers=JSON)
            is_problem(answer, 413, "too_large")
        for path in ("messages", "cancel", "pause", "review"):
            is_problem(await post(api, large, f"/tasks/{task_id}/{path}"), 413, "too_large")
        assert (await post(api, json.dumps({"input": "x" * 9_000}))).status_code == 201


async def test_other_kinds_of_bodies(api: Api):
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
    ):
        for content in (b"{}", b"a=b", b"--x--", b"<a/>"):
            answer = await api.client.post("/tasks", content=content, headers={"Content-Type": kind})
            assert answer.status_code in (201, 400, 415), (kind, content, answer.text)


async def test_headers_that_make_no_sense_are_passed_over(api: Api):
    task_id = await api.begin()
    odd = b"\xff\x80"
    names = (b"X-Request-Id", b"traceparent", b"Prefer", b"If-None-Match", b"Accept", b"Cache-Control")
    headers = [(name, odd) for name in names]
    assert (await api.client.get(f"/tasks/{task_id}", headers=headers)).status_code == 200
    assert (
        await api.client.get(f"/tasks/{task_id}", headers={"If-None-Match": '"' + "9" * 500 + '"'})
    ).status_code == 200
    assert (await api.client.post("/tasks", json={}, headers=headers)).status_code == 201
    answer = await api.client.get("/agents", headers=[(b"Authorization", b"Bearer " + odd)])
    assert answer.status_code == 401


async def test_ids_that_make_no_sense_are_of_no_task(api: Api):
    for one in ("x", "task_", "task_" + "0" * 36, "*", "%3E", "a.b.c", "..%2f", "%00", "%ff", "task_" * 1000, "\u0130"):
        for path in ("", "/events"):
            is_problem(await api.client.get(f"/tasks/{one}{path}"), 404, "not_found")
        is_problem(await api.client.post(f"/tasks/{one}/cancel"), 404, "not_found")

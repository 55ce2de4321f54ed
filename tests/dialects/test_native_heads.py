"""What comes before a request's body: heads without an end, hosts that are none, clients that break off."""

import asyncio

import httpx
import msgspec

from app.problems import ProblemDetails
from tests.api import Api
from tests.lifecycle.commands import produce, start_run

SOON_S = 10.0


async def said(api: Api, *pieces: bytes) -> bytes:
    """All that the server says to this, to its closing of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), SOON_S)
    except ConnectionError:
        return b"cut"
    finally:
        writer.close()


async def test_a_head_without_an_end_is_refused_before_it_fills_the_memory(api: Api) -> None:
    header = b"X-n: " + b"a" * 8_000 + b"\r\n"
    answer = await said(api, b"GET /health/live HTTP/1.1\r\nHost: x\r\n", *([header] * 64))
    assert answer == b"cut" or answer.startswith(b"HTTP/1.1 431 ")
    assert (await api.client.get("/health/live")).status_code == 200


async def test_a_host_that_is_none_is_no_fault_of_ours(api: Api) -> None:
    for host in ("x:abc", "x:99999", "[::1]:x"):
        answer = await api.client.get("/tasks/x", headers={"Host": host})
        assert answer.status_code == 404, host
        created = await api.client.post("/tasks", json={"input": "x"}, headers={"Host": host})
        assert (created.status_code, created.headers["Location"][:12]) == (201, "/tasks/task_"), host


async def test_a_client_that_breaks_off_its_upload_is_no_fault_of_ours(api: Api) -> None:
    head = f"POST /tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.token}\r\nContent-Type: application/json\r\n"
    await said(api, f"{head}Content-Length: 100\r\n\r\n{{}}".encode())
    assert api.metric("http_requests_total", status="500") == 0


async def test_a_rejected_command_cuts_no_stream_of_a_task_that_goes_on(api: Api) -> None:
    task_id = await api.begin(start_run())

    async def speak() -> None:
        for number in range(150):
            await api.tell(task_id, produce("word ", offset=5 * number))

    async def ask_in_vain() -> None:
        while not speaking.done():
            answer = await api.client.post(f"/tasks/{task_id}/review", json={"approved": True})
            assert msgspec.json.decode(answer.content, type=ProblemDetails).code == "not_waiting"

    async with api.client.stream("GET", f"/tasks/{task_id}/events", headers={"Accept": "text/event-stream"}) as stream:
        assert isinstance(stream, httpx.Response)
        speaking = asyncio.ensure_future(speak())
        await asyncio.gather(speaking, *(ask_in_vain() for _ in range(4)))
    assert api.metric("streams_cut_total", why="went_back") == 0


async def test_a_head_is_asked_for_wherever_there_is_a_get_and_a_stream_ends_with_it(api: Api) -> None:
    task_id = await api.begin(start_run())
    stream = {"Accept": "text/event-stream"}
    for path, headers in (("/health/live", {}), (f"/tasks/{task_id}", {}), (f"/tasks/{task_id}/events", stream)):
        answer = await api.client.head(path, headers=headers, timeout=SOON_S)
        assert (answer.status_code, answer.content) == (200, b""), path
    whole = await api.client.get(f"/tasks/{task_id}")
    head = await api.client.head(f"/tasks/{task_id}")
    assert (head.headers["ETag"], head.headers["Content-Length"]) == (whole.headers["ETag"], str(len(whole.content)))
    for path, status in (("/tasks/x", 404), ("/nothing", 404)):
        assert (await api.client.head(path)).status_code == status
    nobody = await api.client.head(f"/tasks/{task_id}", headers={"Authorization": "Bearer x"})
    assert (nobody.status_code, nobody.content) == (401, b"")
    async with asyncio.timeout(SOON_S):
        while api.rooms.streams.readers:  # noqa: ASYNC110  # nobody announces that a reader has gone
            await asyncio.sleep(0.01)

"""A client that takes nothing more is dropped, not waited for: its connection, its buffers and its task are let go."""

import socket

from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from tests.api import running
from tests.lifecycle.commands import produce, start_run
from tests.log.logs import until

MOST_SAID = 500


async def test_a_reader_that_was_cut_and_never_reads_on_loses_its_connection(nats_address: NatsAddress) -> None:
    async with running(nats_address, http=HttpSettings(max_stream_bytes=400_000)) as api:
        task_id = await api.begin(start_run())
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect(("127.0.0.1", int(api.url.rpartition(":")[2])))
            asked = [f"GET /tasks/{task_id}/events HTTP/1.1", "Host: x", "Accept: text/event-stream"]
            client.sendall("\r\n".join([*asked, f"X-API-Key: {api.token}", "", ""]).encode())
            await until(lambda: api.metric("open_streams") == 1)
            assert api.connections() >= 1
            said, text = 0, "x" * 100_000
            while api.metric("streams_cut_total", why="slow") == 0:
                assert said < MOST_SAID, "it takes in more than any kernel should"
                await api.tell(task_id, produce(text, offset=said * len(text)))
                said += 1
            await until(lambda: api.metric("open_streams") == 0)
            await until(lambda: api.connections() == 0, 10.0)

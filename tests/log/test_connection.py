"""The connection: what it says, and leaves behind, when nobody answers."""

import asyncio
import gc
import logging
import socket
from pathlib import Path
from time import monotonic

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from eventstore import codec
from eventstore.connection import Connection, NatsAddress
from eventstore.log import LogUnavailable, OutcomeUnknown
from eventstore.server import EmbeddedServer
from tests.log.logs import ANN, created, grow, jetstream, new_task, record_of, stopped, until

say = structlog.stdlib.get_logger()


def left_behind() -> set[str]:
    """The names of all asyncio tasks but the test's own and the server's watcher; warnings of others come now."""
    gc.collect()
    return {
        str(task.get_coro())
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and task.get_name() != "nats-server watcher"
    }


async def test_an_address_where_nothing_listens_is_given_up_in_time():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        since = monotonic()
        with pytest.raises(LogUnavailable, match="Connect call failed"):
            await Connection.open(
                NatsAddress(url=f"nats://ann:secret@127.0.0.1:{taken.getsockname()[1]}"), "tests", within_s=0.5
            )
    assert monotonic() - since < 3
    assert left_behind() == set()


async def test_an_address_that_accepts_and_never_speaks_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        since = monotonic()
        with pytest.raises(LogUnavailable, match=r"within 0\.5 s"):
            await Connection.open(NatsAddress(url=f"nats://127.0.0.1:{mute.getsockname()[1]}"), "tests", within_s=0.5)
    assert monotonic() - since < 3
    assert left_behind() == set()


async def test_a_wrong_password_is_named_and_the_right_one_is_not_shown(server: EmbeddedServer):
    host = server.address.url.rpartition("@")[2]
    with pytest.raises(LogUnavailable, match="Authorization Violation") as told:
        await Connection.open(NatsAddress(url=f"nats://tasktrail:wrong@{host}"), "tests", within_s=0.5)
    assert "wrong" not in str(told.value)
    assert left_behind() == set()


async def test_a_killed_server_is_noticed_and_met_again_without_a_traceback(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    with capture_logs() as lines, caplog.at_level(logging.DEBUG):
        connection = await Connection.open(server.address, "tests")
        await server.kill()
        noticed_s = await until(lambda: not connection.connected)
        await asyncio.sleep(0.5)  # some attempts that fail
        await server.restart()
        back_s = await until(lambda: connection.connected)
        await connection.api("INFO")
        await connection.close()
    said = [line["event"] for line in lines if str(line["event"]).startswith("nats.")]
    assert said == ["nats.disconnected", "nats.reconnected"]
    assert [record for record in caplog.records if record.name.startswith("nats")] == []
    assert "Traceback" not in "".join(capfd.readouterr())
    assert left_behind() == set()
    say.info("measured", noticed_s=noticed_s, back_s=back_s)


async def test_a_question_that_is_given_up_as_its_answer_comes_ends_as_cancelled(server: EmbeddedServer):
    connection = await Connection.open(server.address, "tests")
    await connection.api("INFO")
    for turns_of_the_loop in [*range(6)] * 10:
        answers = connection.client.stats["in_msgs"]
        asking = asyncio.ensure_future(connection.api("INFO"))
        while connection.client.stats["in_msgs"] == answers:  # noqa: ASYNC110  # the very moment is what matters
            await asyncio.sleep(0)
        for _ in range(turns_of_the_loop):
            await asyncio.sleep(0)
        if asking.cancel():
            await asyncio.wait([asking])
            assert asking.cancelled()
    await connection.close()


async def test_a_connection_to_a_server_that_stands_still_can_be_closed(server: EmbeddedServer):
    connection = await Connection.open(server.address, "tests")
    with stopped(server):
        for _ in range(64):
            await connection.publish("somewhere", bytes(512 * 1024))
        since = monotonic()
        await connection.close()
        assert monotonic() - since < 10
    assert left_behind() == set()


async def test_what_is_more_than_the_server_takes_is_refused_here_and_the_connection_lives_on(
    server: EmbeddedServer, tmp_path: Path
):
    configuration = tmp_path / "nats-data" / "nats-server.conf"
    settings = msgspec.json.decode(configuration.read_bytes(), type=dict[str, object])
    await server.kill()
    configuration.write_bytes(msgspec.json.encode({**settings, "max_payload": 4096}))
    await server.restart()
    async with jetstream(server.address, patience_s=0.5) as log:
        for size in (3900, 4000, 4090, 5000):
            record = record_of(created("x" * (size - len(codec.encode(record_of(created("")))))))
            assert len(codec.encode(record)) == size
            if size < 4040:  # with its header, which has some 50
                await log.append(ANN, new_task(), record, 0)
            else:
                with pytest.raises((LogUnavailable, OutcomeUnknown)):
                    await log.append(ANN, new_task(), record, 0)
        await grow(log, new_task(), 1)
        assert await log.last_sequence() == 3
        assert log.connection.client.stats["reconnects"] == 0

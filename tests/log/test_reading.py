"""What comes by the thousand is cut out of what the socket gives, however that was cut on the way."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from eventstore.client import LARGE, Delivery, StraightClient
from eventstore.connection import Connection, NatsAddress
from eventstore.server import EmbeddedServer
from tests.log.logs import Ear, grow, jetstream, new_task, until

TAKEN, OTHER = 7, 8
HEAD = b"NATS/1.0\r\nA: b\r\n\r\n"
words = st.sampled_from(["tasks.1.ann.task", "_INBOX.a.1", "a"])
messages = st.builds(
    Delivery,
    subject=words,
    reply=st.sampled_from(["", "$JS.ACK.TASKS.a.1.2.3.4.5"]),
    data=st.binary(max_size=40) | st.sampled_from([b"MSG a 7 3\r\nabc\r\n", b"\r\n", b"x" * (LARGE + 1)]),
    raw=st.sampled_from([None, HEAD]),
)
BESIDE = [
    b"PING\r\n",
    b"PONG\r\n",
    b'INFO {"max_payload":1048576}\r\n',
    b"-ERR 'Permissions Violation for MSG a 7 3'\r\n",
]
"""What the server says beside messages."""
noise = st.sampled_from(
    [b"+OK\r\n", b"MSG a %d 3\r\nabc\r\n" % OTHER, b"HMSG a %d 18 21\r\n%babc\r\n" % (OTHER, HEAD), *BESIDE]
)


class Listening(StraightClient):
    """The client without a connection: it remembers what it heard, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Delivery | str] = []
        self.takers[TAKEN] = self.heard.append

    async def _process_ping(self) -> None:
        self.heard.append("PING")

    async def _process_pong(self) -> None:
        self.heard.append("PONG")

    async def _process_info(self, info: dict[str, object], initial_connection: bool = False) -> None:
        self.heard.append(f"INFO {info}")

    async def _process_err(self, err_msg: str) -> None:
        self.heard.append(err_msg)


def read(pieces: Sequence[bytes]) -> list[tuple[str, str, bytes, bytes | None] | str]:
    """What is heard of what comes in these pieces."""
    client = Listening()

    async def parse() -> None:
        for piece in pieces:
            await client._ps.parse(piece)  # pyright: ignore[reportPrivateUsage]  # as the client's own loop does it

    asyncio.run(parse())
    return [one if isinstance(one, str) else (one.subject, one.reply, one.data, one.raw) for one in client.heard]


def on_the_wire(message: Delivery) -> bytes:
    reply = f"{message.reply} " if message.reply else ""
    if message.raw is None:
        return f"MSG {message.subject} {TAKEN} {reply}{len(message.data)}\r\n".encode() + message.data + b"\r\n"
    sizes = f"{len(message.raw)} {len(message.raw) + len(message.data)}"
    return f"HMSG {message.subject} {TAKEN} {reply}{sizes}\r\n".encode() + message.raw + message.data + b"\r\n"


@given(said=st.lists(messages | noise, max_size=8), draw=st.data())
def test_messages_are_taken_whole_and_in_order_however_they_were_cut(
    said: list[Delivery | bytes], draw: st.DataObject
) -> None:
    wire = b"".join(one if isinstance(one, bytes) else on_the_wire(one) for one in said)
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(wire)), max_size=12)))
    pieces = [wire[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    expected = [(one.subject, one.reply, one.data, one.raw) for one in said if isinstance(one, Delivery)]
    assert [one for one in read(pieces) if not isinstance(one, str)] == expected
    assert read(pieces) == read([wire])


SAID = [
    on_the_wire(Delivery("a", "", b"one")),
    *BESIDE[:2],
    on_the_wire(Delivery("tasks.1.ann.task", "$JS.ACK.1", b"two\r\nMSG a 7 1\r\n", HEAD)),
    *BESIDE[2:],
    b"+OK\r\n",
    on_the_wire(Delivery("a", "", b"", HEAD)),
    on_the_wire(Delivery("a", "b", b"")),
]


def test_whatever_the_server_says_is_heard_the_same_cut_at_any_byte():
    wire = b"".join(SAID)
    whole = read([wire])
    assert len(whole) == len(SAID) - 1  # of all but the OK
    assert read([wire[at : at + 1] for at in range(len(wire))]) == whole
    for at in range(len(wire)):
        assert read([wire[:at], wire[at:]]) == whole
        assert read([wire[:at], wire[at : at + 9], wire[at + 9 :]]) == whole


def test_a_large_message_between_small_ones_is_heard_in_its_place():
    small, large = Delivery("a", "", b"small"), Delivery("a", "b", b"MSG a 7 3\r\n" * 100_000, HEAD)
    wire = b"".join(on_the_wire(one) for one in [small, large, small, large, small])
    for size in (1448, 64 * 1024, 256 * 1024):
        heard = read([wire[at : at + size] for at in range(0, len(wire), size)])
        assert [one[2] for one in heard] == [one.data for one in [small, large, small, large, small]]


@pytest.mark.parametrize("line", [b"MSG\r\n", b"MSG a\r\n", b"MSG a x 3\r\n", b"MSG a 7 x\r\n", b"HMSG a 7 x 3\r\n"])
def test_a_line_that_can_not_be_read_is_said_to_be_one_so_that_the_client_connects_anew(line: bytes):
    with pytest.raises(ProtocolError):
        read([line + b"abc\r\n"])


async def test_whoever_stops_listening_as_it_hears_hears_no_more(nats_address: NatsAddress):
    connection = await Connection.open(nats_address, "tests")
    heard: list[Delivery] = []

    def hear(message: Delivery) -> None:
        heard.append(message)
        connection.client.forget(subscription)

    subscription = await connection.take("word", hear)
    others: list[Delivery] = []
    await connection.take("word", others.append)
    for _ in range(100):
        await connection.publish("word", b"x")
    await until(lambda: len(others) == 100)
    assert len(heard) == 1
    await connection.close()


async def test_what_was_half_read_of_one_connection_is_no_part_of_the_next(server: EmbeddedServer):
    connection = await Connection.open(server.address, "tests")
    client, heard = connection.client, list[bytes]()
    subscription = await connection.take("word", lambda message: heard.append(message.data))
    await server.kill()
    await until(lambda: not connection.connected)
    # nats-py has let go of the old connection; its reading may have had one piece more in hand.
    await client._ps.parse(b"MSG word %d 300\r\nhalf" % subscription._id)  # pyright: ignore[reportPrivateUsage]  # as its own loop does it
    await server.restart()
    await until(lambda: connection.connected)
    for n in range(50):
        await connection.publish("word", b"%d" % n)
    await until(lambda: len(heard) >= 50)
    assert heard == [b"%d" % n for n in range(50)]
    assert client.stats["reconnects"] == 1
    await connection.close()


async def test_a_subject_that_is_no_text_makes_no_tail_deaf(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        ear = Ear()
        tail = await log.tail(ear.on_arrival, ear.on_reset)
        stranger = await Connection.open(nats_address, "stranger")
        await stranger.client._send_command(b"PUB tasks.\xff\xfe 1\r\nx\r\n")  # pyright: ignore[reportPrivateUsage]  # it would not say so otherwise
        await stranger.client.flush()
        await stranger.close()
        (after,) = await grow(log, new_task(), 1)
        assert after.sequence == 2
        await tail.catch_up()
        assert ear.sequences == [1, 2]
        assert log.connection.client.stats["reconnects"] == 0

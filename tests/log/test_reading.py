"""What comes by the thousand is cut out of what the socket gives, however that was cut on the way."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from eventstore.client import LARGE, Delivery, StraightClient

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
noise = st.sampled_from([b"+OK\r\n", b"MSG a %d 3\r\nabc\r\n" % OTHER, b"HMSG a %d 18 21\r\n%babc\r\n" % (OTHER, HEAD)])


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
    heard: list[Delivery] = []

    async def read() -> None:
        client = StraightClient()
        client.takers[TAKEN] = heard.append
        for piece in pieces:
            await client._ps.parse(piece)  # pyright: ignore[reportPrivateUsage]  # as the client's own loop does it

    asyncio.run(read())
    expected = [one for one in said if isinstance(one, Delivery)]
    assert [(one.subject, one.reply, one.data, one.raw) for one in heard] == [
        (one.subject, one.reply, one.data, one.raw) for one in expected
    ]

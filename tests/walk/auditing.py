"""Logs to be audited: written, signed, and then done to what somebody with all rights, or the disk, could do."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.checkpoints import Checkpoints
from eventstore.connection import Connection, NatsAddress
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.log import Arrival
from projections.proof import named
from projections.sources import LogSource
from tests.given import BEGIN, cancelled, completed, started
from tests.log.logs import jetstream
from tests.projections.lives import ANN, BOB, Scribe, born, numbered
from tests.walk.terminal import Said, environment, tasktrail

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = named(KEY.public_key())
ENDED, CANCELLED, OPEN = numbered(1), numbered(2), numbered(3)
RECORDS = 8
"""Three of ENDED, two of CANCELLED, one of OPEN, one of Bob's, and the checkpoint."""


async def write_history(address: NatsAddress) -> None:
    """Four tasks, their records one after the other, the first with a blob; signed."""
    async with jetstream(address) as log:
        scribe = Scribe(log)
        await scribe.write(ANN, ENDED, born("é", input="x" * 300_000), started(), completed(), at=BEGIN)
        await scribe.write(ANN, CANCELLED, born("b"), cancelled(), at=BEGIN + timedelta(days=1))
        await scribe.write(ANN, OPEN, born("c"), at=BEGIN + timedelta(days=1))
        await scribe.write(BOB, numbered(4), born("d"), at=BEGIN + timedelta(days=1))
        await sign(log)


async def write_much(address: NatsAddress, tasks: int) -> None:
    """So many tasks, each of three large records."""
    async with jetstream(address) as log:
        scribe = Scribe(log)
        life = (born("x" * 50_000), started(), completed())
        await asyncio.gather(*(scribe.write(ANN, numbered(number), *life, at=BEGIN) for number in range(tasks)))


async def sign(log: JetStreamLog) -> None:
    """Write a checkpoint of all that there is."""
    checkpoints = Checkpoints(log, KEY)
    try:
        await checkpoints.write()
    finally:
        await checkpoints.close()


async def records_of(address: NatsAddress) -> list[Arrival]:
    """All that the log holds."""
    async with jetstream(address) as log:
        source = LogSource(log)
        return [one async for batch in source.arrivals(0, await source.end()) for one in batch]


async def rewrite(all_rights: NatsAddress, change: Callable[[list[Arrival]], list[Arrival]]) -> None:
    """Delete the stream, make it again, and write other records into it."""
    records = change(await records_of(all_rights))
    connection = await Connection.open(all_rights, "somebody")
    try:
        config = (await connection.api(f"STREAM.INFO.{STREAM}"))["config"]
        await connection.api(f"STREAM.DELETE.{STREAM}")
        await connection.api(f"STREAM.CREATE.{STREAM}", config)
        for one in records:
            answer = await connection.request(one.subject, one.stored)
            assert b'"error"' not in answer.data, answer.data
    finally:
        await connection.close()


async def remove(all_rights: NatsAddress, *sequences: int) -> None:
    """Delete records where they are."""
    connection = await Connection.open(all_rights, "somebody")
    try:
        for sequence in sequences:
            await connection.api(f"STREAM.MSG.DELETE.{STREAM}", {"seq": sequence})
    finally:
        await connection.close()


def flip(data_dir: Path, stored: bytes) -> None:
    """Change one byte of a record in the stopped server's files."""
    (block,) = (path for path in data_dir.rglob("*.blk") if stored in path.read_bytes())
    content = bytearray(block.read_bytes())
    at = content.index(stored) + stored.index(b'"actor"') + len(b'"actor":"')
    content[at] ^= 1
    block.write_bytes(content)


def with_actor(arrival: Arrival, actor: str = "nobody") -> Arrival:
    """The record as somebody else's, whole and readable."""
    stored = arrival.stored.replace(b'"actor":"test"', b'"actor":"%b"' % actor.encode())
    assert stored != arrival.stored
    return Arrival(arrival.sequence, arrival.subject, stored)


async def audit(*words: str | Path) -> Said:
    """Run an audit command to its end."""
    return await tasktrail("audit", *map(str, words), env=environment(TASKTRAIL_RETRY_FOR="0"))


async def exported(nats: str, path: Path, *options: str) -> Path:
    """The file that an export of this log is."""
    said = await audit("export", "--nats-url", nats, "--output", path, *options)
    assert said.code == 0, said
    return path


def has_more(path: Path, size: int) -> bool:
    """Whether the file has grown."""
    return path.exists() and path.stat().st_size > size

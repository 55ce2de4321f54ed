"""Blobs whose fact never came are swept; all others stay."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from msgspec.structs import replace

from eventstore.blobs import JetStreamBlobs
from eventstore.connection import Connection, NatsAddress
from eventstore.events import Owner, TaskId
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.log import WrongExpectedSequence, task_subject
from eventstore.stream import Stream
from eventstore.sweep import sweep_blobs
from tests.given import created, record_after

OWNER = Owner("dev")


async def test_a_blob_without_its_fact_is_swept_once_it_is_old_and_one_with_it_stays(nats_address: NatsAddress) -> None:
    connection = await Connection.open(nats_address, "tests")
    log = await JetStreamLog.open(connection)
    blobs = await JetStreamBlobs.open(connection)
    facts = Stream(connection, STREAM)
    await facts.open()
    task_id = TaskId(f"task_{uuid4()}")
    first = record_after(None, created(input="x" * 300_000), owner=OWNER, task_id=task_id).record
    appended = await log.append(OWNER, task_id, first, 0)
    late = replace(first, record_id=str(uuid4()), fact=created(input="y" * 300_000))
    with pytest.raises(WrongExpectedSequence):
        await log.append(OWNER, task_id, late, 0)
    never = f"r-{uuid4()}"
    await blobs.put(never, b"z" * 300_000, subject=task_subject(OWNER, TaskId(f"task_{uuid4()}")), expected=0)

    assert await sweep_blobs(blobs, facts) == 0, "what is young may still get its fact"
    assert await sweep_blobs(blobs, facts, now=datetime.now(UTC) + timedelta(hours=2)) == 2

    assert appended.record.blob is not None
    assert await blobs.get(appended.record.blob.name) is not None
    assert await blobs.get(late.record_id) is None
    assert await blobs.get(never) is None
    state = await blobs.stream.state()
    assert state.bytes < 400_000, "the chunks went too"
    await facts.close()
    await blobs.close()
    await log.close()
    await connection.close()

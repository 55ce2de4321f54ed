"""What an append asks of JetStream, heard on the wire by somebody else: one publish, and nothing is read."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.commands import ReceiveInput
from app.metrics import Metrics
from app.tasks import Done, Tasks
from eventstore.client import Delivery
from eventstore.connection import Connection, NatsAddress
from eventstore.log import task_subject
from tests.lifecycle.commands import complete, create, produce, start_run
from tests.log.logs import ANN, jetstream
from tests.walk.lives import CAUSE

BY_THE_CLOCK = "$JS.API.STREAM.INFO.TASKS"
"""The tail asks this every quarter of a second, whatever is appended."""


@asynccontextmanager
async def overheard(nats: NatsAddress) -> AsyncGenerator[list[str]]:
    """The subjects of all that anybody says to JetStream about tasks."""
    connection = await Connection.open(nats, "ear")
    heard: list[str] = []

    def hear(said: Delivery) -> None:
        if said.subject != BY_THE_CLOCK:
            heard.append(said.subject)

    for subject in ("$JS.API.>", "tasks.>"):
        await connection.take(subject, hear)
    await connection.client.flush()
    try:
        yield heard
        await connection.client.flush()
    finally:
        await connection.close()


async def test_a_creation_and_each_command_on_an_attached_task_is_one_publish_and_no_read(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        tasks = await Tasks.open(log, Metrics())
        async with overheard(nats_address) as heard:
            done = await tasks.create(ANN, create(), CAUSE)
            assert isinstance(done, Done)
            task_id = done.task.task_id
            commands = [ReceiveInput(text="more"), start_run(), produce("a"), ReceiveInput(text="more"), complete()]
            for command in commands:
                assert isinstance(await tasks.execute(ANN, task_id, command, CAUSE), Done)
        await tasks.close()
    assert heard == [task_subject(ANN, task_id)] * (1 + len(commands))

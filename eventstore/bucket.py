"""A JetStream key-value bucket, as a stream: the last message of each subject."""

from eventstore.connection import Connection
from eventstore.stream import Stream


async def open_bucket(connection: Connection, name: str, *, replicas: int) -> Stream:
    """The bucket, created where it is missing; keys are subjects under `$KV.<name>.`. Raises LogUnavailable,
    RefusedByServer."""
    stream = Stream(connection, f"KV_{name}")
    await stream.open()
    await stream.ensure(
        {
            "subjects": [f"$KV.{name}.>"],
            "storage": "file",
            "max_msgs_per_subject": 1,
            "discard": "new",
            "deny_delete": True,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "num_replicas": replicas,
        }
    )
    return stream

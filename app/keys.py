"""Idempotency keys: the task that one stands for, and what the log keeps of one."""

import hashlib
import uuid

from eventstore.events import Owner, TaskId

NAMESPACE = uuid.UUID("8a3b1f5e-54f0-5d0e-9c5b-0f4a6f3c2d10")


def keyed_task_id(owner: Owner, dialect: str, key: str, generation: int) -> TaskId:
    """The task that an idempotency key stands for: the same id in every process, so that no table is needed."""
    name = "\x00".join((owner, dialect, key, str(generation)))
    return TaskId(f"task_{uuid.uuid5(NAMESPACE, name)}")


def hashed_key(purpose: str, key: str) -> str:
    """What the log keeps of an idempotency key."""
    return hashlib.sha256(f"{purpose}\x00{key}".encode()).hexdigest()[:32]

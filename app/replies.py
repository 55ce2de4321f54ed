"""What a service replies, read: tasks, pages, events, problems; and how asking it goes wrong.

ClientError               the message is one line for people
├── Refused               the service understood and said no (4xx)
└── NotTried              it could not be tried
    ├── NoAddress         nobody said where the service is, or with what token
    └── NoAnswer          no service answers there, or none of ours
"""

from http import HTTPStatus
from typing import TypeVar

import httpx
import msgspec
from httpx_sse import ServerSentEvent
from msgspec import Struct

from app.dialects.native import TaskBody
from eventstore import codec
from eventstore.events import Owner, TaskCancelled, TaskCompleted, TaskFailed, TaskId, TaskTimedOut
from eventstore.log import Recorded


class ClientError(Exception):
    """What was asked for did not come about."""


class Refused(ClientError):
    """The service understood and said no."""


class NotTried(ClientError):
    """It could not be tried."""


class NoAddress(NotTried):
    """Nobody said where the service is, or with what token."""


class NoAnswer(NotTried):
    """No service answers there, or none of ours."""


class Told(Struct, frozen=True):
    """A fact; `item` is its JSON as the API's pages have it, the stored record with its sequence and event id."""

    recorded: Recorded
    item: str

    @property
    def is_end(self) -> bool:
        """Nothing follows it."""
        return isinstance(self.recorded.record.fact, TaskCompleted | TaskFailed | TaskCancelled | TaskTimedOut)


class Interrupted(Struct, frozen=True):
    """The connection was lost; it is being made anew, and nothing will be missed."""

    why: str


class Reset(Struct, frozen=True):
    """The log is another than it was: forget what was told, it begins again."""


class Page(Struct):
    """A page of a task's history."""

    data: list[msgspec.Raw]
    has_more: bool
    next_after: int


class TaskPage(Struct):
    """A page of tasks."""

    data: list[msgspec.Raw]
    has_more: bool
    next_cursor: str | None


class _Item(Struct):
    sequence: int


class _Complaint(Struct):
    title: str = ""
    detail: str = ""


def complaint(answer: httpx.Response) -> str:
    """What a problem (RFC 9457) says, in one line."""
    try:
        said = msgspec.json.decode(answer.content, type=_Complaint)
    except msgspec.DecodeError:
        said = _Complaint()
    title = said.title or f"the service answers {answer.status_code} {answer.reason_phrase}".rstrip()
    parts = [title] if said.detail in ("", title) else [title, said.detail]
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        parts.append("is it unknown, expired or revoked? `tasktrail tokens create` makes one")
    return " ".join(": ".join(part for part in parts if part).split())


def task_of(content: bytes) -> TaskBody:
    """The task that a body tells of."""
    return decoded(content, TaskBody)


Form = TypeVar("Form")


def decoded(content: bytes, form: type[Form]) -> Form:
    """A body's JSON. Raises NoAnswer where it is none of ours."""
    try:
        return msgspec.json.decode(content, type=form)
    except msgspec.DecodeError as error:
        raise NoAnswer(
            f"the service's answer can't be read; is it another release, or another product? ({error})"
        ) from error


def told_in(task_id: TaskId, item: bytes) -> Told:
    """The fact of a page's item. Raises NoAnswer where it can't be read."""
    return Told(_recorded(task_id, decoded(item, _Item).sequence, item), item.decode())


def told_by(task_id: TaskId, event: ServerSentEvent) -> Told:
    """The fact of a stream's event. Raises NoAnswer where it can't be read."""
    sequence = event.id.partition("-")[0]
    if not (sequence.isascii() and sequence.isdigit()):
        raise NoAnswer(f"not an event id: {event.id!r}")
    recorded = _recorded(task_id, int(sequence), event.data.encode())
    return Told(recorded, f'{{"sequence":{sequence},"id":"{event.id}",{event.data[1:]}')


def _recorded(task_id: TaskId, sequence: int, stored: bytes) -> Recorded:
    try:
        record = codec.decode(stored)
    except codec.Unreadable as error:
        raise NoAnswer(f"an event that this release can't read; is the service's newer? ({error})") from error
    # Whose task it is, is not told: the owner is the asker.
    return Recorded(sequence=sequence, owner=Owner(""), task_id=task_id, record=record, stored=stored)


def checked(answer: httpx.Response) -> httpx.Response:
    """A good answer. Raises Refused, NotTried, NoAnswer."""
    if answer.is_success or answer.status_code == HTTPStatus.NOT_MODIFIED:
        return answer
    if answer.is_client_error:
        raise Refused(complaint(answer))
    if answer.is_server_error:
        raise NotTried(complaint(answer))
    raise NoAnswer(f"{answer.url} is no Tasktrail API: it answers {answer.status_code}")


def retry_after_s(answer: httpx.Response) -> float:
    """How long the service wants us to wait."""
    given = answer.headers.get("retry-after", "")
    return float(given) if given.isascii() and given.isdigit() else 0.0

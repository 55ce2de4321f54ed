"""The log as CloudEvents 1.0: each record as one structured event, its stored bytes in it as they are. Pure."""

import base64

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from eventstore.log import Arrival

CHECKPOINT = "log.checkpoint"
UNREADABLE = "log.unreadable"
"""The type of what is in the log and is no record of ours: an auditor must be able to see that too."""


class CloudEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event in structured mode. (source, id) name it for ever; `sequence` orders: lexicographically, hence the
    zeros. It is a cursor of the log, too. `data` is the record as it is stored: whoever has it can check its hash."""

    specversion: str
    id: str
    source: str
    type: str
    sequence: str
    subject: str | None = None
    time: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    datacontenttype: str | None = None
    data: Raw = Raw()
    data_base64: str | None = None


class _Fact(Struct):
    type: str


class _Said(Struct):
    """What of a record is said outside its data, whatever else it holds: a newer release's is shown as well."""

    record_id: str
    at: str
    fact: _Fact
    correlation_id: str | None = None
    causation_id: str | None = None
    traceparent: str | None = None


_said = msgspec.json.Decoder(_Said)
_encode = msgspec.json.Encoder().encode


def cloudevent_of(arrival: Arrival) -> bytes:
    """The record as a structured CloudEvent: one line of JSON, without its end of line."""
    source, subject = origin(arrival.subject)
    sequence = f"{arrival.sequence:020}"
    try:
        said = _said.decode(arrival.stored)
    except msgspec.DecodeError:
        return _encode(_unread(arrival, source, subject, sequence))
    event = CloudEvent(
        specversion="1.0",
        id=said.record_id,
        source=source,
        type=said.fact.type,
        sequence=sequence,
        subject=subject,
        time=said.at,
        correlationid=said.correlation_id or None,
        causationid=said.causation_id or None,
        traceparent=said.traceparent or None,
        datacontenttype="application/json",
        data=Raw(arrival.stored),
    )
    return _encode(event)


def type_of(arrival: Arrival) -> str:
    """The tag of its fact, also where only a newer release knows it."""
    try:
        return _said.decode(arrival.stored).fact.type
    except msgspec.DecodeError:
        return CHECKPOINT if arrival.subject == "checkpoints" else UNREADABLE


def origin(subject: str) -> tuple[str, str | None]:
    """Source and subject of what stands on a subject of the log: its owner's, and which task or session."""
    kind, *words = subject.split(".")
    match kind, words:
        case "tasks", [_, owner, task_id]:
            return f"/owners/{owner}", task_id
        case "sessions", [owner, *session_id] if session_id:
            return f"/owners/{owner}", ".".join(session_id)
        case _:
            return f"/{kind}", None


def _unread(arrival: Arrival, source: str, subject: str | None, sequence: str) -> CloudEvent:
    """What has no stamp of ours (or is no JSON at all): named by where it is and what it holds."""
    event = CloudEvent(
        specversion="1.0",
        id=f"{arrival.sequence}-{arrival.sha256}",
        source=source,
        type=type_of(arrival),
        sequence=sequence,
        subject=subject,
    )
    try:
        msgspec.json.decode(arrival.stored)
    except msgspec.DecodeError:
        encoded = base64.b64encode(arrival.stored).decode()
        return replace(event, datacontenttype="application/octet-stream", data_base64=encoded)
    return replace(event, datacontenttype="application/json", data=Raw(arrival.stored))

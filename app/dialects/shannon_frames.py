"""One of Shannon's events, and how a page, an SSE frame and a socket say it. Pure."""

from collections.abc import Set
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from eventstore.events import Json

RawType = Literal[
    "WORKFLOW_STARTED",
    "WORKFLOW_COMPLETED",
    "WORKFLOW_FAILED",
    "WORKFLOW_PAUSING",
    "WORKFLOW_PAUSED",
    "WORKFLOW_RESUMED",
    "WORKFLOW_CANCELLING",
    "WORKFLOW_CANCELLED",
    "AGENT_STARTED",
    "AGENT_COMPLETED",
    "AGENT_THINKING",
    "TOOL_INVOKED",
    "TOOL_OBSERVATION",
    "LLM_PARTIAL",
    "LLM_OUTPUT",
    "PROGRESS",
    "WAITING",
    "MESSAGE_RECEIVED",
    "HITL_RESPONSE",
    "APPROVAL_REQUESTED",
    "APPROVAL_DECISION",
    "RESEARCH_PLAN_READY",
    "RESEARCH_PLAN_APPROVED",
    "REVIEW_USER_FEEDBACK",
    "ERROR_OCCURRED",
    "ERROR_RECOVERY",
    "STATUS_UPDATE",
    "STREAM_END",
]
SSE_NAMES: dict[RawType, str] = {
    "LLM_PARTIAL": "thread.message.delta",
    "LLM_OUTPUT": "thread.message.completed",
    "ERROR_OCCURRED": "error",
    "STREAM_END": "done",
    "WORKFLOW_PAUSING": "workflow.pausing",
    "WORKFLOW_PAUSED": "workflow.paused",
    "WORKFLOW_RESUMED": "workflow.resumed",
    "WORKFLOW_CANCELLING": "workflow.cancelling",
    "WORKFLOW_CANCELLED": "workflow.cancelled",
}
"""What a stream calls them; it calls all others by their type."""
UNSTORED: frozenset[RawType] = frozenset({"LLM_PARTIAL"})
"""What no page and no session's history shows: streams only."""


class Event(Struct, kw_only=True, omit_defaults=True):
    """One event, as pages and sockets say it. `stream_id` is where a stream resumes."""

    workflow_id: str
    type: RawType
    agent_id: str = ""
    message: str = ""
    payload: dict[str, Json] = {}
    timestamp: datetime
    seq: int
    stream_id: str


def wanted(event: Event, types: Set[str]) -> bool:
    """Whether the event passes a filter, which may name it by its type or as a stream does. An empty one passes all."""
    return not types or event.type in types or SSE_NAMES.get(event.type) in types


def raw(event: Event) -> bytes:
    """The whole event as one line of JSON that any reader takes for one line."""
    return _one_line(event)


def sse_frame(event: Event) -> bytes:
    """The event as a stream says it."""
    name = SSE_NAMES.get(event.type, event.type)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.stream_id.encode(), name.encode(), _sse_body(event))


def _sse_body(event: Event) -> bytes:
    whose: dict[str, Json] = {"workflow_id": event.workflow_id, "agent_id": event.agent_id}
    said: dict[str, Json]
    match event.type:
        case "STREAM_END":
            return b"[DONE]"
        case "LLM_PARTIAL":
            # `message` repeats the text for the vendor's SDK, which keeps no other field of it.
            said = {"delta": event.message, "seq": event.seq, "stream_id": event.stream_id, "message": event.message}
        case "LLM_OUTPUT":
            said = {"response": event.message, "seq": event.seq, "stream_id": event.stream_id, "message": event.message}
            if event.payload:
                said["metadata"] = event.payload
        case "WORKFLOW_PAUSING" | "WORKFLOW_RESUMED" | "WORKFLOW_CANCELLING":
            said = {"message": event.message}
        case "WORKFLOW_PAUSED" | "WORKFLOW_CANCELLED":
            said = {"message": event.message} | event.payload
        case _:
            return _one_line(event)
    return _one_line(whose | said)


def _one_line(value: Event | dict[str, Json]) -> bytes:
    # Readers split lines as Unicode does, not only at line feeds: the vendor's SDK would drop half an event silently.
    encoded = msgspec.json.encode(value)
    for found, escaped in ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029")):
        encoded = encoded.replace(found, escaped)
    return encoded

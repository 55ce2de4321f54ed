"""What the log holds, for programs: JSON Schema and AsyncAPI of all facts, generated from their structs."""

import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import get_args

import msgspec

from app import __version__
from eventstore.events import Checkpoint, Fact, LogRecord, Record, SessionFact, SessionRecord, TaskFact, UnknownFact
from eventstore.log import CHECKPOINTS, PARTITIONS

Schema = dict[str, object]

TASK_FACTS: tuple[type[Fact], ...] = get_args(TaskFact)
SESSION_FACTS: tuple[type[Fact], ...] = get_args(SessionFact)
LOG_FACTS: tuple[type[Fact], ...] = (Checkpoint,)
RECORDS = (Record, SessionRecord, LogRecord)
A_LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")
"""One that ends no paragraph: a docstring's lines are as long as the code's."""


@cache
def facts_schema() -> bytes:
    """JSON Schema (2020-12) of a record as stored: of a task, of a session, of the log itself; its fact in it."""
    return _written(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "urn:tasktrail:facts",
            "title": "Tasktrail records",
            "description": "A record of the log as stored: `data:` of a stream, a message's payload in NATS.",
            "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in RECORDS],
            "$defs": _definitions("#/$defs/"),
        }
    )


@cache
def asyncapi() -> bytes:
    """AsyncAPI 3.0 of what can be followed: a task's stream, the audit feed, the log's subjects in NATS."""
    return _written(
        {
            "asyncapi": "3.0.0",
            "info": {
                "title": "Tasktrail",
                "version": __version__,
                "description": f"{ABOUT}\n\n{NEWER}",
                "license": {"name": "Apache-2.0"},
            },
            "defaultContentType": "application/json",
            "servers": SERVERS,
            "channels": _channels(),
            "operations": OPERATIONS,
            "components": {
                "schemas": _definitions("#/components/schemas/"),
                "messages": {
                    **{_tag(fact): _message(fact, "Record") for fact in TASK_FACTS},
                    **{_tag(fact): _message(fact, "SessionRecord") for fact in SESSION_FACTS},
                    **{_tag(fact): _message(fact, "LogRecord") for fact in LOG_FACTS},
                    "reset": RESET,
                },
                "securitySchemes": SECURITY,
            },
        }
    )


ABOUT = """\
Every change of a task's life is one fact in one log. What can be followed are the log's records as they are stored, \
by HTTP (server-sent events) or in NATS."""
NEWER = """\
New facts and new fields may come with any release: pass over what you do not know. A tag, a field's name and what it \
means are never changed."""
SSE = """\
Server-sent events, by `Accept: text/event-stream`. A frame is one record: `id:` is its event id, `event:` the tag of \
its fact (the message's name), `data:` the record, byte for byte as stored. `Last-Event-ID` resumes. """
SERVERS: Schema = {
    "http": {
        "host": "127.0.0.1:8080",
        "protocol": "http",
        "description": "The HTTP API, where `tasktrail serve` has it unless told otherwise.",
        "security": [{"$ref": "#/components/securitySchemes/token"}],
    },
    "nats": {
        "host": "127.0.0.1:4222",
        "protocol": "nats",
        "description": "The NATS that holds the log: JetStream's stream `TASKS`.",
        "security": [{"$ref": "#/components/securitySchemes/nats"}],
    },
}
SECURITY: Schema = {
    "token": {"type": "http", "scheme": "bearer", "description": "An access token."},
    "nats": {"type": "userPassword", "description": "A NATS user that may read the stream `TASKS`, and no more."},
}
RESET: Schema = {
    "name": "reset",
    "title": "Reset",
    "summary": "The cursor is of another life of the log: forget what was told, the whole story follows.",
    "payload": {
        "type": "object",
        "properties": {"reason": {"enum": ["unknown_cursor"]}},
        "required": ["reason"],
    },
}
OPERATIONS: Schema = {
    "followTask": {
        "action": "send",
        "title": "Follow a task",
        "channel": {"$ref": "#/channels/taskEvents"},
        "bindings": {
            "http": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "properties": {
                        "after": {"type": "string", "description": "an event id or a sequence: what comes after it"},
                        "token": {"type": "string", "description": "instead of a header, where none can be sent"},
                    },
                },
                "bindingVersion": "0.3.0",
            }
        },
    },
    "audit": {
        "action": "send",
        "title": "Follow the whole log",
        "channel": {"$ref": "#/channels/auditFeed"},
        "bindings": {"http": {"method": "GET", "bindingVersion": "0.3.0"}},
    },
    "appendToTask": {
        "action": "send",
        "title": "Append to a task's history",
        "channel": {"$ref": "#/channels/taskLog"},
    },
    "sign": {
        "action": "send",
        "title": "Sign what the log holds",
        "channel": {"$ref": "#/channels/checkpoints"},
    },
    "appendToSession": {
        "action": "send",
        "title": "Append to a session's history",
        "channel": {"$ref": "#/channels/sessionLog"},
    },
}
PARTITION: Schema = {
    "description": f"CRC-32 of the task id modulo {PARTITIONS}",
    "enum": [str(partition) for partition in range(PARTITIONS)],
}
OWNER: Schema = {"description": "whose it is: a name, or `x-` and its base32"}
TASK: Schema = {"description": "`task_` and a UUID"}


def _channels() -> Schema:
    task, session, of_log = (_references(facts) for facts in (TASK_FACTS, SESSION_FACTS, LOG_FACTS))
    reset: Schema = {"reset": {"$ref": "#/components/messages/reset"}}
    return {
        "taskEvents": {
            "address": "/tasks/{task_id}/events",
            "title": "A task's stream",
            "description": f"{SSE}The ending fact's frame is the last. Scope `tasks:read`, one's own tasks.",
            "servers": [{"$ref": "#/servers/http"}],
            "parameters": {"task_id": TASK},
            "messages": task | reset,
        },
        "auditFeed": {
            "address": "/events",
            "title": "The audit feed",
            "description": f"{SSE}Scope `audit`: one's own part of the log; with `audit:all`, all of it.",
            "servers": [{"$ref": "#/servers/http"}],
            "messages": task | session | of_log | reset,
        },
        "taskLog": {
            "address": "tasks.{partition}.{owner}.{task_id}",
            "title": "A task's history in the log",
            "description": "The subject of a task's records. All tasks: `tasks.>`.",
            "servers": [{"$ref": "#/servers/nats"}],
            "parameters": {"partition": PARTITION, "owner": OWNER, "task_id": TASK},
            "messages": task,
        },
        "sessionLog": {
            "address": "sessions.{owner}.{session_id}",
            "title": "A session's history in the log",
            "description": "The subject of a session's records. All sessions: `sessions.>`.",
            "servers": [{"$ref": "#/servers/nats"}],
            "parameters": {"owner": OWNER, "session_id": {"description": "the session"}},
            "messages": session,
        },
        "checkpoints": {
            "address": CHECKPOINTS,
            "title": "The signed checkpoints in the log",
            "description": "What the log held up to a sequence, signed.",
            "servers": [{"$ref": "#/servers/nats"}],
            "messages": of_log,
        },
    }


def _references(facts: tuple[type[Fact], ...]) -> Schema:
    return {_tag(fact): {"$ref": f"#/components/messages/{_tag(fact)}"} for fact in facts}


def _message(fact: type[Fact], record: str) -> Schema:
    schemas = "#/components/schemas/"
    return {
        "name": _tag(fact),
        "title": fact.__name__,
        "summary": _paragraphs(fact.__doc__ or ""),
        "correlationId": {"location": "$message.payload#/correlation_id"},
        "payload": {
            "allOf": [
                {"$ref": f"{schemas}{record}"},
                {"type": "object", "properties": {"fact": {"$ref": f"{schemas}{fact.__name__}"}}},
            ]
        },
    }


def _definitions(prefix: str) -> Schema:
    """The records and all that they are made of, by name; references begin with `prefix`."""
    _, found = msgspec.json.schema_components(RECORDS, ref_template=f"{prefix}{{name}}")
    found[UnknownFact.__name__] = _unknown(str(found[UnknownFact.__name__]["description"]))
    return {name: _plain(schema) for name, schema in found.items()}


def _unknown(description: str) -> Schema:
    """In the log an unknown fact is no struct of ours, but whatever a newer release wrote."""
    known = [_tag(fact) for fact in (*TASK_FACTS, *SESSION_FACTS, *LOG_FACTS)]
    return {
        "title": UnknownFact.__name__,
        "description": description,
        "type": "object",
        "properties": {"type": {"type": "string", "not": {"enum": known}}},
        "required": ["type"],
    }


def _plain(schema: object) -> object:
    """Without OpenAPI's discriminator, which neither kind of document knows; descriptions without the code's lines."""
    match schema:
        case dict():
            named = msgspec.convert(schema, Schema)
            return {
                name: _paragraphs(value) if name == "description" and isinstance(value, str) else _plain(value)
                for name, value in named.items()
                if name != "discriminator"
            }
        case list():
            return [_plain(one) for one in msgspec.convert(schema, list[object])]
        case _:
            return schema


def _paragraphs(docstring: str) -> str:
    return A_LINE_BREAK.sub(" ", inspect.cleandoc(docstring))


def _tag(fact: type[Fact]) -> str:
    return str(fact.__struct_config__.tag)


def _written(document: Schema) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


DOCUMENTS: dict[str, Callable[[], bytes]] = {"asyncapi.json": asyncapi, "facts.schema.json": facts_schema}
"""What there is, by the name that it is served and written under."""

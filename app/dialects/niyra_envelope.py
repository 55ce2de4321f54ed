"""What comes to Niyra's MCP endpoint, looked at before the SDK does: what is no message is refused in our words, and
a call's tool is known while an answer's headers can still be told."""

from typing import Annotated, Literal

import msgspec
from litestar.types import Receive, ReceiveMessage, Send
from mcp.server.streamable_http import check_accept_headers
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request

from app.mistakes import converted, decoded
from app.problems import BadRequest

NO_JSON, NO_MESSAGE, BAD_PARAMS = -32_700, -32_600, -32_602


class _Version(Struct):
    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET


class _Wish(Struct):
    """A request, or, without an id, a notification, to which nobody waits for an answer."""

    id: str | int | UnsetType = UNSET
    params: dict[str, object] | None = None


class _Fault(Struct):
    code: int
    message: str


class _Reply(Struct):
    """An answer to something that we never ask."""

    id: str | int | None
    result: dict[str, object] | UnsetType = UNSET
    error: _Fault | UnsetType = UNSET


class Call(Struct):
    """Which tool, with what."""

    name: Annotated[str, Meta(description="the name of a tool")]
    arguments: dict[str, object] | None = None


class NoMessage(Exception):
    """It is none that JSON-RPC or MCP knows; why is in our words."""

    def __init__(self, code: int, text: str, id: str | int | None = None, *, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.id = id
        self.status = status


class _Error(Struct):
    jsonrpc: str
    id: str | int | None
    error: _Fault


def check_head(request: Request) -> None:
    """What the SDK would refuse with a bare text, or with none. Raises NoMessage."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NoMessage(NO_MESSAGE, "Content-Type: application/json is wanted", status=415)
    if not all(check_accept_headers(request)):
        raise NoMessage(NO_MESSAGE, "Accept: application/json and text/event-stream are wanted, both", status=406)


def call_in(content: bytes) -> Call | None:
    """The call of a tool that a message is; None: it is another. Raises NoMessage."""
    try:
        message = decoded(content, dict[str, object])
    except BadRequest as error:
        raise NoMessage(NO_MESSAGE if error.mistakes else NO_JSON, str(error)) from error
    given = message.get("id")
    id = given if isinstance(given, str | int) and not isinstance(given, bool) else None
    try:
        said = converted(message, _Version)
        if said.method is UNSET:
            converted(message, _Reply)
            return None
        params = converted(message, _Wish).params
    except BadRequest as error:
        raise NoMessage(NO_MESSAGE, str(error), id) from error
    if said.method != "tools/call" or id is None:  # without an id it is no request
        return None
    try:
        return converted(params or {}, Call, at="params")
    except BadRequest as error:
        raise NoMessage(BAD_PARAMS, str(error), id) from error


async def refuse(error: NoMessage, send: Send) -> None:
    """As JSON-RPC has it."""
    body = msgspec.json.encode(_Error("2.0", error.id, _Fault(error.code, str(error))))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def again(content: bytes, receive: Receive) -> Receive:
    """A way to receive a body that was read, and then what else comes."""
    told = False

    async def receiving() -> ReceiveMessage:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return receiving

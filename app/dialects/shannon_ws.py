"""Shannon's stream over a WebSocket: who may not have it is told so over HTTP, before there is one."""

import msgspec
import structlog
from litestar import WebSocket, websocket
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.types import ControllerRouterHandler

from app.auth import Bearers, Revocations, credentials
from app.dialects.shannon import refusal_of
from app.dialects.shannon_asked import query_token
from app.dialects.shannon_stream import SOCKET, ShannonWords
from app.dialects.shannon_stream_routes import followed, workflow
from app.feed import TaskStream
from app.streams import Streams
from app.tasks import Tasks
from app.telling import Socket

log = structlog.stdlib.get_logger()

Asked = WebSocket[None, None, State]


# The framework would answer whoever is refused by a close code, which its server turns into a bare 403.
@websocket("/api/v1/stream/ws", opt={"exclude_from_auth": True})
async def stream_ws(
    socket: Asked,
    tasks: NamedDependency[Tasks],
    bearers: NamedDependency[Bearers],
    streams: NamedDependency[Streams],
    revocations: NamedDependency[Revocations],
) -> None:
    """A task's events as they come, each a message, to STREAM_END and a close with 1000. What the client says is not
    read."""
    try:
        query = socket.query_params
        principal = await bearers.authenticate(credentials(socket.headers, query_token(query)))
        principal.need("tasks:read")
        asked = followed(query)
        attached = await workflow(tasks, principal, asked.workflow_id)
        words = ShannonWords(tasks, attached.task_id, asked.position, asked.types, SOCKET)
        stream = TaskStream(tasks, streams, revocations, principal, attached.task_id, words, Socket())
        await stream(socket.scope, socket.receive, socket.send)
    except Exception as error:
        await _refuse(socket, error)


async def _refuse(socket: Asked, error: Exception) -> None:
    status_code, refusal, headers = refusal_of(error)
    if status_code == 500:
        log.error("http.fault", path=socket.scope["path"], exc_info=error)
    told = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    told.append((b"content-type", b"application/json"))
    body = msgspec.json.encode(refusal) + b"\n"
    await socket.send({"type": "websocket.http.response.start", "status": status_code, "headers": told})
    await socket.send({"type": "websocket.http.response.body", "body": body, "more_body": False})


HANDLERS: list[ControllerRouterHandler] = [stream_ws]

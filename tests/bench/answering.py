"""What a poll is measured against, as a process of its own: an answer's bytes, sent by a bare ASGI application under
uvicorn, or by a handler of FastAPI's. The port is the argument, the answer comes on standard input."""

import sys
from typing import Annotated

import msgspec
import uvicorn
from msgspec import Struct
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

from app.freezing import freeze


class Answer(Struct):
    """One that the service gave to somebody who polled with this credential."""

    credential: str
    headers: list[tuple[str, str]]
    body: str


def bare(answer: Answer) -> ASGI3Application:
    """Nothing but the bytes."""
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    body = answer.body.encode()

    async def application(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return application


def fastapi(answer: Answer) -> ASGI3Application:
    """A handler that looks up credential and task in dictionaries, and answers ready bytes."""
    # Imported here: the others do without it.
    from fastapi import FastAPI, Header, HTTPException, Response

    application = FastAPI()
    owners = {answer.credential: "dev"}
    task_id = msgspec.json.decode(answer.body, type=dict[str, object])["task_id"]
    bodies = {("dev", task_id): answer.body.encode()}
    headers = {name: value for name, value in answer.headers if not name.startswith("content-")}

    @application.get("/tasks/{task_id}")
    async def poll(task_id: str, authorization: Annotated[str, Header()]) -> Response:  # pyright: ignore[reportUnusedFunction]  # its decorator takes it
        body = bodies.get((owners.get(authorization, ""), task_id))
        if body is None:
            raise HTTPException(404)
        return Response(body, headers=headers, media_type="application/json")

    return application  # pyright: ignore[reportReturnType]  # starlette's ASGI types and uvicorn's differ in name


def serve(application: ASGI3Application, port: int) -> None:
    """Answer until killed, on what the service's own HTTP is made of."""
    config = uvicorn.Config(
        application,
        port=port,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=2048,
    )
    freeze()  # as the service does it
    uvicorn.Server(config).run()


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Answer)
    made = {"bare": bare, "fastapi": fastapi}[sys.argv[1]](given)
    serve(made, int(sys.argv[2]))

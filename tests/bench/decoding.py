"""What a creation over HTTP is measured against, as a process of its own: a handler of Litestar's that decodes the same
body into the same struct, and answers a few bytes. The port is the argument."""

import sys

import uvicorn
from litestar import Litestar, Response, post
from litestar.params import JSONBody

from app.dialects.native import NewTask
from app.freezing import freeze


@post("/tasks", status_code=201)
async def decode(data: JSONBody[NewTask]) -> Response[bytes]:
    """Take it, and say so."""
    del data
    return Response(b"{}", media_type="application/json")


if __name__ == "__main__":
    config = uvicorn.Config(
        Litestar([decode], openapi_config=None, logging_config=None),  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and uvicorn's differ in name
        port=int(sys.argv[1]),
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

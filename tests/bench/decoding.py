"""What a creation over HTTP is measured against, as a process of its own: a handler of Litestar's that decodes the same
body into the same struct, and answers a few bytes. The port is the argument."""

import sys

from litestar import Litestar, Response, post
from litestar.params import JSONBody

from app.dialects.native import NewTask
from tests.bench.answering import serve


@post("/tasks", status_code=201)
async def decode(data: JSONBody[NewTask]) -> Response[bytes]:
    """Take it, and say so."""
    del data
    return Response(b"{}", media_type="application/json")


if __name__ == "__main__":
    application = Litestar([decode], openapi_config=None, logging_config=None)
    serve(application, int(sys.argv[1]))  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and uvicorn's differ in name

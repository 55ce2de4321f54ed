"""HEAD, wherever there is a GET: the same answer without its body (RFC 9110, 9.3.2)."""

from litestar.types import ASGIApp, Message, Receive, Scope, Send


class Heads:
    """Asks by GET on behalf of whoever asks by HEAD. A stream ends with its head."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; of the answer to a HEAD only the head."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        said = False

        async def without_body(message: Message) -> None:
            nonlocal said
            if message["type"] == "http.response.start":
                await send(message)
            elif message["type"] == "http.response.body" and not said:
                # From here on the server tells whoever writes on that nobody is there.
                said = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        asked = scope.copy()
        asked["method"] = "GET"
        await self._app(asked, receive, without_body)

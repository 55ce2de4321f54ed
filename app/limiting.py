"""The door that counts: what a route costs its caller, and how every answer tells what is left.

A route says what it draws on by `opt={"limit": "niyra.execute"}`; one that says nothing costs nothing.
"""

import time
from collections.abc import Callable

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.dialects.budgets import HEADERS
from app.limits import Budget, Limits, RateLimited, Standing, dialect_of

STANDINGS = "standings"


class Limiting:
    """Inside, once it is known who asks: counts the request, or refuses it."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RateLimited, which is told in the dialect's words."""
        budget = budget_of(scope)
        if budget is not None and "user" in scope:
            try:
                scope["state"][STANDINGS] = await self._limits.draw(scope["user"], budget)
            except RateLimited as error:
                scope["state"][STANDINGS] = error.standings
                raise
        await self._app(scope, receive, send)


class Telling:
    """Outside, around whatever answers: adds the dialect's headers, to errors too."""

    def __init__(self, app: ASGIApp, limits: Limits, elsewhere: Callable[[str], Budget | None]) -> None:
        self._app = app
        self._limits = limits
        self._elsewhere = elsewhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`elsewhere` says which budget is told of on a path where no route is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = self._headers(scope)
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self._app(scope, receive, telling)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        budget = budget_of(scope) or self._elsewhere(scope["path"].removeprefix(scope["root_path"]))
        if budget is None:
            return []
        return told(self._limits, budget, scope["state"].get(STANDINGS))


def told(limits: Limits, budget: Budget, standings: list[Standing] | None) -> list[tuple[bytes, bytes]]:
    """How a budget's dialect tells of it."""
    # Whoever was not let in, or asked for nothing that is counted, is told what there is.
    headers = HEADERS[dialect_of(budget)](standings or limits.untouched(budget), time.time())
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def budget_of(scope: Scope) -> Budget | None:
    """What the route that answers draws on."""
    # Where no route is, or not for this method, there is no handler.
    return scope["route_handler"].opt.get("limit") if "route_handler" in scope else None

"""Niyra's calls as MCP tools, by the official SDK, for clients of the old and the new protocol."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import mcp_types as mcp
import msgspec
import structlog
from litestar.types import Receive, Scope, Send
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from msgspec import Struct
from starlette.requests import ClientDisconnect, Request

from app import __version__
from app.auth import Principal
from app.bounding import HELD
from app.bounds import Held
from app.dialects.asked import caused
from app.dialects.niyra import Answered, Executed, NewExecution, NewQuestion, Polled, refusal_of, render_polled
from app.dialects.niyra_calls import Caller, Calls
from app.dialects.niyra_envelope import NoMessage, again, call_in, check_head, refuse
from app.dialects.polling import find, rendered
from app.limiting import STANDINGS
from app.limits import Budget, Limits, RateLimited
from app.mistakes import converted
from app.problems import BadRequest
from app.settings import HttpSettings
from app.uploads import bounded

log = structlog.stdlib.get_logger()

SPENT = "spent"
Context = ServerRequestContext[object, Request]


class WantedTask(Struct, kw_only=True):
    """Which task."""

    task_id: str


class Tool(Struct, frozen=True, kw_only=True):
    """One tool: what it takes and gives, what it draws on, and the call that it is. `call` raises what `refusal_of` has
    words for."""

    name: str
    title: str
    description: str
    takes: type[Struct]
    gives: type[Struct]
    budget: Budget
    call: Callable[[Caller, dict[str, object]], Awaitable[bytes]]
    reads_only: bool = True


class Mcp:
    """The tools. They keep nothing between two requests, so any process answers any of them."""

    def __init__(self, calls: Calls, limits: Limits, http: HttpSettings) -> None:
        self._calls = calls
        self._limits = limits
        self._http = http
        self._tools = {tool.name: tool for tool in self._made()}
        self._listed = mcp.ListToolsResult(tools=[_shown(tool) for tool in self._tools.values()])
        server: Server[object] = Server(
            "niyra",
            version=__version__,
            title="Niyra",
            instructions=(
                "niyra_execute does something, niyra_ask finds something out. What takes longer than their window goes "
                "on: poll it with niyra_get_task, by the task_id that they give, until terminal is true."
            ),
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        server.middleware.clear()  # it has only telemetry in it
        self._manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=http.max_body_bytes)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """It answers while the context lasts. (The SDK's own context must end in the task that began it.)"""
        began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        over = asyncio.Event()

        async def answering() -> None:
            async with self._manager.run():
                began.set_result(None)
                await over.wait()

        running = asyncio.ensure_future(answering())
        await asyncio.wait({began, running}, return_when=asyncio.FIRST_COMPLETED)
        try:
            yield
        finally:
            over.set()
            await running

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, which is a POST and may be made. Raises BadRequest, TooLarge, TooSlow."""
        request = Request(scope, receive)  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and starlette's differ in name
        try:
            check_head(request)
            content = await bounded(request.stream(), self._http.max_body_bytes)
            call = call_in(content)
        except ClientDisconnect as error:  # nobody hears it, and it is no fault of ours
            raise BadRequest("the request was broken off") from error
        except NoMessage as error:
            await refuse(error, send)
            return
        if call is not None and (tool := self._tools.get(call.name)) is not None:
            await self._draw(scope, tool)
        await self._manager.handle_request(scope, again(content, receive), send)  # pyright: ignore[reportArgumentType]  # as above

    async def _draw(self, scope: Scope, tool: Tool) -> None:
        """Count the call now: its answer begins, headers and all, before the tool is called. Who has spent all is told
        so as a tool's error."""
        state = scope["state"]
        try:
            state[STANDINGS] = await self._limits.draw(scope["user"], tool.budget)
        except RateLimited as error:
            state[STANDINGS], state[SPENT] = error.standings, error

    async def _list(self, context: Context, params: mcp.PaginatedRequestParams | None) -> mcp.ListToolsResult:
        del context, params  # all have the same few
        return self._listed

    async def _call(self, context: Context, params: mcp.CallToolRequestParams) -> mcp.CallToolResult:
        tool = self._tools.get(params.name)
        try:
            if tool is None:
                raise BadRequest(f"no tool {params.name[:80]!r}; there are: {', '.join(self._tools)}")
            assert context.request is not None, "it came over HTTP"
            if (spent := context.request.scope["state"].get(SPENT)) is not None:
                raise spent
            return _told(await tool.call(_caller(context.request), dict(params.arguments or {})))
        except Exception as error:
            status, refusal, _ = refusal_of(error)
            if status == 500:
                log.error("http.fault", path="/mcp", exc_info=error)
            return _told(msgspec.json.encode(refusal), is_error=True)

    def _made(self) -> list[Tool]:
        return [
            Tool(
                name="niyra_execute",
                title="Do something",
                description=(
                    f"Have the assistant do something, and wait for it {self._http.niyra_execute_window_s:g} seconds "
                    "at most. approval_mode dry_run gives the "
                    "plan and does nothing; confirm gives the plan and a pending_task_id, which confirmed_task_id of a "
                    "second call approves. conversation_id goes on with an earlier conversation."
                ),
                takes=NewExecution,
                gives=Executed,
                budget="niyra.execute",
                call=self._execute,
                reads_only=False,
            ),
            Tool(
                name="niyra_ask",
                title="Ask something",
                description=(
                    "Have a question answered; nothing is changed. It waits for the answer "
                    f"{self._http.niyra_ask_window_s:g} seconds at most."
                ),
                takes=NewQuestion,
                gives=Answered,
                budget="niyra.ask",
                call=self._ask,
            ),
            Tool(
                name="niyra_get_task",
                title="Look at a task",
                description="How a task is getting on; its result, once terminal is true. Poll every few seconds.",
                takes=WantedTask,
                gives=Polled,
                budget="niyra.poll",
                call=self._get_task,
            ),
        ]

    async def _execute(self, caller: Caller, arguments: dict[str, object]) -> bytes:
        return (await self._calls.execute(caller, converted(arguments, NewExecution))).body

    async def _ask(self, caller: Caller, arguments: dict[str, object]) -> bytes:
        return (await self._calls.ask(caller, converted(arguments, NewQuestion))).body

    async def _get_task(self, caller: Caller, arguments: dict[str, object]) -> bytes:
        caller.principal.need("niyra:tasks:read")
        tasks = self._calls.tasks
        attached, _ = await find(tasks, caller.principal, converted(arguments, WantedTask).task_id)
        return await rendered(caller.held, tasks, attached, attached.task, "niyra", render_polled)


def _caller(request: Request) -> Caller:
    principal = request.scope["user"]
    held = request.scope["state"][HELD]
    assert isinstance(principal, Principal), "it was authenticated before"
    assert isinstance(held, Held), "and let in"
    cause = caused(principal, request.scope["state"]["request_id"], request.headers.get("traceparent"))
    return Caller(principal=principal, cause=cause, held=held)


def _told(body: bytes, *, is_error: bool = False) -> mcp.CallToolResult:
    text = mcp.TextContent(type="text", text=body.decode())
    return mcp.CallToolResult(content=[text], structured_content=msgspec.json.decode(body), is_error=is_error)


def _shown(tool: Tool) -> mcp.Tool:
    return mcp.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=_schema(tool.takes),
        output_schema=_schema(tool.gives),
        annotations=mcp.ToolAnnotations(read_only_hint=tool.reads_only, open_world_hint=True),
    )


def _schema(shape: type[Struct]) -> dict[str, object]:
    """JSON Schema of an object: what it refers to lies beside it, where MCP wants the object itself on top."""
    whole = msgspec.json.schema(shape)
    parts = whole["$defs"]
    top = parts.pop(whole["$ref"].rpartition("/")[2])
    return top | {"$defs": parts} if parts else top

"""The hot poll: whatever is answered in front of the framework is what the framework would have answered."""

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send
from msgspec import Struct
from structlog.testing import capture_logs

from app.api import POLLS, build
from app.commands import Command, FinishStep, ReceiveInput, RequestPause
from app.front import Front
from app.settings import HttpSettings, LimitSettings
from app.tasks import Done
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.server import EmbeddedServer
from eventstore.tokens import Dialect, Plan
from eventstore.tokens import Scope as TokenScope
from tests.api import CAUSE, DEV, Api, running
from tests.lifecycle.commands import complete, request_input, request_review, start_run, start_step
from tests.log.logs import SOON_S, until

Pairs = list[tuple[bytes, bytes]]
PATHS = (
    *("/tasks/{id}", "/tasks/{uuid}", "/tasks/{ID}", "/tasks/{id}/", "//tasks/{id}", "/tasks/{id}/events", "/tasks"),
    *("/v1/public/tasks/{id}", "/niyra/v1/public/tasks/{id}", "/shannon/api/v1/tasks/{id}", "/api/v1/tasks/{id}"),
    *("/api/v1/tasks/{uuid}", "/v1/tasks/{uuid}", "/nanonets/api/v1/tasks/{id}", "/nanonets/v1/tasks/{uuid}"),
    *("/tasks/task_01a2-no-id", "/tasks/{other}", "/api/v1/tasks/{other}", "/mcp/tasks/{id}", "/shannon/v1/tasks/{id}"),
)
KNOWN = ('"{version}"', '"1"', '"0{version}"', '"999999999"', "*", 'W/"{version}"', '"1", "{version}"', "odd", "")
ODD: tuple[Pairs, ...] = (
    [],
    [(b"accept", b"text/html"), (b"cookie", b"a=b; a=c"), (b"user-agent", b"\xff\xfe"), (b"te", b"trailers")],
    [(b"accept", b"text/event-stream"), (b"last-event-id", b"5"), (b"traceparent", b"00-" + b"a" * 32 + b"-b-01")],
    [(b"x-request-id", b"not usable \xff")],
    [(b"x-trace-id", b"trace-1"), (b"x-request-id", b"mine-1")],
    [(b"prefer", b"wait=0")],
    [(b"prefer", b"respond-async")],
    [(b"cache-control", b"no-cache")],
    [(b"origin", b"https://page.example")],
    [(b"content-length", b"0")],
    [(b"content-length", b"odd")],
    [(b"host", b"an odd host")],
    [(b"host", b"one.example"), (b"host", b"two.example")],
    [(b"if-none-match", b'"1"'), (b"if-none-match", b'"2"')],
    [(b"authorization", b"Bearer tt_unknown")],
    [(b"x-api-key", b"tt_unknown")],
    [(b"x-api-key", b"")],
    [(b"idempotency-key", b"k"), (b"upgrade", b"h2c"), (b"connection", b"upgrade")],
)
RANDOM = re.compile(rb"req_[0-9a-f-]{36}|[0-9a-f]{32}|[0-9a-f]{14}")
"""Where a request names none, each answer has a name of its own."""
SCOPES: dict[str, tuple[TokenScope, ...]] = {
    "tt_all": ("tasks:read", "tasks:write", "admin"),
    "tt_read": ("tasks:read",),
    "tt_niyra": ("niyra:tasks:read",),
    "tt_write": ("tasks:write",),
}
LIFE: tuple[Command, ...] = (
    start_run(1),
    start_step(0, run=1),
    FinishStep(run=1, step=0, kind="tool", name="search", output={"found": "é \u2028"}),
    request_input(1, run=1),
    ReceiveInput(text="the blue one"),
    start_run(2),
    request_review(2, run=2),
    RequestPause(),
)


class Wish(Struct, frozen=True):
    path: str
    headers: Pairs
    query: bytes = b""
    method: str = "GET"


class Answer(Struct):
    status: int
    headers: Pairs
    body: bytes

    def without_names(self) -> "Answer":
        headers = [
            (name, b"" if name[:2] == b"x-" and RANDOM.fullmatch(value) else value) for name, value in self.headers
        ]
        return Answer(self.status, headers, self.body)


class Behind:
    """The application behind the front, which counts what is handed over to it."""

    def __init__(self, api: Api) -> None:
        built = build(api.rooms)
        assert isinstance(built, Front)
        self.app: ASGIApp = built._app  # pyright: ignore[reportPrivateUsage]  # what it would have answered is the question
        self.api = api
        self.handed_over = 0
        self.front = Front(self, api.rooms, POLLS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.handed_over += 1
        await self.app(scope, receive, send)

    async def same(self, wish: Wish) -> bool:
        """Both answer the same; whether the front answered by itself."""
        before = self.handed_over
        # A wait, or when a budget is whole again, may become another just between the two; not twice at once.
        for again in (True, True, False):
            ours = (await asked(self.front, self.api, wish)).without_names()
            theirs = (await asked(self.app, self.api, wish)).without_names()
            if ours == theirs:
                break
            assert again, (wish, ours, theirs)
        return self.handed_over == before


async def asked(app: ASGIApp, api: Api, wish: Wish) -> Answer:
    """What it answers to a request as uvicorn passes it on."""
    told: list[Message] = []

    async def send(message: Message) -> None:
        told.append(message)

    async def receive() -> HTTPReceiveMessage:
        return {"type": "http.request", "body": b"", "more_body": False}

    path = api.rooms.http.root_path + wish.path
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 4_000),
        "scheme": "http",
        "method": wish.method,
        "root_path": api.rooms.http.root_path,
        "path": path,
        "raw_path": path.encode(),
        "query_string": wish.query,
        "headers": list(wish.headers),
        "state": {},
        "extensions": {},
    }
    await app(scope, receive, send)  # pyright: ignore[reportArgumentType]  # a scope is a dictionary
    body = b"".join(message["body"] for message in told[1:] if message["type"] == "http.response.body")
    assert told[0]["type"] == "http.response.start"
    return Answer(int(told[0]["status"]), list(told[0]["headers"]), body)


def bearing(secret: str, *more: tuple[bytes, bytes]) -> Pairs:
    return [(b"host", b"here.example:80"), (b"authorization", f"Bearer {secret}".encode()), *more]


@pytest.fixture(params=["", "/up"])
async def behind(nats_address: NatsAddress, request: pytest.FixtureRequest) -> AsyncGenerator[Behind]:
    """At the root, and below a path; pages of one other origin are let in."""
    http = HttpSettings(root_path=request.param, reads="bounded", cors_origins=("https://page.example",))
    async with running(nats_address, http=http) as api:
        for secret, scopes in SCOPES.items():
            await api.rooms.tokens.add(secret, DEV, scopes, plan=Plan(unlimited=True))
        dialects: tuple[Dialect, ...] = ("shannon", "nanonets", "native")
        for dialect in dialects:
            plan = Plan(unlimited=True)
            await api.rooms.tokens.add(f"sk_{dialect}", DEV, ("tasks:read",), dialect=dialect, plan=plan)
        await api.rooms.tokens.all()  # the tail has them
        yield Behind(api)


def whose() -> list[Pairs]:
    """Requests by all sorts of credentials."""
    bearers = [bearing(secret) for secret in (*SCOPES, "sk_shannon", "sk_nanonets", "sk_native", "tt_unknown")]
    keys = [[(b"x-api-key", secret)] for secret in (b"tt_all", b"sk-shannon-nanonets", b"tt_unknown", b"")]
    return [
        *bearers,
        *keys,
        [],
        [(b"authorization", b"bearer  tt_read ")],
        [(b"authorization", b"Basic tt_read")],
        [(b"x-api-key", b"tt_read"), (b"authorization", b"Bearer tt_unknown")],
    ]


def filled(path: str, task_id: TaskId, other: str) -> str:
    return path.format(id=task_id, uuid=task_id.removeprefix("task_"), ID=task_id.upper(), other=other)


async def test_the_front_answers_what_the_framework_does_whatever_comes_in_every_state_of_a_task(behind: Behind):
    task_id = await behind.api.begin()
    other = "task_01a20203-a68a-7033-bde7-c37c65e41c2e"
    answered = 0
    for command in (None, *LIFE, complete(2)):
        if command is not None:
            await behind.api.rooms.tasks.execute(DEV, task_id, command, CAUSE)
        attached = behind.api.rooms.tasks.at_hand(DEV, task_id)
        assert attached is not None
        version = attached.task.version
        known: list[Pairs] = [[(b"if-none-match", one.format(version=version).encode())] for one in KNOWN]
        for path in PATHS:
            where = filled(path, task_id, other)
            for headers in (*whose(), *(bearing("tt_all") + more for more in known)):
                answered += await behind.same(Wish(where, headers))
    assert answered > 500


async def test_the_front_answers_what_the_framework_does_to_odd_requests(behind: Behind):
    task_id = await behind.api.begin(start_run(1))
    answered = 0
    for path, odd in product(PATHS, ODD):
        if path.endswith("/events"):
            continue  # a stream, which does not end
        where = filled(path, task_id, "task_01a20203-a68a-7033-bde7-c37c65e41c2e")
        answered += await behind.same(Wish(where, bearing("tt_all", *odd)))
    for path, query in product(PATHS[:15], (b"at=1", b"x", b"token=tt_all", b"&", b"%", b"api_key=tt_all")):
        where = filled(path, task_id, "task_none")
        assert not await behind.same(Wish(where, bearing("tt_all"), query))
    for path, method in product(PATHS[:2] + PATHS[7:12], ("HEAD", "OPTIONS", "DELETE", "PUT")):
        assert not await behind.same(Wish(filled(path, task_id, ""), bearing("tt_all"), method=method))
    assert answered > 50


async def test_a_plain_poll_does_not_wake_the_framework_in_any_dialect(behind: Behind):
    task_id = await behind.api.begin()
    for path in (*PATHS[:3], *PATHS[7:15]):
        where = filled(path, task_id, "")
        assert await behind.same(Wish(where, bearing("tt_all"))), path
        assert await behind.same(Wish(where, bearing("tt_all", (b"if-none-match", b'"1"')))), path


async def test_a_task_with_what_is_too_large_for_its_view_is_the_frameworks(behind: Behind):
    task_id = await behind.api.begin(start_run(1), complete(1, result="x" * 400_000))
    assert not await behind.same(Wish(f"/tasks/{task_id}", bearing("tt_all")))


async def test_an_answer_that_is_written_in_pieces_is_the_frameworks(behind: Behind):
    task_id = await behind.api.begin(start_run(1), complete(1, result="x" * 100_000))
    assert not await behind.same(Wish(f"/tasks/{task_id}", bearing("tt_all")))


async def test_both_count_and_log_an_answer_in_the_same_way(behind: Behind):
    task_id = await behind.api.begin()
    for path in PATHS[7:15]:
        wish = Wish(filled(path, task_id, ""), bearing("tt_all", (b"x-request-id", b"mine")))
        seen: list[list[dict[str, object]]] = []
        for app in (behind.front, behind.app):
            before = behind.api.metric("http_requests_total", status="200")
            with capture_logs() as logs:
                await asked(app, behind.api, wish)
            seen.append([{**one, "took_ms": 0} for one in logs])
            assert behind.api.metric("http_requests_total", status="200") == before + 1
        assert seen[0] == seen[1]
    assert behind.handed_over == 0


async def test_a_revoked_or_expired_token_is_refused_within_a_second(behind: Behind):
    task_id = await behind.api.begin()
    tokens = behind.api.rooms.tokens
    soon = datetime.now(UTC) + timedelta(seconds=1)
    await tokens.add("tt_soon", DEV, ("tasks:read",), expires_at=soon)
    brief, read = (Wish(f"/tasks/{task_id}", bearing(secret)) for secret in ("tt_soon", "tt_read"))
    assert (await asked(behind.front, behind.api, read)).status == 200
    assert (await asked(behind.front, behind.api, brief)).status == 200
    found = [token for token in await tokens.all() if token.scopes == ("tasks:read",) and not token.dialect]
    assert await tokens.revoke(next(token.id for token in found if token.expires_at is None))
    for wish in (read, brief):
        async with asyncio.timeout(SOON_S):
            while (await asked(behind.front, behind.api, wish)).status == 200:  # noqa: ASYNC110  # a second is the promise
                await asyncio.sleep(0.02)
        assert (await asked(behind.front, behind.api, wish)).status == 401
        await behind.same(wish)
    assert datetime.now(UTC) >= soon


async def test_polls_in_front_and_behind_draw_on_one_budget_and_are_refused_together(nats_address: NatsAddress):
    limits = LimitSettings(niyra_poll_limit=6, native_limit=6, nanonets_limit=6)
    async with running(nats_address, http=HttpSettings(reads="bounded", limits=limits)) as api:
        behind = Behind(api)
        await api.rooms.tokens.add("tt_all", DEV, SCOPES["tt_all"])
        await api.rooms.tokens.all()
        task_id = await api.begin()
        for path in ("/v1/public/tasks", "/tasks", "/nanonets/v1/tasks"):
            wish = Wish(f"{path}/{task_id}", bearing("tt_all"))
            left: list[int] = []
            for n in range(6):
                answer = await asked((behind.front, behind.app)[n % 2], api, wish)
                assert answer.status == 200
                left += [int(value) for name, value in answer.headers if name == b"x-ratelimit-remaining"]
            assert left in ([], [5, 4, 3, 2, 1, 0])
            assert behind.handed_over == 0
            for app in (behind.front, behind.app):
                assert (await asked(app, api, wish)).status == 429
            behind.handed_over = 0


async def test_a_poll_has_seen_what_another_process_was_told_before(nats_address: NatsAddress):
    async with running(nats_address) as writing, running(nats_address) as reading:
        task_id = await writing.begin(start_run(1))
        behind = Behind(reading)
        wish = Wish(f"/tasks/{task_id}", bearing(reading.token))
        await asked(behind.front, reading, wish)
        behind.handed_over = 0
        for n in range(30):
            done = await writing.rooms.tasks.execute(DEV, task_id, ReceiveInput(text=str(n)), CAUSE)
            assert isinstance(done, Done)
            answers = await asyncio.gather(*(asked(behind.front, reading, wish) for _ in range(3)))
            for answer in answers:
                assert (b"etag", b'"%d"' % done.task.version) in answer.headers
        assert behind.handed_over == 0


async def test_a_log_that_goes_away_is_told_as_the_framework_tells_it(server: EmbeddedServer):
    async with running(server.address, http=HttpSettings(reads="strict")) as api:
        task_id = await api.begin(start_run(1))
        behind, wish = Behind(api), Wish(f"/tasks/{task_id}", bearing(api.token))
        assert (await asked(behind.front, api, wish)).status == 200
        await server.kill()
        for _ in range(3):
            for answer in await asyncio.gather(*(asked(app, api, wish) for app in (behind.front, behind.app))):
                assert answer.status == 503 or (answer.status == 200 and b"age" in dict(answer.headers))
        await server.restart()
        await until(lambda: api.rooms.tasks.tail.proven)
        answer = await asked(behind.front, api, wish)
        assert (answer.status, b"age" in dict(answer.headers)) == (200, False)

"""The plain creation: what is answered in front of the framework is what the framework would have answered."""

import json
import re
from collections.abc import AsyncGenerator

import pytest
from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send
from msgspec import Struct
from structlog.testing import capture_logs

from app.api import build
from app.beginning import LARGEST, Beginning
from app.front import Front
from app.settings import HttpSettings, LimitSettings
from eventstore.connection import NatsAddress
from eventstore.server import EmbeddedServer
from eventstore.tokens import Plan
from tests.api import DEV, Api, running
from tests.log.logs import until

Pairs = list[tuple[bytes, bytes]]
TASK = re.compile(rb"task_[0-9a-f-]{36}|req_[0-9a-f-]{36}")
CHANGES = re.compile(rb'"(sequence|created_at|updated_at|deadline)":("[^"]*"|\d+)')
PLAIN = b'{"input": {"text": "the tides"}, "title": "A brief", "metadata": {"a": [1, 2.5, null]}}'
BODIES = (
    PLAIN,
    b"{}",
    b'{"agent":"simulator","input":"x","session_id":"s-1","timeout_s":60,"max_failures":3,"approval_mode":"confirm"}',
    b'{"agent":"nobody"}',
    b'{"max_failures":"3"}',
    b'{"max_failures":0}',
    b'{"unknown":1}',
    b'{"input":NaN}',
    b'{"input":1e400}',
    b'{"input":"\xff"}',
    b'{"input":"\\ud800"}',
    b"[" * 2000,
    b'{"input":' + b"[" * 120 + b"]" * 120 + b"}",
    b'{"metadata":{"a":"%b"}}' % (b"x" * 17_000),
    b'{"input":"%b"}' % (b"x" * LARGEST),
    b"",
    b"null",
)
ODD: tuple[Pairs, ...] = (
    [],
    [(b"x-request-id", b"mine-1"), (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")],
    [(b"x-request-id", b"not usable \xff"), (b"traceparent", b"\xff")],
    [(b"prefer", b"wait=0")],
    [(b"origin", b"https://page.example")],
    [(b"host", b"an odd host")],
    [(b"content-encoding", b"gzip")],
    [(b"cache-control", b"no-cache"), (b"accept", b"text/html")],
    [(b"x-api-key", b"")],
    [(b"x-api-key", b"tt_read")],
)


class Wish(Struct, frozen=True):
    body: bytes = PLAIN
    headers: Pairs = []
    path: str = "/tasks"
    token: bytes = b"tt_all"
    kind: bytes = b"application/json"
    query: bytes = b""
    pieces: int = 1
    left: bool = False


class Answer(Struct):
    status: int
    headers: Pairs
    body: bytes

    def alike(self) -> "Answer":
        """Without what is another for each task."""
        headers = [(name, TASK.sub(b"", value)) for name, value in self.headers if name != b"content-length"]
        return Answer(self.status, headers, CHANGES.sub(b"", TASK.sub(b"", self.body)))


class Behind:
    """The application behind, which counts what is handed over to it."""

    def __init__(self, api: Api) -> None:
        front = build(api.rooms)
        assert isinstance(front, Front)
        beginning = front._app  # pyright: ignore[reportPrivateUsage]  # what is behind it is the question
        assert isinstance(beginning, Beginning)
        self.app: ASGIApp = beginning._app  # pyright: ignore[reportPrivateUsage]  # the same
        self.api = api
        self.handed_over = 0
        self.beginning = Beginning(self, api.rooms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.handed_over += 1
        await self.app(scope, receive, send)

    async def same(self, wish: Wish) -> bool:
        """Both answer the same, and log the same; whether it was answered in front."""
        before = self.handed_over
        with capture_logs() as ours_said:
            ours = (await asked(self.beginning, self.api, wish)).alike()
        with capture_logs() as theirs_said:
            theirs = (await asked(self.app, self.api, wish)).alike()
        assert ours == theirs, wish
        lines = [
            [{**line, "took_ms": 0, "request_id": ""} for line in said if line["event"] == "http.request"]
            for said in (ours_said, theirs_said)
        ]
        assert lines[0] == lines[1]
        return self.handed_over == before


async def asked(app: ASGIApp, api: Api, wish: Wish) -> Answer:
    """What it answers to a request as uvicorn passes it on."""
    told: list[Message] = []
    size = max(1, -(-len(wish.body) // wish.pieces))
    coming = [wish.body[at : at + size] for at in range(0, max(1, len(wish.body)), size)]

    async def send(message: Message) -> None:
        told.append(message)

    async def receive() -> HTTPReceiveMessage:
        if wish.left or not coming:
            return {"type": "http.disconnect"}  # pyright: ignore[reportReturnType]  # whoever receives may be told this
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    names = {name for name, _ in wish.headers}
    headers = [
        (b"host", b"here.example:80"),
        (b"authorization", b"Bearer " + wish.token),
        (b"content-type", wish.kind),
        (b"content-length", str(len(wish.body)).encode()),
    ]
    path = api.rooms.http.root_path + wish.path
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 4_000),
        "scheme": "http",
        "method": "POST",
        "root_path": api.rooms.http.root_path,
        "path": path,
        "raw_path": path.encode(),
        "query_string": wish.query,
        "headers": [*(one for one in headers if one[0] not in names), *wish.headers],
        "state": {},
        "extensions": {},
    }
    await app(scope, receive, send)  # pyright: ignore[reportArgumentType]  # a scope is a dictionary
    body = b"".join(message["body"] for message in told[1:] if message["type"] == "http.response.body")
    assert told[0]["type"] == "http.response.start"
    return Answer(int(told[0]["status"]), list(told[0]["headers"]), body)


@pytest.fixture(params=["", "/up"])
async def behind(nats_address: NatsAddress, request: pytest.FixtureRequest) -> AsyncGenerator[Behind]:
    """At the root, and below a path."""
    http = HttpSettings(
        root_path=request.param, cors_origins=("https://page.example",), limits=LimitSettings(native_limit=1_000)
    )
    async with running(nats_address, http=http) as api:
        await api.rooms.tokens.add("tt_all", DEV, ("tasks:read", "tasks:write"), plan=Plan(unlimited=True))
        await api.rooms.tokens.add("tt_read", DEV, ("tasks:read",), plan=Plan(unlimited=True))
        await api.rooms.tokens.add("tt_once", DEV, ("tasks:write",), plan=Plan(limits={"native": 3}))
        await api.rooms.tokens.all()  # the tail has them
        yield Behind(api)


async def test_whatever_is_asked_for_is_answered_as_the_framework_does(behind: Behind):
    answered = [wish for wish in map(lambda body: Wish(body=body), BODIES) if await behind.same(wish)]
    assert [wish.body for wish in answered] == [*BODIES[:3]]
    for headers in ODD:
        await behind.same(Wish(headers=headers))
    for wish in (
        *(Wish(token=token) for token in (b"tt_read", b"tt_unknown", b"", b" tt_all ")),
        *(Wish(kind=kind) for kind in (b"text/plain", b"application/json; charset=utf-8", b"")),
        *(Wish(path=path) for path in ("/tasks/", "//tasks", "/task", "/tasks/x")),
        Wish(query=b"a=b"),
        Wish(pieces=3),
        Wish(left=True),
    ):
        assert not await behind.same(wish), wish
    assert await behind.same(Wish(headers=[(b"x-api-key", b"tt_all")], token=b"tt_unknown"))


async def test_a_key_is_the_frameworks(behind: Behind):
    wish = Wish(headers=[(b"idempotency-key", b"k1")])
    assert (await asked(behind.beginning, behind.api, wish)).status == 201
    assert behind.handed_over == 1
    assert not await behind.same(wish)


async def test_what_is_begun_is_in_the_log_and_says_who_asked(behind: Behind):
    mine = [(b"x-request-id", b"mine-1"), (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
    answers = [await asked(app, behind.api, Wish(headers=mine)) for app in (behind.beginning, behind.app)]
    logged = [await behind.api.rooms.tasks.log.read(DEV, json.loads(one.body)["task_id"]) for one in answers]
    ours, theirs = (recorded.record for (recorded,) in logged)
    assert (ours.actor, ours.causation_id, ours.correlation_id, ours.traceparent, ours.fact) == (
        theirs.actor,
        theirs.causation_id,
        theirs.correlation_id,
        theirs.traceparent,
        theirs.fact,
    )
    assert ours.causation_id == "mine-1"
    assert behind.handed_over == 0


async def test_a_budget_is_one_whoever_answers(behind: Behind):
    wish = Wish(token=b"tt_once")
    apps = [behind.beginning, behind.app, behind.beginning, behind.beginning, behind.app]
    assert [(await asked(app, behind.api, wish)).status for app in apps] == [201, 201, 201, 429, 429]


async def test_a_revoked_token_begins_nothing(behind: Behind):
    assert (await asked(behind.beginning, behind.api, Wish())).status == 201
    tokens = behind.api.rooms.tokens
    (known,) = [one for one in await tokens.all() if one.owner == DEV and one.id == tokens_id(behind)]
    await tokens.revoke(known.id)
    await until(lambda: behind.api.rooms.bearers.at_hand("tt_all") is None)
    assert (await asked(behind.beginning, behind.api, Wish())).status == 401


def tokens_id(behind: Behind) -> str:
    found = behind.api.rooms.bearers.at_hand("tt_all")
    assert found is not None
    return found[0].id


async def test_a_log_that_is_away_is_told_as_the_framework_tells_it(server: EmbeddedServer):
    async with running(server.address) as api:
        await api.rooms.tokens.add("tt_all", DEV, ("tasks:write",), plan=Plan(unlimited=True))
        await api.rooms.tokens.all()
        behind = Behind(api)
        assert await behind.same(Wish())
        await server.kill()
        await until(lambda: not api.rooms.connection.connected)
        ours = await asked(behind.beginning, api, Wish())
        assert (ours.status, json.loads(ours.body)["code"]) == (503, "log_unavailable")

"""What a person on call sees: `/metrics` of one API shows the whole deployment, whoever of it is dead or cut off."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import msgspec
from msgspec import Struct
from prometheus_client import Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.agents.agent import Agent, Brief, ReadClock, Work
from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.commands import CreateTask
from app.metrics import Metrics, exposition
from app.projecting import run_projector
from app.settings import AgentSettings, LogSettings, WorkerSettings
from app.tasks import Done
from app.worker import run_worker
from eventstore.connection import Connection, NatsAddress
from eventstore.figures import asking, telling
from eventstore.server import EmbeddedServer
from tests.api import CAUSE, DEV, Api, running
from tests.log.logs import SOON_S, stopped


class Shown(Struct):
    """A page of metrics, as Prometheus reads it."""

    families: list[Metric]

    def values(self, name: str, **labels: str) -> list[float]:
        """The samples of this name that have at least these labels."""
        return [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == f"tasktrail_{name}" and labels.items() <= sample.labels.items()
        ]

    def total(self, name: str, **labels: str) -> float:
        return sum(self.values(name, **labels))

    @property
    def processes(self) -> set[str]:
        return {sample.labels["process"] for family in self.families for sample in family.samples}


async def scrape(api: Api) -> Shown:
    answer = await api.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Shown(list(text_string_to_metric_families(answer.text)))


async def scrape_until(api: Api, condition: Callable[[Shown], bool]) -> Shown:
    """The first page of which this is true."""
    shown = None
    try:
        async with asyncio.timeout(SOON_S):
            while not condition(shown := await scrape(api)):  # noqa: ASYNC110  # figures announce nothing
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise AssertionError(f"still not so: {shown}") from error
    return shown


@asynccontextmanager
async def beside(work: Awaitable[None]) -> AsyncGenerator[None]:
    """This runs while the context lasts."""
    running = asyncio.ensure_future(work)
    try:
        yield
    finally:
        assert not running.done(), "it ended by itself"
        running.cancel()
        await asyncio.wait({running})


class Broken:
    """An agent with a bug."""

    name = "broken"
    description = "Divides by zero."
    limit = 32

    def run(self, brief: Brief) -> Work:
        yield ReadClock()
        raise ZeroDivisionError(brief.task_id)


AGENTS: list[Agent] = [Simulator(), Broken()]


def worker(nats: NatsAddress, name: str = "worker-1") -> Awaitable[None]:
    agents = Catalogue(AGENTS, default="simulator")
    return run_worker(LogSettings(nats=nats), agents, WorkerSettings(slots=4), name)


def projector(nats: NatsAddress, *, limit: int = 32) -> Awaitable[None]:
    return run_projector(LogSettings(nats=nats), AgentSettings(limit=limit), WorkerSettings())


async def submit(api: Api, agent: str = "simulator", *steps: dict[str, object], **more: object) -> str:
    asked = {"agent": agent, "input": {"steps": list(steps)}, **more}
    answer = await api.client.post("/tasks", json=asked)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["task_id"])


async def test_one_page_shows_the_whole_deployment(nats_address: NatsAddress):
    async with running(nats_address) as api, beside(projector(nats_address)), beside(worker(nats_address)):
        await scrape_until(api, lambda shown: shown.processes == {"api", "worker", "projector"})
        await submit(api, "simulator", {"tool": "search"}, {"complete": "done"})
        await submit(api, "simulator", {"ask": "which?"})
        shown = await scrape_until(
            api,
            lambda shown: (
                shown.total("facts_appended_total", tag="task.completed") == 1
                and shown.total("runs_set_down_total") == 1
                and shown.total("leases_held") == 0
            ),
        )
        assert shown.total("facts_appended_total", tag="task.created", process="api") == 2
        assert shown.total("facts_appended_total", tag="task.tool_used", process="worker") == 1
        assert shown.total("append_seconds_count") == shown.total("facts_appended_total")
        assert shown.total("append_seconds_bucket", le="+Inf") == shown.total("append_seconds_count")
        assert shown.values("runs_begun_total", agent="simulator", instance="worker-1") == [2]
        assert shown.values("free_slots", process="worker") == [4]
        assert shown.values("dispatcher_leads", process="projector") == [1]
        assert shown.values("offers_total", agent="simulator", process="projector") == [2]
        assert shown.total("http_requests_total", status="201", process="api") == 2
        assert shown.values("attached_tasks", process="api") == [2]
        assert shown.values("nats_connected", process="api") == [1]
        assert len(shown.values("tail_recreations_total", process="worker")) == 1
        await scrape_until(
            api, lambda shown: shown.values("live_tasks", agent="simulator", status="waiting_for_input") == [1]
        )


async def test_work_that_waits_is_seen_by_agent(nats_address: NatsAddress):
    async with running(nats_address) as api, beside(projector(nats_address, limit=1)):
        for _ in range(3):
            await submit(api)
        shown = await scrape_until(
            api, lambda shown: shown.values("live_tasks", agent="simulator", status="queued") == [2]
        )
        assert shown.values("tasks_in_slots", agent="simulator") == [1]
        assert shown.values("tasks_waiting", agent="simulator") == [2]
        assert shown.values("queue_depth", agent="simulator") == [1]
        assert shown.total("live_tasks") == 3
        assert shown.total("facts_appended_total", tag="task.queued", process="projector") == 2


async def test_an_agent_that_breaks_is_seen_and_so_is_its_retry(nats_address: NatsAddress):
    async with running(nats_address) as api, beside(projector(nats_address)), beside(worker(nats_address)):
        done = await api.rooms.tasks.create(DEV, CreateTask(agent="broken", fingerprint="f1"), CAUSE)
        assert isinstance(done, Done)
        shown = await scrape_until(api, lambda shown: shown.total("runs_begun_total", agent="broken") >= 2)
        assert shown.total("runs_failed_total", agent="broken", process="worker") >= 1
        assert shown.total("timers_fired_total", kind="retry", process="projector") >= 1


async def test_a_dead_process_is_missing_and_delays_nobody(nats_address: NatsAddress):
    async with running(nats_address) as api, beside(projector(nats_address)):
        async with beside(worker(nats_address, "worker-1")), beside(worker(nats_address, "worker-2")):
            shown = await scrape_until(api, lambda shown: len(shown.values("free_slots")) == 2)
            assert shown.values("free_slots", instance="worker-2") == [4]
        shown = await scrape_until(api, lambda shown: shown.processes == {"api", "projector"})
        assert shown.values("free_slots") == []


async def test_of_two_projectors_one_leads_and_only_it_counts_tasks(nats_address: NatsAddress):
    async with running(nats_address) as api, beside(projector(nats_address)), beside(projector(nats_address)):
        await submit(api)
        shown = await scrape_until(
            api, lambda shown: sorted(shown.values("dispatcher_leads")) == [0, 1] and shown.total("live_tasks") > 0
        )
        assert shown.total("live_tasks") == 1


async def test_without_nats_the_api_shows_its_own_figures(server: EmbeddedServer):
    async with running(server.address) as api, beside(projector(server.address)):
        await api.begin()
        await scrape_until(api, lambda shown: "projector" in shown.processes)
        with stopped(server):  # it takes what it is sent and says nothing
            shown = await scrape(api)
            assert shown.processes == {"api"}
            assert shown.total("facts_appended_total") == 1
        await server.kill()
        shown = await scrape_until(api, lambda shown: shown.values("nats_connected") == [0])
        assert shown.total("facts_appended_total") == 1
        await server.restart()
        await scrape_until(api, lambda shown: "projector" in shown.processes)


async def test_every_metric_is_documented_and_says_its_unit(nats_address: NatsAddress):
    async with running(nats_address) as api, beside(projector(nats_address)), beside(worker(nats_address)):
        shown = await scrape_until(api, lambda shown: shown.processes == {"api", "worker", "projector"})
        assert len({family.name for family in shown.families}) == len(shown.families) > 20
        for family in shown.families:
            assert re.fullmatch(r"tasktrail_[a-z_]+", family.name)
            assert len(family.documentation.split()) >= 2, family.name
            assert not re.search(r"_(ms|millis|minutes|kb|mb)(_|$)", family.name)
            for sample in family.samples:
                assert {"process", "instance"} <= sample.labels.keys()
                assert (family.type == "counter") == sample.name.endswith("_total"), sample.name


async def test_beyond_loopback_the_figures_need_an_admin(nats_address: NatsAddress):
    from_afar = {"X-Forwarded-For": "192.0.2.1"}  # as a proxy on this machine says it
    async with running(nats_address) as api, httpx.AsyncClient(base_url=api.url, headers=from_afar) as stranger:
        await api.rooms.tokens.add("tt_reader", DEV, ("tasks:read",))
        assert (await stranger.get("/metrics")).status_code == 401
        assert (await stranger.get("/metrics", headers={"X-API-Key": "tt_reader"})).status_code == 403
        assert (await stranger.get("/metrics", headers=api.bearer)).status_code == 200


async def test_whoever_is_known_is_waited_for_and_nobody_else(nats_address: NatsAddress):
    connection = await Connection.open(nats_address, "tests")
    try:
        async with asking(connection) as figures, asyncio.timeout(SOON_S):
            assert await figures.ask(wait_s=0.05) == {}
            async with telling(connection, "one", Telling(b"1").tell):
                late = Telling(b"2", late=True)
                async with telling(connection, "two", late.tell):
                    assert await figures.ask(wait_s=0.5) == {"one": b"1"}
                    late.may_tell.set()
                    # Its answer came too late, but made it known.
                    while await figures.ask(wait_s=SOON_S) != {"one": b"1", "two": b"2"}:
                        continue
    finally:
        await connection.close()


async def test_an_answer_that_cannot_be_read_spoils_nothing(nats_address: NatsAddress):
    async with running(nats_address) as api:
        junk = (b"\xc1", b"", msgspec.msgpack.encode({"process": "api"}))
        async with AsyncExitStack() as stack:
            for n, one in enumerate(junk):
                await stack.enter_async_context(telling(api.rooms.connection, f"junk-{n}", Telling(one).tell))
            assert (await scrape(api)).processes == {"api"}


def test_a_name_that_another_release_uses_otherwise_is_shown_once():
    ours, theirs = Metrics("worker", "new"), Metrics("worker", "old")
    ours.gauge("doubtful", "A gauge", lambda: 1)
    Counter("tasktrail_doubtful", "A counter", registry=theirs.registry)
    text = exposition([ours.figures(), theirs.figures()]).decode()
    assert text.count("# TYPE tasktrail_doubtful") == 1
    shown = Shown(list(text_string_to_metric_families(text)))
    assert shown.values("doubtful", instance="new") == [1]
    assert len(shown.values("append_conflicts_total")) == 2


class Telling:
    """A process that tells this, at once or when it may."""

    def __init__(self, told: bytes, *, late: bool = False) -> None:
        self._told = told
        self.may_tell = asyncio.Event()
        if not late:
            self.may_tell.set()

    async def tell(self) -> bytes:
        await self.may_tell.wait()
        return self._told

"""The tests' NATS: the one at TASKTRAIL_TEST_NATS_URL, else a container where Docker answers, else the embedded one.

And the views' two databases: whatever takes `views_url` or `database` runs once with each.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from app.freezing import freeze
from eventstore.connection import Connection, NatsAddress, hidden
from eventstore.server import EmbeddedServer
from projections.database import Database
from tests.projections.databases import Cluster, cluster

NATS_URL = os.environ.get("TASKTRAIL_TEST_NATS_URL", "")
IMAGE = "nats:2.12-alpine"
PING = "import docker; docker.from_env(timeout=2).ping()"


@cache
def nats_source() -> Literal["url", "container", "embedded"]:
    """Which of the three kinds of NATS this run has."""
    if NATS_URL:
        return "url"
    try:
        # In a process of its own: bounded as a whole, and Docker's client leaves its socket open where nobody answers.
        answer = subprocess.run([sys.executable, "-c", PING], capture_output=True, timeout=5)
    except subprocess.TimeoutExpired:
        return "embedded"
    return "embedded" if answer.returncode else "container"


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore Ctrl-C; all that is begun here would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    match nats_source():
        case "url":
            return f"NATS: {hidden(NATS_URL)} (TASKTRAIL_TEST_NATS_URL); every test deletes all its streams"
        case "container":
            return f"NATS: {IMAGE} by testcontainers"
        case "embedded":
            return "NATS: the embedded nats-server, a new one for each test"


def pytest_xdist_auto_num_workers() -> int | None:
    """Three for every two cores: about half of what the tests take is waiting, for leases to end and for heartbeats."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return max(2, (os.cpu_count() or 1) * 3 // 2)


def pytest_collection_finish() -> None:
    """As the service does it: what is there before the first test stays, and the garbage collector looked at all of it
    again and again, for a fifth of the suite's time."""
    freeze()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[EmbeddedServer]:
    """An embedded nats-server for this test alone, to be killed, stopped and restarted."""
    server = await EmbeddedServer.start(tmp_path / "nats-data")
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
def nats_address(request: pytest.FixtureRequest) -> NatsAddress:
    """A NATS without any streams, of whichever kind; where it is the embedded one, it is the test's `server`."""
    source = nats_source()
    if source == "embedded":
        server: EmbeddedServer = request.getfixturevalue("server")
        return server.address
    address: NatsAddress = request.getfixturevalue("emptied_nats")
    return address


@pytest.fixture
async def emptied_nats(shared_nats: NatsAddress) -> NatsAddress:
    """The NATS that all tests share, all its streams deleted."""
    connection = await Connection.open(shared_nats, "tests")
    try:
        # Asked again until none is left: one answer names 1,024 of them at most.
        while names := msgspec.convert((await connection.api("STREAM.NAMES"))["streams"], list[str] | None):
            for name in names:
                await connection.api(f"STREAM.DELETE.{name}")
    finally:
        await connection.close()
    return shared_nats


@pytest.fixture(scope="session")
def shared_nats() -> Generator[NatsAddress]:
    """One NATS for the whole session; its user may do anything."""
    if NATS_URL:
        yield NatsAddress(url=NATS_URL)
        return
    # Imported where it is needed: it takes a while, and most runs have no Docker.
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    container = DockerContainer(IMAGE).with_command("-js").with_exposed_ports(4222)
    with container.waiting_for(LogMessageWaitStrategy("Server is ready")) as nats:
        yield NatsAddress(url=f"nats://{nats.get_container_host_ip()}:{nats.get_exposed_port(4222)}")


@pytest.fixture(scope="session")
def postgresql() -> Generator[Cluster]:
    """One PostgreSQL for all tests; each has a database of its own in it."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def views_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the views of this test are."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'views.db'}"
    running: Cluster = request.getfixturevalue("postgresql")
    return running.new_database()


@pytest.fixture
async def database(views_url: str) -> AsyncGenerator[Database]:
    """An empty database."""
    database = Database.open(views_url)
    yield database
    await database.close()

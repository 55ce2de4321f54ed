"""`compose.yaml` is valid, and its services' own commands and environment work together, as plain processes here."""

import asyncio
import os
import re
import shlex
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from compose_spec import PyCompose, parse_duration
from msgspec import Struct, field

import app
from app import __version__
from app.dialects.native import AgentList
from tests.log.logs import SOON_S
from tests.projections.databases import cluster, programs
from tests.walk.serving import free_port

FILE = Path(app.__file__).parent.parent / "compose.yaml"
SECRET = {"TASKTRAIL_NATS_PASSWORD": "0f-Secret_1", "TASKTRAIL_POSTGRES_PASSWORD": "0f-Secret_2"}
VIEWS_URL = f"postgresql://tasktrail:{SECRET['TASKTRAIL_POSTGRES_PASSWORD']}@postgres:5432/tasktrail"
NOT_HERE = "postgres"
"""A service that has no process of its own here: the test's own PostgreSQL stands for it, or else a SQLite file."""
REFERENCE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<how>[-?])(?P<what>[^}]*))?\}|(?P<bare>\w+))")
STARTS_WITHIN_S = 30.0


class NotSet(Exception):
    """A variable that must be set is not."""


class Build(Struct, forbid_unknown_fields=True):
    context: str
    dockerfile_inline: str


class HealthCheck(Struct):
    test: list[str]
    timeout: str
    interval: str


class Mounted(Struct, forbid_unknown_fields=True):
    source: str
    target: str


class Service(Struct, forbid_unknown_fields=True):
    """What a service may say; a key that is not here is one that this test does not carry out."""

    image: str
    command: list[str]
    healthcheck: HealthCheck
    restart: str
    stop_grace_period: str
    environment: dict[str, str] = {}
    build: Build | None = None
    configs: list[Mounted] = []
    volumes: list[str] = []
    ports: list[str] = []
    depends_on: dict[str, dict[str, str]] = {}
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []


class Config(Struct):
    content: str


class Compose(Struct):
    services: dict[str, Service]
    configs: dict[str, Config]
    volumes: dict[str, None]
    shared: dict[str, object] = field(name="x-tasktrail")


def interpolated(value: object, environment: Mapping[str, str]) -> object:
    """As compose does it: in every value, after the YAML is read. Raises NotSet."""

    def replaced(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        name = str(found["name"] or found["bare"])
        if environment.get(name):
            return environment[name]
        if found["how"] == "-":
            return str(found["what"])
        raise NotSet(f"{name}: {found['what']}")

    match value:
        case str():
            return REFERENCE.sub(replaced, value)
        case list():
            return [interpolated(one, environment) for one in msgspec.convert(value, list[object])]
        case dict():
            return {
                key: interpolated(one, environment) for key, one in msgspec.convert(value, dict[str, object]).items()
            }
        case _:
            return value


def read(environment: Mapping[str, str]) -> object:
    return interpolated(msgspec.yaml.decode(FILE.read_bytes()), environment)


def compose(**more: str) -> Compose:
    return msgspec.convert(read(SECRET | more), Compose)


def test_it_is_a_valid_compose_file():
    specification = PyCompose.from_yaml(msgspec.yaml.encode(read(SECRET)).decode())
    specification.validate()
    assert sorted(specification.service_names()) == ["api", "nats", "postgres", "projector", "worker"]


def test_it_has_no_secret_of_its_own_and_starts_with_none():
    with pytest.raises(NotSet, match="TASKTRAIL_NATS_PASSWORD: set it"):
        read({})
    with pytest.raises(NotSet, match="TASKTRAIL_POSTGRES_PASSWORD: set it"):
        read({"TASKTRAIL_NATS_PASSWORD": "x"})
    for name in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|TOKEN|KEY)\w*)(?!\w*:\?)", FILE.read_text()):
        raise AssertionError(f"{name} has a default, or may be empty")


def test_only_this_machine_can_reach_it():
    assert [port for service in compose().services.values() for port in service.ports] == ["127.0.0.1:8080:8080"]


def test_every_image_is_pinned_and_every_service_is_watched_restarted_and_given_time():
    for name, service in compose().services.items():
        pinned = [service.image]
        if service.build is not None:
            assert service.image == f"tasktrail:{__version__}"
            pinned += re.findall(r"^FROM (\S+)", service.build.dockerfile_inline, re.MULTILINE)
            assert re.search(r"^USER (?!root|0)", service.build.dockerfile_inline, re.MULTILINE)
            assert "--constraint constraints.txt" in service.build.dockerfile_inline
            assert service.depends_on == {"nats": {"condition": "service_healthy"}}
            assert service.read_only
        assert all(re.search(r":\d+\.\d+(\.\d+|-alpine$)", image) for image in pinned), name
        assert service.healthcheck.test[0] == "CMD"
        assert parse_duration(service.healthcheck.timeout) <= parse_duration(service.healthcheck.interval)
        assert service.restart == "unless-stopped"
        assert parse_duration(service.stop_grace_period) >= 15


def test_what_the_image_is_made_of_is_there():
    build = compose().services["api"].build
    assert build is not None
    for words in re.findall(r"^COPY (.+)$", build.dockerfile_inline, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (FILE.parent / source).exists(), source


class Here:
    """Where on this machine the names, ports and mounts of the containers are."""

    def __init__(self, stated: Compose, directory: Path, views_url: str) -> None:
        self.api_port = free_port()
        nats_port, monitor_port = free_port(), free_port()
        self._places = {
            VIEWS_URL: views_url,
            "@nats:4222": f"@127.0.0.1:{nats_port}",
            "0.0.0.0:4222": f"127.0.0.1:{nats_port}",
            "127.0.0.1:8222": f"127.0.0.1:{monitor_port}",
            "0.0.0.0": "127.0.0.1",
            "8080": str(self.api_port),
        }
        for service in stated.services.values():
            for source, target in (volume.split(":")[:2] for volume in service.volumes):
                own = FILE.parent / source if source.startswith(".") else directory / source
                own.mkdir(exist_ok=True)
                self._places[target] = str(own)
            for config in service.configs:
                path = directory / f"{config.source}.conf"
                self._places[config.target] = str(path)
                path.write_text(self.moved(stated.configs[config.source].content))

    def moved(self, text: str) -> str:
        """The same, for this machine."""
        places = "|".join(map(re.escape, self._places))
        return re.sub(places, lambda found: self._places[found[0]], text)

    def words(self, service: Service, command: list[str]) -> list[str]:
        """A command as this machine has it."""
        programs = {"tasktrail": beside_python("tasktrail"), "python": sys.executable}
        entry = [beside_python("nats-server")] if service.build is None else []
        first, *rest = command
        return [*entry, programs.get(first, first), *map(self.moved, rest)]

    def environment(self, service: Service) -> dict[str, str]:
        """The service's, and nothing of ours but where programs are."""
        stated = {name: self.moved(value) for name, value in service.environment.items()}
        return {"PATH": os.environ["PATH"]} | stated


def beside_python(program: str) -> str:
    return str(Path(sys.executable).with_name(program))


@asynccontextmanager
async def service_of(name: str, service: Service, here: Here, logs: Path) -> AsyncGenerator[Process]:
    """It runs while the context lasts, and stops within its grace."""
    with (logs / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *here.words(service, service.command), stdin=DEVNULL, stdout=log, stderr=log, env=here.environment(service)
        )
    try:
        yield process
        assert process.returncode is None, f"{name} ended"
        process.terminate()
        async with asyncio.timeout(parse_duration(service.stop_grace_period)):
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(service: Service, here: Here, command: list[str]) -> tuple[int, str]:
    """Exit code and output of a command beside a service, as `docker compose exec` runs it."""
    process = await asyncio.create_subprocess_exec(
        *here.words(service, command), stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=here.environment(service)
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def until_healthy(name: str, service: Service, here: Here) -> None:
    command = service.healthcheck.test[1:]
    async with asyncio.timeout(STARTS_WITHIN_S):
        while not await is_healthy(command, service, here):  # noqa: ASYNC110  # a health check is asked again and again
            await asyncio.sleep(0.1)


async def is_healthy(command: list[str], service: Service, here: Here) -> bool:
    if command[0] != "wget":
        return (await run(service, here, command))[0] == 0
    async with httpx.AsyncClient() as client:  # this machine may have no wget
        try:
            return (await client.get(here.moved(command[-1]))).status_code == 200
        except httpx.TransportError:
            return False


def documented_command() -> list[str]:
    """How compose.yaml says that a first token is made, as it runs within the service."""
    found = re.search(r"^# +docker compose exec api (tasktrail tokens create .+)$", FILE.read_text(), re.MULTILINE)
    assert found
    return shlex.split(found[1])


@pytest.fixture
def views_url(tmp_path: Path) -> Generator[str]:
    """A PostgreSQL where there is one, else a SQLite file."""
    if programs() is None:
        yield f"sqlite:///{tmp_path / 'views.sqlite'}"
        return
    with cluster() as running:
        yield running.new_database()


async def test_its_services_do_a_task_for_the_token_that_its_comment_makes(tmp_path: Path, views_url: str):
    stated = compose()
    here = Here(stated, tmp_path, views_url)
    services = {name: service for name, service in stated.services.items() if name != NOT_HERE}
    async with AsyncExitStack() as running:
        await running.enter_async_context(service_of("nats", services["nats"], here, tmp_path))
        await until_healthy("nats", services["nats"], here)
        rest = {name: service for name, service in services.items() if name != "nats"}
        for name, service in rest.items():
            await running.enter_async_context(service_of(name, service, here, tmp_path))
        try:
            await asyncio.gather(*[until_healthy(name, service, here) for name, service in rest.items()])
        except TimeoutError as error:
            raise AssertionError("\n".join((tmp_path / f"{name}.log").read_text() for name in services)) from error
        code, printed = await run(services["api"], here, documented_command())
        assert code == 0
        token = printed.removesuffix("\n")
        await do_a_task(f"http://127.0.0.1:{here.api_port}", token)
    written = "".join((tmp_path / f"{name}.log").read_text() for name in services)
    assert token not in written
    assert not any(secret in written for secret in SECRET.values())


async def do_a_task(url: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=2 * SOON_S) as client:
        agents = msgspec.json.decode((await client.get("/agents")).content, type=AgentList)
        assert {agent.name for agent in agents.data} == {"simulator", "researcher"}
        answer = await client.post("/tasks", json={"input": "hello"}, headers={"Prefer": "wait=20"})
        assert answer.status_code == 201, answer.text
        assert answer.json()["status"] == "completed"
        await until_listed(client, answer.json()["task_id"])
        figures = (await client.get("/metrics")).text
        assert all(f'process="{process}"' in figures for process in ("api", "worker", "projector"))


async def until_listed(client: httpx.AsyncClient, task_id: str) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            answer = await client.get("/tasks", params={"status": "completed"})
            if answer.status_code == 200 and [task["task_id"] for task in answer.json()["data"]] == [task_id]:
                return
            assert answer.status_code in (200, 503), answer.text
            await asyncio.sleep(0.05)

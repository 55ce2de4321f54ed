"""The documentation, held to the code: what it shows is run, what it lists is complete, what it names exists."""

import ast
import asyncio
import os
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import get_args

import click
import httpx
import pytest
import pytest_asyncio

from app.agents.scenario import VERBS, Failure
from app.cli import tasktrail
from app.decide import Reason
from app.dialects.native import (
    AgentBody,
    EventPage,
    NewMessage,
    NewReview,
    NewTask,
    PublicStatus,
    TaskBody,
    TaskList,
    Why,
)
from app.dialects.native_audit import LogPage
from app.problems import CODES, ERRORS, REJECTED, ProblemDetails
from eventstore import events
from eventstore.connection import NatsAddress
from eventstore.tokens import SCOPES
from tests.walk.serving import Serving, clean_environment, free_port, serving

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
CLUSTER = DOCS / "how-to" / "run-against-a-cluster.md"
THE_LOG = DOCS / "how-to" / "consume-the-log.md"
RUN = [PROJECT / "README.md", DOCS / "tutorial.md", *sorted(set((DOCS / "how-to").glob("*.md")) - {CLUSTER, THE_LOG})]
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (?P<command>(?:[^\n]*\\\n)*[^\n]*)\n(?P<shown>(?:(?!\$ )[^\n]*\n)*)", re.M)
A_PROBLEM = re.compile(r'^\{"title":.*"status":\d', re.M)
WITHIN_S = 100

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl, and there is none here")


def name(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def read(path: str) -> str:
    return (DOCS / path).read_text()


def quoted(text: str) -> set[str]:
    """The words that stand in backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def blocks(page: Path) -> Iterator[tuple[int, str, str, str | None]]:
    """A page's fenced blocks: line, language, text, and why it can't be run."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        yield text.count("\n", 0, found.start("text")), found["language"], found["text"], found["why"]


def steps(page: Path) -> Iterator[tuple[str, str, str]]:
    """Where each thing to run stands, what it is, and what is shown as its output."""
    for line, language, text, _ in (block for block in blocks(page) if block[3] is None):
        if language == "python":
            yield f"{name(page)}:{line}", f"'{sys.executable}' - <<'SNIPPET'\n{text}SNIPPET", ""
        elif language == "console":
            for found in COMMAND.finditer(text):
                at = line + 1 + text.count("\n", 0, found.start())
                yield f"{name(page)}:{at}", found["command"], found["shown"]


def looks_like(shown: str) -> re.Pattern[str]:
    """What is shown, where `…` stands for anything in a line and, alone, for any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in shown.rstrip("\n").split("\n")
    ]
    return re.compile("".join(lines))


async def run_page(page: Path, directory: Path, **environment: str) -> None:
    """Run all of a page in one shell, which is left where something fails; compare what comes with what is shown."""
    wanted = list(steps(page))
    script = "set -eu\n" + "".join(
        f"echo {number} > at\n{{ {what}\n}} > said-{number} 2>&1\n" for number, (_, what, _) in enumerate(wanted)
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = clean_environment(PATH=path, PYTHONPATH=str(PROJECT), **environment)
    shell = await asyncio.create_subprocess_exec("sh", "-c", script, cwd=directory, env=told, start_new_session=True)
    with suppress(TimeoutError):
        await asyncio.wait_for(shell.wait(), WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)  # and what it started in the background
    code, last = await shell.wait(), int((directory / "at").read_text())
    for number, (place, what, shown) in enumerate(wanted[: last + 1]):
        came = (directory / f"said-{number}").read_text().replace("\r", "").rstrip("\n") + "\n"
        assert number < last or code == 0, f"{place}\n{what}\n{came}"
        if shown.strip():
            assert looks_like(shown).fullmatch(came), f"{place}\n{what}\n--- shown\n{shown}--- came\n{came}"
        else:
            assert not A_PROBLEM.search(came), f"{place}\n{what}\n{came}"
    assert last == len(wanted) - 1


async def again(page: Path, **environment: str) -> str:
    """Run a page's Python once more; what it prints."""
    (snippet,) = (text for _, language, text, _ in blocks(page) if language == "python")
    told = clean_environment(**environment)
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", snippet, env=told, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(running.communicate(), WITHIN_S)
    assert running.returncode == 0, said.decode()
    return said.decode()


def at_home(directory: Path) -> Path:
    """As the project's directory is after `make install`."""
    (directory / ".venv").symlink_to(sys.prefix)
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[tuple[Serving, Path]]:
    """The service that `make serve` starts, on a port of its own, and the directory that it was started in."""
    home = at_home(tmp_path_factory.mktemp("home"))
    async with serving(home / ".tasktrail") as service:
        yield service, home


@needs_curl
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", RUN, ids=name)
async def test_what_a_page_shows_works_as_shown(page: Path, service: tuple[Serving, Path]) -> None:
    await run_page(page, service[1], URL=service[0].url, TOKEN=service[0].token)


@needs_curl
async def test_what_the_cluster_page_shows_works_as_shown(nats_address: NatsAddress, tmp_path: Path) -> None:
    await run_page(CLUSTER, at_home(tmp_path), NATS_URL=nats_address.url, PORT=str(free_port()))


@needs_curl
async def test_what_the_page_on_the_log_shows_works_as_shown(nats_address: NatsAddress, tmp_path: Path) -> None:
    home = at_home(tmp_path)
    async with serving(home / ".tasktrail", "--nats-url", nats_address.url) as service:
        async with httpx.AsyncClient(base_url=service.url, headers={"X-API-Key": service.token}) as client:
            waits = {"agent": "simulator", "input": {"steps": [{"ask": "which?"}]}}
            asked = await client.post("/tasks", json=waits, headers={"Prefer": "wait=20"})
            await run_page(THE_LOG, home, URL=service.url, NATS_URL=nats_address.url)
            (await client.post(f"/tasks/{asked.json()['task_id']}/cancel", json={})).raise_for_status()
        # Its consumer goes on where it was, in the middle of a task's chain; then there is nothing new.
        for number in (1, 2):
            said = await again(THE_LOG, NATS_URL=nats_address.url)
            assert ("task.cancelled" in said) == (number == 1), said


@pytest.mark.parametrize("page", [*RUN, CLUSTER, THE_LOG], ids=name)
def test_what_is_not_run_says_why(page: Path) -> None:
    for line, language, _, why_not in blocks(page):
        assert language in ("console", "python", "json", "text"), f"{name(page)}:{line}: nobody runs {language!r}"
        assert why_not is None or len(why_not) > 20, f"{name(page)}:{line}: that is no reason"


@pytest.mark.asyncio(loop_scope="module")
async def test_every_route_and_every_metric_is_told(service: tuple[Serving, Path]) -> None:
    async with httpx.AsyncClient(base_url=service[0].url) as client:
        paths: dict[str, dict[str, object]] = (await client.get("/docs/openapi.json")).json()["paths"]
        figures = (await client.get("/metrics")).text
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    told = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", read("reference/http-api.md"), re.M))
    assert told == routes
    metrics = set(re.findall(r"^# TYPE (\w+)", figures, re.M))
    assert metrics == {word for word in quoted(read("how-to/on-call.md")) if word.startswith("tasktrail_")}


def test_every_field_and_status_of_the_api_is_told() -> None:
    told = quoted(read("reference/http-api.md"))
    shapes = (TaskBody, NewTask, ProblemDetails, events.Problem, events.Usage, events.PlannedStep)
    fields = {field for shape in shapes for field in shape.__struct_fields__}
    assert fields | set(get_args(PublicStatus)) | set(SCOPES) <= told
    page = read("reference/http-api.md")
    for shape in (NewMessage, NewReview, Why, EventPage, TaskList, AgentBody, LogPage):
        assert all(f'"{field}"' in page for field in shape.__struct_fields__), shape


def test_every_problem_is_told_with_its_status() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (\d{3}) \|", read("reference/http-api.md"), re.M)
    told = {(code, int(status)) for codes, status in rows for code in quoted(codes)}
    known = {(code, status) for status, code, _ in ERRORS.values()} | {(code, status) for status, code in CODES.items()}
    known |= set(REJECTED.items())
    assert told == known


def test_every_fact_is_told_with_all_its_fields() -> None:
    page = read("reference/facts.md")
    sections = dict(re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    kinds = (*get_args(events.TaskFact), *get_args(events.SessionFact), events.Checkpoint)
    facts = {str(fact.__struct_config__.tag): fact for fact in kinds}
    assert sections.keys() == facts.keys()
    for tag, fact in facts.items():
        assert {fact.__name__, *fact.__struct_fields__} <= quoted(sections[tag]), tag
        rows = "".join(re.findall(r"^\| (`[^|]*) \|", sections[tag], re.M))
        assert quoted(rows) <= set(fact.__struct_fields__), tag
    shapes = (
        events.Record,
        events.BlobReference,
        events.FileReference,
        events.PlannedStep,
        events.Problem,
        events.Usage,
    )
    fields = {field for shape in shapes for field in shape.__struct_fields__}
    assert fields | set(get_args(events.StepKind)) <= quoted(page)


def commands(command: click.Command, called: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield called, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for one in command.list_commands(context):
            found = command.get_command(context, one)
            assert found is not None
            yield from commands(found, (*called, one))


def test_every_option_of_every_command_is_told_with_its_variable() -> None:
    page = read("reference/settings.md")
    told = quoted(page)
    known = {"TASKTRAIL_TEST_NATS_URL", "TASKTRAIL_<COMMAND>_<OPTION>"}
    for called, command in commands(tasktrail):
        assert not called or re.search(rf"`(tasktrail )?{' '.join(called)}[` ]", page), called
        for option in command.get_params(click.Context(command)):
            if not isinstance(option, click.Option) or option.hidden or option.name in ("help", "version"):
                continue
            assert option.opts[0] in told, (called, option.opts)
            known.add(option.opts[0])
            if isinstance(option.envvar, str):
                assert f"| `{option.opts[0]}` | `{option.envvar}` |" in page or f"(`{option.envvar}`" in page, (
                    option.opts
                )
                known.add(option.envvar)
    assert {word for word in told if word.startswith(("--", "TASKTRAIL_"))} - {"--help"} <= known


def test_every_step_of_a_scenario_is_told_with_its_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`[^|]+) \|", read("reference/simulator.md"), re.M)
    assert {verb: quoted(fields) for verb, fields in rows} == {
        verb: set(shape.__struct_fields__) for verb, shape in VERBS.items()
    }
    fields = {field for shape in (events.Usage, events.PlannedStep, Failure) for field in shape.__struct_fields__}
    assert fields <= quoted(read("reference/simulator.md"))


def sources() -> list[Path]:
    return [path for room in ("app", "projections", "eventstore") for path in sorted((PROJECT / room).rglob("*.py"))]


def test_every_event_of_the_logs_is_told() -> None:
    written = re.compile(r"log\.(?:info|warning|error|exception|log)\(\s*(?:level,\s*)?\"(\w+\.\w+)\"")
    known = {event for path in sources() for event in written.findall(path.read_text())}
    rows = re.findall(r"^\| (`\w+\.[^|]+) \|", read("how-to/on-call.md"), re.M)
    assert {event for row in rows for event in quoted(row)} == known


def test_every_dependency_is_told() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted: list[str] = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[^\w-]", one)[0] for one in wanted}
    assert set(re.findall(r"^\| `([\w-]+)` \| \w", read("decisions/dependencies.md"), re.M)) == names


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_names_a_machine_or_a_registry(page: Path) -> None:
    places = (
        r"(?<![\w.])/(?:work|home|root|tmp|usr|var|opt|mnt|Users)/|pypi\.org|pythonhosted|npmjs|docker\.io|ghcr\.io"
    )
    assert re.findall(places, page.read_text()) == []


@cache
def defined() -> set[str]:
    """Functions and classes of the code and the tests; methods by their class too."""
    names = set[str]()
    for path in [*sources(), *(PROJECT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
                names |= {f"{node.name}.{method.name}" for method in methods}
    return names


def test_the_walk_and_the_decisions_name_what_is_there() -> None:
    files = {str(path.relative_to(PROJECT)) for path in [*sources(), *(PROJECT / "tests").rglob("*.py")]}
    known = defined() | set(get_args(Reason)) | {word for word in quoted(read("reference/facts.md")) if "_" in word}
    for page in (DOCS / "walk.md", *(DOCS / "decisions").glob("*.md")):
        for word in quoted(page.read_text()):
            if word.endswith(".py"):
                assert any(file.endswith(f"/{word}") or file == word for file in files), (name(page), word)
            elif re.fullmatch(r"[A-Z][a-z]+\w*(\.\w+)?|test_\w+|\w+_\w+", word) and page.name != "dependencies.md":
                assert word in known or word in ("None", "Age", "sync_interval"), (name(page), word)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_make_is_asked_for_it_can_do(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text())) <= set(targets)


def test_every_row_of_a_contract_names_a_test_that_there_is() -> None:
    pages = ("niyra", "nanonets", "shannon", "shannon-events", "shannon-sdk", "shannon-sessions")
    for page in (DOCS / "reference" / f"{name}.md" for name in pages):
        named = {word for word in quoted(page.read_text()) if word.startswith("test_")}
        assert named
        assert named <= defined(), named - defined()

"""What is measured: each service, how it is started, and how its protocol says create, poll and stream."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.bench.listening import Stamp

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
ENVIRONMENTS = HERE.parents[2] / ".peers"
TOKEN = "sk_test_bench_peers"

Answer = dict[str, object]


class Order(Struct):
    """What a task is asked to do: use a tool so often, each for so long, once it is told at `gate` (a port; 0: now)."""

    steps: int
    takes_ms: int
    gate: int

    @property
    def text(self) -> str:
        """As the peers' agent reads it."""
        return msgspec.json.encode(self).decode()

    @property
    def scenario(self) -> str:
        """The same for our simulator, which asks where the others wait at the gate."""
        use: Answer = {"tool": "emit", "takes": self.takes_ms / 1000}
        steps: list[Answer] = [{"ask": "begin?"}] if self.gate else []
        if self.steps:
            steps.append({"repeat": self.steps, "steps": [use]})
        return msgspec.json.encode({"steps": [*steps, {"complete": "done"}]}).decode()


class Peer(Struct, frozen=True, kw_only=True):
    """One service. `keeps`, `resumes` and `limits` say to people what it does and what it does not. What it answers to
    a POST at `create` has the paths of its task; `go` is a POST that lets it begin (else the gate does)."""

    name: str
    keeps: str
    resumes: str
    checks: str
    runs: str
    command: Callable[[Path, int], list[str]]
    ready: str
    create: str
    body: Callable[[Order], Answer]
    polled: Callable[[Answer], str]
    streamed: Callable[[Answer], str]
    marker: bytes
    stamp: Stamp
    python: Path
    headers: Mapping[str, str] = {}
    environment: Mapping[str, str] = {}
    go: Callable[[Answer], tuple[str, Answer]] | None = None
    is_waiting: Callable[[Answer], bool] | None = None

    @property
    def missing(self) -> str:
        """Why it can't run here; empty where it can."""
        return "" if self.python.exists() else "its virtual environment could not be made: see what make said above"


def _of(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"


def _emitted_at(frame: bytes) -> float:
    found = re.search(rb"emit (\d+\.\d+)", frame)
    assert found, frame
    return float(found[1])


def _recorded_at(frame: bytes) -> float:
    found = re.search(rb'"at":"([^"]+)"', frame)
    assert found, frame
    return datetime.fromisoformat(found[1].decode()).timestamp()


def _langgraph(directory: Path, port: int) -> list[str]:
    # It keeps a folder beside its configuration, so it gets a copy of that.
    shutil.copytree(SERVERS, directory, dirs_exist_ok=True)
    langgraph = str(_of("langgraph").with_name("langgraph"))
    quiet = ("--no-browser", "--no-reload", "--server-log-level", "error")
    return [langgraph, "dev", *quiet, "--port", str(port)]


def _serve(directory: Path, port: int) -> list[str]:
    where = ("--data-dir", str(directory / "tasktrail"), "--port", str(port))
    return [sys.executable, "-m", "app", "serve", *where, "--token", TOKEN, "--log-level", "error"]


def _task(answer: Answer) -> str:
    return f"/tasks/{answer['task_id']}"


def _a2a_task(answer: Answer) -> str:
    return f"/tasks/{msgspec.convert(answer['task'], type=dict[str, object])['id']}"


def _run(answer: Answer) -> str:
    return f"/threads/{answer['thread_id']}/runs/{answer['run_id']}"


def _message(order: Order) -> Answer:
    message: Answer = {"messageId": "@@", "role": "ROLE_USER", "parts": [{"text": order.text}]}
    return {"message": message, "configuration": {"returnImmediately": True}}


def _input(order: Order) -> Answer:
    asked: Answer = {"order": order.text}
    return {"assistant_id": "emitter", "input": asked, "stream_mode": ["custom"], "on_completion": "keep"}


TASKTRAIL = Peer(
    name="Tasktrail",
    keeps="every event, in a log on disk, before anybody is told; survives the SIGKILL of all its processes",
    resumes="by Last-Event-ID, each event exactly once; a later reader gets all of it",
    checks="a token, its owner and its scopes",
    runs="agents in a process of their own; a task whose worker dies goes on in another",
    command=_serve,
    ready="/health/ready",
    create="/tasks",
    body=lambda order: {"agent": "simulator", "input": order.scenario},
    polled=_task,
    streamed=lambda answer: f"{_task(answer)}/events",
    marker=b':"emit"',
    stamp=_recorded_at,
    python=Path(sys.executable),
    headers={"Authorization": f"Bearer {TOKEN}"},
    go=lambda answer: (f"{_task(answer)}/messages", {"text": "begin"}),
    is_waiting=lambda answer: answer["status"] == "waiting_for_input",
)
FASTAPI = Peer(
    name="FastAPI, a dict",
    keeps="nothing: tasks are in a dictionary",
    resumes="not: a later reader gets the events from the first one on, because they stay in memory",
    checks="nothing",
    runs="agents in the server's own loop",
    command=lambda _, port: [str(_of("fastapi")), str(SERVERS / "fastapi_server.py"), str(port)],
    ready="/openapi.json",
    create="/tasks",
    body=lambda order: {"input": order.text},
    polled=_task,
    streamed=lambda answer: f"{_task(answer)}/events",
    marker=b"emit ",
    stamp=_emitted_at,
    python=_of("fastapi"),
)
A2A = Peer(
    name="a2a-sdk",
    keeps="nothing: the task store in memory, its default (it has one for SQL)",
    resumes="not: events have no ids; a later reader gets the task as it is, and what is new until it ends",
    checks="nothing (it has no authentication of its own)",
    runs="agents in the server's own loop",
    command=lambda _, port: [str(_of("a2a")), str(SERVERS / "a2a_server.py"), str(port)],
    ready="/.well-known/agent-card.json",
    create="/message:send",
    body=_message,
    polled=_a2a_task,
    streamed=lambda answer: f"{_a2a_task(answer)}:subscribe",
    marker=b"emit ",
    stamp=_emitted_at,
    python=_of("a2a"),
    headers={"A2A-Version": "1.0"},
)
LANGGRAPH = Peer(
    name="LangGraph, in memory",
    keeps="in memory, written to a file every ten seconds; made for development, as its makers say",
    resumes="only a run that was made resumable, which this is not by default; a later reader gets what is new",
    checks="nothing",
    runs="agents in the server's own loop, ten at a time by default",
    command=_langgraph,
    ready="/ok",
    create="/runs",
    body=_input,
    polled=_run,
    streamed=lambda answer: f"{_run(answer)}/stream?stream_mode=custom",
    marker=b"emit ",
    stamp=_emitted_at,
    python=_of("langgraph"),
    # It looks for newer versions and sends its makers what is run: not without a network.
    environment={
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
    },
)
PEERS = {"tasktrail": TASKTRAIL, "fastapi": FASTAPI, "a2a": A2A, "langgraph": LANGGRAPH}


def environment_of(peer: Peer) -> dict[str, str]:
    """Ours, without what would set Tasktrail's options or lead elsewhere; no proxy is between."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TASKTRAIL_", "LANGGRAPH_", "LANGSMITH_", "LANGCHAIN_"))
    }
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **peer.environment}

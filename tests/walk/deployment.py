"""A whole deployment as its user starts it: `python -m app serve` in processes of its own, to be hurt."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.api import NO_TLS
from tests.walk.serving import free_port, runs

TOKEN = "tt_test_deployment"


class Deployment:
    """One data directory and port; it may be started several times."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = {"Authorization": f"Bearer {TOKEN}"}
        self.output = data_dir.parent / "serve.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it is ready."""
        command = [sys.executable, "-m", "app", "serve", "--port", str(self.port), "--data-dir", str(self.data_dir)]
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *self._options],
                env=os.environ | {"TASKTRAIL_TOKEN": TOKEN},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.wait_ready()

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None, "not started"
        return self._process.pid

    def wait_ready(self, within_s: float = 30.0) -> None:
        """Return once the API says that it is ready."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            assert self._process is not None
            assert self._process.poll() is None, f"it exited:\n{self.output.read_text()[-3000:]}"
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=1, verify=NO_TLS).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready within {within_s} s:\n{self.output.read_text()[-3000:]}")

    def children(self, role: str) -> list[int]:
        """The supervisor's children of one role: `api`, `worker`, `projector`, `nats-server`."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except (OSError, IndexError):
                continue
            named = words[0].endswith("nats-server") if role == "nats-server" else role in words[1:6]
            if parent == self.pid and named:
                found.append(int(entry.name))
        return found

    def kill(self, role: str) -> int:
        """SIGKILL one child of a role, and wait until another has its place; the dead one's pid."""
        before = self._wait_for_children(role)
        os.kill(before[0], signal.SIGKILL)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            now = self.children(role)
            if before[0] not in now and len(now) >= len(before):
                return before[0]
            time.sleep(0.02)
        raise AssertionError(f"{role} was not started again:\n{self.output.read_text()[-3000:]}")

    def kill_supervisor(self) -> None:
        """SIGKILL the supervisor itself; whatever it started must be gone soon."""
        family = [pid for role in ("api", "worker", "projector", "nats-server") for pid in self.children(role)]
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        until = time.monotonic() + 10
        while any(map(runs, family)):
            assert time.monotonic() < until, f"its children outlived it: {family}"
            time.sleep(0.02)

    def stop(self) -> int | None:
        """SIGTERM, and wait; the exit code."""
        if self._process is None or self._process.poll() is not None:
            return None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=30)

    def client(self) -> httpx.AsyncClient:
        """A client with the development token."""
        return httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=30, verify=NO_TLS)

    def _wait_for_children(self, role: str) -> list[int]:
        until = time.monotonic() + 20
        while not (found := self.children(role)):
            assert time.monotonic() < until, f"there is no {role}"
            time.sleep(0.02)
        return found


@contextmanager
def deployment(tmp_path: Path, *options: str) -> Generator[Deployment]:
    """A running deployment; stopped at the end, by force where it must be."""
    deployed = Deployment(tmp_path / "data", *options)
    deployed.start()
    try:
        yield deployed
    finally:
        try:
            deployed.stop()
        finally:
            with_force(deployed)


def with_force(deployed: Deployment) -> None:
    """Nothing of it remains."""
    for role in ("api", "worker", "projector", "nats-server"):
        for pid in deployed.children(role):
            os.kill(pid, signal.SIGKILL)


async def insist(client: httpx.AsyncClient, method: str, path: str, **request: object) -> httpx.Response:
    """A client that does not give up while the service is away: what a caller with an idempotency key may do."""
    until = time.monotonic() + 90
    while True:
        try:
            answer = await client.request(method, path, **request)  # pyright: ignore[reportArgumentType]  # httpx's own keyword arguments
            if answer.status_code < 500:
                return answer
        except httpx.HTTPError:
            pass
        assert time.monotonic() < until, f"{method} {path} was never answered"
        await asyncio.sleep(0.1)

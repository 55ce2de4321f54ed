"""A client of our own API: commands that are repeated until it is known that they were done, tasks followed to their
end over cut connections. What goes wrong is drawn in `replies`.
"""

import random
import ssl
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from msgspec import Struct

from app.local import Local, read_local
from app.replies import (
    Interrupted,
    NoAddress,
    NoAnswer,
    Page,
    Reset,
    TaskPage,
    Told,
    checked,
    complaint,
    decoded,
    retry_after_s,
    told_by,
    told_in,
)
from eventstore.events import TaskId

FIRST_CONTACT_S = 5.0
"""How long to go on trying where nothing has answered yet."""
CONTACT_LOST_S = 60.0
"""How long to go on trying once a task was being followed: a restart is over by then."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0
ANSWER_WITHIN_S = 30.0
SILENT_FOR_S = 45.0
"""A stream that says nothing for so long is dead: it sends a comment every 15 s."""
PAGE = 1000
AGAIN = frozenset({429, 502, 503, 504})
"""Statuses that say: not now."""
EVENT_STREAM = "text/event-stream"


class Where(Struct, frozen=True, kw_only=True):
    """A service's address, and who we are there; `certificate` is what it shows, where no authority is asked."""

    url: str
    token: str
    certificate: Path | None = None


def where(data_dir: Path, url: str | None, token: str | None) -> Where:
    """As given; what is not, as the service on this machine keeps it in its data directory. Raises NoAddress.

    A token that is kept for this machine's service is never sent to another.
    """
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise NoAddress("that is no token: one has printable ASCII characters only")
    if url is not None:
        if token is None:
            raise NoAddress("--url needs a token: --token, or TASKTRAIL_TOKEN in the environment")
        return Where(url=_checked(url), token=token)
    local = local_in(data_dir)
    if local.url is None:
        raise NoAddress(f"the service of {data_dir} is stopped; `tasktrail serve` starts it")
    return Where(url=_checked(local.url), token=token or local.token, certificate=local.certificate)


def local_in(data_dir: Path) -> Local:
    """What the service on this machine keeps for us. Raises NoAddress."""
    local = read_local(data_dir)
    if local is None:
        raise NoAddress(
            f"no service is known in {data_dir} (or not to this user): "
            "start one with `tasktrail serve`, name its --data-dir, or say where another is"
        )
    return local


def _checked(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise NoAddress(f"not a URL: {url!r} ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise NoAddress(f"not a URL of a service: {url!r} (http://127.0.0.1:8080, say)")
    return url


class Patience:
    """How long to go on trying, and how long to wait before the next time: longer each time, never all at once."""

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._until = time.monotonic() + bound_s
        self._delay_s = FIRST_DELAY_S

    def renew(self, bound_s: float) -> None:
        """The service is there."""
        self._until = time.monotonic() + bound_s

    def hasten(self) -> None:
        """It even told something new: should it fail again, begin with short delays."""
        self._delay_s = FIRST_DELAY_S

    def wait(self, why: str, at_least_s: float = 0.0) -> None:
        """Wait a little. Raises NoAnswer where that would be too long."""
        time.sleep(self.delay_s(why, at_least_s))

    def delay_s(self, why: str, at_least_s: float = 0.0) -> float:
        """How long to wait now. Raises NoAnswer where that would be too long."""
        delay_s = max(at_least_s, self._delay_s * random.uniform(0.5, 1.0))
        if time.monotonic() + delay_s > self._until:
            raise NoAnswer(why)
        self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)
        return delay_s


class Client:
    """Connections to one service. `retry_for_s` bounds how long something is tried (None: the usual)."""

    def __init__(self, address: Where, *, retry_for_s: float | None = None) -> None:
        self.url = address.url
        self._first_s = FIRST_CONTACT_S if retry_for_s is None else retry_for_s
        self._lost_s = CONTACT_LOST_S if retry_for_s is None else retry_for_s
        self._http = httpx.Client(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.token}", "User-Agent": "tasktrail"},
            timeout=ANSWER_WITHIN_S,
            transport=_transport(address),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    # --- questions and commands -----------------------------------------------------------------------------------

    def submit(self, body: Mapping[str, object], *, key: str) -> bytes:
        """Begin a task, once, however often it takes to be told so. Gives the task's JSON."""
        return self._ask("POST", "/tasks", body=body, key=key).content

    def command(self, task_id: TaskId, name: str, body: Mapping[str, object] | None = None) -> bytes:
        """Cancel, pause, resume, messages or review, once. Gives the task's JSON."""
        return self._ask("POST", f"{_path(task_id)}/{name}", body=body, key=new_key()).content

    def get(self, task_id: TaskId, *, at: int | None = None) -> bytes:
        """The task's JSON; as it was when the log's last sequence was `at`, where that is given."""
        return self._ask("GET", _path(task_id) if at is None else f"{_path(task_id)}?at={at}").content

    def tasks(self, query: Mapping[str, str | int]) -> TaskPage:
        """A page of the owner's tasks, newest first."""
        answer = self._ask("GET", f"/tasks?{httpx.QueryParams(query)}")
        return decoded(answer.content, TaskPage)

    def changed(self, task_id: TaskId, version: int, *, within_s: int) -> bytes | None:
        """The task's JSON once its version is another; None where it still is this one."""
        headers = {"If-None-Match": f'"{version}"', "Prefer": f"wait={within_s}"}
        answer = self._ask("GET", _path(task_id), headers=headers, within_s=within_s + ANSWER_WITHIN_S)
        return None if answer.status_code == HTTPStatus.NOT_MODIFIED else answer.content

    def history(self, task_id: TaskId, *, page: int = PAGE) -> Generator[Told]:
        """The task's facts so far, page by page."""
        after, more = 0, True
        while more:
            answer = self._ask("GET", f"{_path(task_id)}/events?after={after}&limit={page}")
            found = decoded(answer.content, Page)
            for raw in found.data:
                yield told_in(task_id, bytes(raw))
            after, more = found.next_after, found.has_more

    def _ask(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        within_s: float = ANSWER_WITHIN_S,
    ) -> httpx.Response:
        """Safe to repeat: a question changes nothing, and a command's key makes a second one do nothing."""
        sent = dict(headers or {})
        if key is not None:
            sent["Idempotency-Key"] = key
        patience = Patience(self._first_s)
        while True:
            try:
                answer = self._http.request(method, path, json=body, headers=sent, timeout=within_s)
            except httpx.RequestError as error:
                patience.wait(self._silence(error))
                continue
            if answer.status_code not in AGAIN:
                return checked(answer)
            patience.wait(complaint(answer), retry_after_s(answer))

    def _silence(self, error: httpx.RequestError) -> str:
        return f"no answer from {self.url}: {str(error) or type(error).__name__}"

    # --- following ------------------------------------------------------------------------------------------------

    def follow(self, task_id: TaskId) -> Generator[Told | Interrupted | Reset]:
        """The task's facts from the first on, live, each once and in order, to its end. A body that is over before the
        ending fact was cut, so it is asked for again, by the last event's id."""
        cursor: str | None = None
        last = 0
        patience = Patience(self._first_s)
        while True:
            why, at_least_s = "the stream was cut", 0.0
            try:
                with self._stream(task_id, cursor) as stream:
                    if stream.response.status_code == HTTPStatus.NO_CONTENT:
                        return  # it ended with a fact that this release does not know
                    if stream.response.status_code in AGAIN:
                        why, at_least_s = complaint(stream.response), retry_after_s(stream.response)
                    else:
                        patience.renew(self._lost_s)
                        for event in stream.iter_sse():
                            if event.event == "reset":
                                cursor, last = None, 0
                                yield Reset()
                            elif event.data and (told := told_by(task_id, event)).recorded.sequence > last:
                                cursor, last = event.id, told.recorded.sequence
                                patience.hasten()
                                yield told
                                if told.is_end:
                                    return
                        patience.renew(self._lost_s)
            except httpx.RequestError as error:
                why = self._silence(error)
            yield Interrupted(why)
            patience.wait(why, at_least_s)

    @contextmanager
    def _stream(self, task_id: TaskId, cursor: str | None) -> Generator[EventSource]:
        headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
        if cursor is not None:
            headers["Last-Event-ID"] = cursor
        timeout = httpx.Timeout(ANSWER_WITHIN_S, read=SILENT_FOR_S)
        with self._http.stream("GET", f"{_path(task_id)}/events", headers=headers, timeout=timeout) as answer:
            if answer.status_code != HTTPStatus.OK:
                answer.read()
                if answer.status_code not in AGAIN:
                    checked(answer)
            elif EVENT_STREAM not in answer.headers.get("content-type", ""):
                raise NoAnswer(f"{self.url} is no Tasktrail API: it does not stream events")
            yield EventSource(answer)


def _transport(address: Where) -> httpx.HTTPTransport | None:
    """None: the usual one, with the environment's proxies. Those are for the world outside: they can't reach a service
    on this machine."""
    trust = trust_in(address)
    return None if trust is None else httpx.HTTPTransport(verify=trust)


def trust_in(address: Where) -> ssl.SSLContext | bool | None:
    """Whose certificates are taken, of a service on this machine; None: it is elsewhere, and everything is as usual."""
    if address.certificate is not None:
        trust = ssl.create_default_context(cafile=str(address.certificate))
        # This very certificate is what is trusted, whoever signed it, and it need not name the loopback address.
        trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        trust.check_hostname = False
        return trust
    url = httpx.URL(address.url)
    if url.host not in ("127.0.0.1", "::1", "localhost"):
        return None
    # Plain HTTP shows no certificate; to read all whom the world trusts would take longer than to ask.
    return url.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def new_key() -> str:
    """An idempotency key."""
    return f"cli-{uuid.uuid4()}"


def _path(task_id: TaskId) -> str:
    return f"/tasks/{quote(task_id, safe='')}"

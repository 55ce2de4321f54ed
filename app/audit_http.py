"""The log as a running service shows it to an auditor, read over HTTP: a cut body is asked for again where it ended."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus

import httpx

from app.client import (
    AGAIN,
    ANSWER_WITHIN_S,
    CONTACT_LOST_S,
    FIRST_CONTACT_S,
    SILENT_FOR_S,
    Patience,
    Where,
    trust_in,
)
from app.replies import NoAnswer, NotTried, checked, complaint, decoded, retry_after_s
from eventstore.checkpointing import Signed
from eventstore.events import Owner
from eventstore.log import Arrival
from projections.lines import arrival_of

LAST, OWNER = "Tasktrail-Last-Sequence", "Tasktrail-Owner"
NDJSON = "application/x-ndjson"
BATCH = 1_000


class HttpSource:
    """What a token is shown of the log. Build with `open_http`."""

    def __init__(self, http: httpx.AsyncClient, retry_for_s: float | None) -> None:
        self._http = http
        self._first_s = FIRST_CONTACT_S if retry_for_s is None else retry_for_s
        self._lost_s = CONTACT_LOST_S if retry_for_s is None else retry_for_s
        self.whole = False
        self.owner: Owner | None = None
        """Whose records are shown, where not all are."""

    async def look(self) -> None:
        """Learn what the token is shown: another owner's records are refused to one that hears only its own."""
        # Nobody has this name, so nothing is told; a name that somebody has might be the token's own.
        stranger = f"nobody-{secrets.token_hex(8)}"
        answer = await self._ask("GET", "/events", {"owner": stranger, "limit": "1"}, taken=(HTTPStatus.FORBIDDEN,))
        if answer.status_code != HTTPStatus.FORBIDDEN:
            self.whole = True
        else:
            answer = await self._ask("GET", "/events", {"limit": "1"})  # refused, where it may hear nothing at all
            if not answer.headers.get(OWNER):
                raise NotTried("the service does not say whose records these are: is it older than this command?")
            self.owner = Owner(answer.headers[OWNER])

    async def end(self) -> int:
        """The log's last sequence. Raises ClientError."""
        answer = await self._ask("GET", "/events", {"limit": "1"})
        return _last_of(answer)

    async def blob(self, name: str) -> bytes | None:
        """A blob, by its record's id; of a damaged one, nothing. Raises ClientError."""
        taken = (HTTPStatus.NOT_FOUND, HTTPStatus.BAD_GATEWAY)
        answer = await self._ask("GET", f"/events/blobs/{name}", taken=taken)
        match answer.status_code:
            case HTTPStatus.NOT_FOUND:
                return None
            case HTTPStatus.BAD_GATEWAY:
                return b""
            case _:
                return answer.content

    async def sign(self) -> Signed:
        """Have all that is in the log signed now. Raises ClientError."""
        return decoded((await self._ask("POST", "/checkpoints")).content, Signed)

    async def arrivals(self, after: int, up_to: int) -> AsyncGenerator[list[Arrival]]:
        """The records after a sequence, up to another, in order. Raises ClientError."""
        patience = Patience(self._first_s)
        answered = -1
        while after < up_to:
            at_least_s = 0.0
            why = "the stream was cut"
            try:
                async with self._stream(after) as answer:
                    if answer.status_code in AGAIN:
                        why, at_least_s = complaint(answer), retry_after_s(answer)
                    else:
                        # Cut at the same record each time, or ended before it, it is not there for us.
                        before = after
                        if after > answered:
                            answered = after
                            patience.renew(self._lost_s)
                        async with aclosing(_batches(answer)) as batches:
                            async for batch in batches:
                                if batch[-1].sequence > after:
                                    patience.renew(self._lost_s)
                                    patience.hasten()
                                if wanted := [arrival for arrival in batch if arrival.sequence <= up_to]:
                                    yield wanted
                                after = max(after, batch[-1].sequence)
                        # It was not cut: all up to there was told, whatever of it is not for us.
                        after = max(after, _last_of(answer))
                        if after > before:
                            continue
                        why = f"the service's log ends at {_last_of(answer)}, before {up_to}"
            except httpx.RequestError as error:
                why = self._silence(error)
            await asyncio.sleep(patience.delay_s(why, at_least_s))

    @asynccontextmanager
    async def _stream(self, after: int) -> AsyncGenerator[httpx.Response]:
        timeout = httpx.Timeout(ANSWER_WITHIN_S, read=SILENT_FOR_S)
        headers = {"Accept": NDJSON}
        async with self._http.stream(
            "GET", "/events", params={"after": str(after)}, headers=headers, timeout=timeout
        ) as answer:
            if answer.status_code != HTTPStatus.OK:
                await answer.aread()
                if answer.status_code not in AGAIN:
                    checked(answer)
            elif NDJSON not in answer.headers.get("content-type", ""):
                raise NoAnswer(f"{self._http.base_url} is no Tasktrail API: it tells no log")
            yield answer

    async def _ask(
        self, method: str, path: str, params: Mapping[str, str] | None = None, *, taken: tuple[HTTPStatus, ...] = ()
    ) -> httpx.Response:
        """Safe to repeat: a question changes nothing, and what is signed is not signed again."""
        patience = Patience(self._first_s)
        while True:
            at_least_s = 0.0
            try:
                answer = await self._http.request(method, path, params=params)
            except httpx.RequestError as error:
                why = self._silence(error)
            else:
                if answer.status_code in taken:
                    return answer
                if answer.status_code not in AGAIN:
                    return checked(answer)
                why, at_least_s = complaint(answer), retry_after_s(answer)
            await asyncio.sleep(patience.delay_s(why, at_least_s))

    def _silence(self, error: httpx.RequestError) -> str:
        return f"no answer from {self._http.base_url}: {str(error) or type(error).__name__}"


@asynccontextmanager
async def open_http(address: Where, retry_for_s: float | None) -> AsyncGenerator[HttpSource]:
    """A source that knows what it is shown. Raises ClientError."""
    trust = trust_in(address)
    async with httpx.AsyncClient(
        base_url=address.url,
        headers={"Authorization": f"Bearer {address.token}", "User-Agent": "tasktrail"},
        timeout=ANSWER_WITHIN_S,
        transport=None if trust is None else httpx.AsyncHTTPTransport(verify=trust),
    ) as http:
        source = HttpSource(http, retry_for_s)
        await source.look()
        yield source


def _last_of(answer: httpx.Response) -> int:
    told = answer.headers.get(LAST, "")
    if not (told.isascii() and told.isdigit()):
        raise NotTried("the service does not say how long its log is: is it older than this command?")
    return int(told)


async def _batches(answer: httpx.Response) -> AsyncGenerator[list[Arrival]]:
    """The body's records. (httpx's own lines are text, and several times slower.)"""
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        # An empty line says that the service is there.
        if batch := [arrival_of(line) for line in lines if line]:
            yield batch

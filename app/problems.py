"""The one table: named error -> native HTTP status; and the RFC 9457 problem that says it."""

from collections.abc import Sequence

import msgspec
from litestar.exceptions import HTTPException
from msgspec import Struct

from app.auth import NotAllowed, NotAuthenticated
from app.bounds import NoRoom, TooManyStreams
from app.decide import Reason, Rejected
from app.issuer_keys import KeysUnavailable
from app.limits import RateLimited
from eventstore.checkpointing import NobodySigns
from eventstore.cursor import BadCursor
from eventstore.log import BadSubject, BlobDamaged, LogError, LogFull, LogUnavailable, OutcomeUnknown, TooLarge
from projections.views_errors import BadCursor as BadPageCursor
from projections.views_errors import ViewsUnavailable

MEDIA_TYPE = "application/problem+json"


class NotFound(Exception):
    """There is no such thing, or it is another owner's: nobody is told which."""


class Mistake(Struct, kw_only=True):
    """What a client wrote wrongly: what is wanted, and where (`key`, empty for the whole of the `source`)."""

    message: str
    key: str
    source: str = "body"


class BadRequest(Exception):
    """The request can't be understood; the message says where, and for programs `mistakes` do."""

    def __init__(self, text: str, mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(text)
        self.mistakes = list(mistakes)


class TooSlow(Exception):
    """The request's body lets us wait for longer than anybody who still sends would."""


class UnknownCursor(Exception):
    """It is of another life of the log: what was read before it is void."""


class OwnToken(Exception):
    """A token does not revoke itself: whoever did that by mistake would be locked out."""


class TooMany(Exception):
    """One owner has as many of these as one may have."""


class TooManyFeeds(Exception):
    """This process serves as many audit feeds as it may."""


class Refused(Exception):
    """`decide` rejected the command."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.detail)
        self.rejected = rejected


class ProblemDetails(Struct, kw_only=True, omit_defaults=True):
    """RFC 9457. `code` is for programs and stays; `detail` is for people."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str = ""
    task_id: str | None = None
    errors: list[Mistake] = []


REJECTED: dict[Reason, int] = {
    "not_found": 404,
    "already_exists": 409,
    "key_reused": 422,
    "ended": 409,
    "stale_run": 409,
    "not_waiting": 409,
    "moved_on": 409,
    "not_runnable": 409,
    "out_of_order": 409,
    "deadline_moved": 409,
    "written_by_newer_release": 503,
}

ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    NotAuthenticated: (401, "not_authenticated", "A valid token is needed"),
    NotAllowed: (403, "not_allowed", "The token lacks a scope"),
    NotFound: (404, "not_found", "Not found"),
    BadRequest: (400, "bad_request", "The request can't be understood"),
    TooSlow: (408, "too_slow", "The rest of the request did not come"),
    BadCursor: (400, "bad_cursor", "Not an event id"),
    UnknownCursor: (409, "unknown_cursor", "A cursor of another life of the log"),
    OwnToken: (409, "own_token", "A token does not revoke itself"),
    TooMany: (409, "too_many", "As many as one owner may have"),
    TooManyFeeds: (503, "too_many_feeds", "As many audit feeds as there may be"),
    BadPageCursor: (400, "bad_cursor", "Not a cursor of a list"),
    BadSubject: (404, "not_found", "Not found"),
    TooLarge: (413, "too_large", "Too large"),
    TooManyStreams: (429, "too_many_streams", "The token has as many streams open as it may"),
    NoRoom: (503, "no_room", "As much is being asked as there is room for"),
    RateLimited: (429, "rate_limited", "The token has asked as often as it may"),
    LogFull: (503, "log_full", "The log has no room for new tasks"),
    OutcomeUnknown: (503, "outcome_unknown", "It is not known whether this was done"),
    # Not to be asked again soon: it is so until somebody changes it.
    NobodySigns: (409, "nobody_signs", "Nobody here signs checkpoints"),
    BlobDamaged: (502, "blob_damaged", "What is stored is not what was stored"),
    KeysUnavailable: (503, "keys_unavailable", "The token can't be judged now"),
    LogUnavailable: (503, "log_unavailable", "The log can't be reached; nothing was done"),
    LogError: (503, "log_unavailable", "The log can't be reached"),
    ViewsUnavailable: (503, "views_unavailable", "Lists can't be read now"),
    # A body that the framework could not decode; what is nested deeply in our own words is bounded where it comes in.
    RecursionError: (400, "bad_request", "The request is nested too deeply"),
    UnicodeDecodeError: (400, "bad_request", "The request is not UTF-8"),
}
RETRY_AFTER_S: dict[str, int] = {
    "log_full": 30,
    "outcome_unknown": 1,
    "log_unavailable": 1,
    "keys_unavailable": 2,
    "views_unavailable": 1,
    "too_many_feeds": 5,
    "too_many_streams": 5,
    "no_room": 2,
}
TITLES = {400: "Bad request", 404: "Not found", 405: "Method not allowed", 500: "A fault of ours"}
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 500: "internal_error"}


def problem_of(error: Exception) -> tuple[ProblemDetails, dict[str, str]]:
    """What to tell the client, and the headers to tell it with."""
    if isinstance(error, Refused):
        reason = error.rejected.reason
        status = REJECTED[reason]
        title = reason.replace("_", " ").capitalize()
        return ProblemDetails(title=title, status=status, code=reason, detail=error.rejected.detail), {}
    if isinstance(error, HTTPException):
        return _of_framework(error)
    for kind in type(error).__mro__:
        if kind in ERRORS:
            status, code, title = ERRORS[kind]
            headers = {"Retry-After": str(RETRY_AFTER_S[code])} if code in RETRY_AFTER_S else {}
            if isinstance(error, RateLimited):
                headers["Retry-After"] = str(error.retry_after_s)
            if status == 401:
                headers["WWW-Authenticate"] = 'Bearer realm="tasktrail"'
            if status == 408:
                headers["Connection"] = "close"  # what may still come of the body is no new request
            task_id = error.task_id if isinstance(error, OutcomeUnknown | NoRoom) else None
            mistakes = error.mistakes if isinstance(error, BadRequest) else []
            problem = ProblemDetails(
                title=title, status=status, code=code, detail=str(error), task_id=task_id, errors=mistakes
            )
            return problem, headers
    return ProblemDetails(title=TITLES[500], status=500, code=CODES[500]), {}


def _of_framework(error: HTTPException) -> tuple[ProblemDetails, dict[str, str]]:
    status = error.status_code
    if status == 500 and "client disconnected" in error.detail.lower():
        status = 400  # it broke off its own request: nobody hears the answer, and it is no fault of ours
    title = TITLES.get(status, "Bad request" if status < 500 else TITLES[500])
    problem = ProblemDetails(
        title=title,
        status=status,
        code=CODES.get(status, "bad_request" if status < 500 else CODES[500]),
        detail=error.detail if status < 500 else "",
    )
    return problem, dict(error.headers or {})


def encode(problem: ProblemDetails) -> bytes:
    """The problem's JSON."""
    return msgspec.json.encode(problem)

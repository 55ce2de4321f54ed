"""What may happen to a session: its commands and `decide`. Pure."""

from typing import assert_never

from app.commands import Wish
from app.decide import Rejected
from eventstore.events import SessionDeleted, SessionFact, SessionTitled
from projections.session import Session


class TitleSession(Wish, frozen=True, kw_only=True):
    """Call the session this."""

    title: str


class DeleteSession(Wish, frozen=True, kw_only=True):
    """Take the session out of its owner's lists."""


SessionCommand = TitleSession | DeleteSession


def decide(command: SessionCommand, session: Session) -> SessionFact | Rejected | None:
    """One fact, None (the wish is already true), or Rejected.

    A session without facts is there because a task names it; whether one does, the caller asks the view.
    """
    if session.unknown is not None:
        return Rejected("written_by_newer_release", f"{session.unknown} is unknown to this release")
    if command.key is not None and command.key in session.keys:
        return None
    match command:
        case TitleSession(title=title):
            if session.deleted:
                return Rejected("not_found", "the session was deleted")
            return None if title == session.title else SessionTitled(title=title)
        case DeleteSession():
            return None if session.deleted else SessionDeleted()
        case _:
            assert_never(command)

"""What several of the `audit` commands are told in the same way."""

from datetime import UTC, datetime
from importlib.util import find_spec

import click

from app.replies import NotTried


class TimeType(click.ParamType[datetime]):
    """A moment: a date, or a date and a time; in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """RFC 3339, or a part of it."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-01-31, or 2026-01-31T12:00:00Z", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


TIME = TimeType()


def needs(package: str, option: str) -> None:
    """Before much is done: is that package of the extra `audit` here? Raises NotTried."""
    if find_spec(package) is None:
        raise NotTried(f"{option} needs {package}: pip install 'tasktrail[audit]'")

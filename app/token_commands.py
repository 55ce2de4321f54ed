"""The `tokens` commands: make, list and revoke access tokens. They write to the token bucket themselves."""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import get_args

import click
import msgspec
from msgspec import Struct

from app.asking import BAD, NatsCommand
from app.dialects.native_tokens import token_body
from app.replies import NoAddress
from app.wording import moment, table
from eventstore.connection import Connection, NatsAddress, RefusedByServer
from eventstore.events import Owner
from eventstore.log import BadSubject, owner_named
from eventstore.tokens import BUCKET, LIMIT_NAMES, SCOPES, Dialect, Plan, Scope, Token, Tokens, new_token

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
LONGEST = timedelta(days=36_500)
NO_SUCH_STREAM = 10059


class _Configured(Struct):
    num_replicas: int


class ScopesType(click.ParamType[tuple[Scope, ...]]):
    """Scopes, with commas between them."""

    name = "scopes"

    def convert(
        self, value: str | tuple[Scope, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Scope, ...]:
        """Each once, in their own order."""
        if isinstance(value, tuple):
            return value
        asked = {word.strip() for word in value.split(",")} - {""}
        unknown = sorted(asked - set(SCOPES))
        if unknown or not asked:
            wrong = f"no scope {', '.join(map(repr, unknown))}" if unknown else "a token needs at least one scope"
            self.fail(f"{wrong}; there are: {', '.join(SCOPES)}", param, ctx)
        return tuple(scope for scope in SCOPES if scope in asked)


class DialectType(click.ParamType[Dialect]):
    """A dialect."""

    name = "dialect"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """All of them."""
        return "|".join(get_args(Dialect))

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Dialect:
        """By its name."""
        for dialect in get_args(Dialect):
            if value == dialect:
                return dialect
        self.fail(f"{value!r} is no dialect; there are: {', '.join(get_args(Dialect))}", param, ctx)


class DurationType(click.ParamType[timedelta]):
    """A length of time."""

    name = "duration"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """A number and its unit."""
        if isinstance(value, timedelta):
            return value
        found = DURATION.fullmatch(value.strip())
        if found is None or (lasts := int(found[1]) * UNITS[found[2]]) > LONGEST:
            self.fail(f"{value!r} is no length of time: write 90s, 30m, 12h, 30d or 4w (100 years at most)", param, ctx)
        return lasts


class LimitType(click.ParamType[tuple[str, int]]):
    """A limit of the token's own."""

    name = "limit"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Its name and a number."""
        if isinstance(value, tuple):
            return value
        name, _, number = value.partition("=")
        if name not in LIMIT_NAMES or not NUMBER.fullmatch(number):
            self.fail(f"{value!r} is no limit: write NAME=NUMBER, of {', '.join(LIMIT_NAMES)}", param, ctx)
        return name, int(number)


class OwnerType(click.ParamType[Owner]):
    """Whose tasks the token opens."""

    name = "owner"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Owner:
        """The log's word for the name; a word that a list shows is itself."""
        try:
            return owner_named(value)
        except BadSubject as error:
            self.fail(str(error), param, ctx)


@click.group(name="tokens")
def tokens() -> None:
    """Make, list and revoke access tokens.

    A token says who its bearer is (the owner: nobody else sees their tasks) and what they may do (the scopes,
    which `tasktrail tokens create --help` lists). Only its hash is kept.
    """


@tokens.command(cls=NatsCommand)
@click.option("--owner", type=OwnerType(), required=True, help="Whose tasks it opens: a person, a team, a program.")
@click.option("--scopes", type=ScopesType(), required=True, metavar="A,B", help=f"Of: {', '.join(SCOPES)}.")
@click.option("--expires", type=DurationType(), metavar="30d", help="After so long: 90s, 30m, 12h, 30d, 4w.  [never]")
@click.option("--dialect", type=DialectType(), help="Whose API it is for, where a path is several's.  [none]")
@click.option("--note", default="", help="For people who read the list.")
@click.option("--multiplier", type=click.IntRange(1, 1_000), default=1, help="So many times each of our limits.")
@click.option(
    "--limit",
    "limits",
    type=LimitType(),
    multiple=True,
    metavar="NAME=N",
    help=f"Its own instead of ours; repeatable. NAME is of: {', '.join(LIMIT_NAMES)}.",
)
@click.option("--unlimited", is_flag=True, help="No limits at all; not beside --limit or --multiplier.")
@click.pass_obj
def create(
    nats: NatsAddress,
    owner: Owner,
    scopes: tuple[Scope, ...],
    expires: timedelta | None,
    dialect: Dialect | None,
    note: str,
    **plan: object,
) -> None:
    """Make a token and print it: it is shown this once, and nothing else is on standard output.

    \b
    Example:
      TASKTRAIL_TOKEN=$(tasktrail tokens create --owner ann --scopes tasks:read,tasks:write --expires 30d)
    """
    secret = new_token()
    expires_at = None if expires is None else datetime.now(UTC) + expires
    told = _plan(plan)

    async def add() -> Token:
        async with _bucket(nats) as bucket:
            return await bucket.add(secret, owner, scopes, expires_at=expires_at, dialect=dialect, note=note, plan=told)

    made = asyncio.run(add())
    until = f"until {moment(made.expires_at)}" if made.expires_at else "for ever"
    click.echo(f"token {made.id} of {made.owner}, valid {until}:", err=True)
    click.echo(secret)


@tokens.command(name="list", cls=NatsCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object a line, as the API gives it.")
@click.pass_obj
def list_tokens(nats: NatsAddress, as_json: bool) -> None:
    """All tokens, oldest first; never the tokens themselves, which are kept nowhere.

    \b
    Example:
      tasktrail tokens list
    """
    known = asyncio.run(_all(nats))
    if as_json:
        for token in known:
            click.echo(msgspec.json.encode(token_body(token)))
        return
    now = datetime.now(UTC)
    rows = [
        (
            token.id,
            token.owner,
            ",".join(token.scopes),
            token.dialect or "",
            moment(token.created_at),
            _expiry(token, now),
            limits_told(token.plan),
            token.note,
        )
        for token in known
    ]
    click.echo(table(("ID", "OWNER", "SCOPES", "DIALECT", "CREATED", "EXPIRES", "LIMITS", "NOTE"), rows))


@tokens.command(cls=NatsCommand)
@click.argument("token_id", metavar="ID")
@click.pass_obj
@click.pass_context
def revoke(ctx: click.Context, nats: NatsAddress, token_id: str) -> None:
    """End a token, by its id in the list: within a second no process takes it, and its open streams are cut.

    \b
    Example:
      tasktrail tokens revoke 4f1c2a9b7d03
    """
    revoked = asyncio.run(_revoke(nats, token_id))
    if revoked is None:
        click.echo(f"there is no token {token_id!r}; `tasktrail tokens list` shows them", err=True)
        ctx.exit(BAD)
    click.echo(f"revoked {revoked.id} of {revoked.owner}")


def _expiry(token: Token, now: datetime) -> str:
    if token.expires_at is None:
        return "never"
    return moment(token.expires_at) + ("" if token.valid(now) else " (expired)")


def _plan(given: dict[str, object]) -> Plan:
    own = dict(msgspec.convert(given["limits"], tuple[tuple[str, int], ...]))
    plan = msgspec.convert(given | {"limits": own}, Plan)
    if plan.contradicts_itself:
        raise click.UsageError("--unlimited leaves nothing for --limit and --multiplier to say")
    return plan


def limits_told(plan: Plan) -> str:
    """For people; nothing: ours."""
    if plan.unlimited:
        return "none"
    ours = [] if plan.multiplier == 1 else [f"x{plan.multiplier}"]
    return " ".join([*ours, *(f"{name}={limit}" for name, limit in plan.limits.items())])


async def _all(nats: NatsAddress) -> list[Token]:
    async with _bucket(nats) as bucket:
        return await bucket.all()


async def _revoke(nats: NatsAddress, token_id: str) -> Token | None:
    async with _bucket(nats) as bucket:
        return await bucket.revoke(token_id)


@asynccontextmanager
async def _bucket(nats: NatsAddress) -> AsyncGenerator[Tokens]:
    async with connected(nats, "tasktrail-tokens") as connection:
        bucket = await Tokens.open(connection, replicas=await replicas_of(connection, f"KV_{BUCKET}") or 1)
        try:
            yield bucket
        finally:
            await bucket.close()


@asynccontextmanager
async def connected(nats: NatsAddress, name: str) -> AsyncGenerator[Connection]:
    """Connected while the context lasts. Raises NoAddress."""
    try:
        connection = await Connection.open(nats, name)
    except (OSError, ValueError) as error:
        raise NoAddress(f"NATS can't be asked as given: {error}") from error
    try:
        yield connection
    finally:
        await connection.close()


async def replicas_of(connection: Connection, stream: str) -> int:
    """As many as it has (0: there is none): opening it with another number would change it for the whole cluster."""
    try:
        found = await connection.api(f"STREAM.INFO.{stream}")
    except RefusedByServer as error:
        if error.err_code == NO_SUCH_STREAM:
            return 0
        raise
    return msgspec.convert(found["config"], _Configured).num_replicas

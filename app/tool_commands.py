"""The `tools` commands: switch an owner's tools off and on. They write to the bucket of switches themselves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import click
import msgspec

from app.asking import BAD, NatsCommand
from app.dialects.native_tokens import tool_body
from app.token_commands import OwnerType, connected, replicas_of
from app.wording import moment, table
from eventstore.connection import NatsAddress
from eventstore.events import Owner
from eventstore.log import BadSubject
from eventstore.switches import BUCKET, Disabled, Switches

OWNER = click.option("--owner", type=OwnerType(), required=True, help="Whose tasks it is about.")


@click.group(name="tools")
def tools() -> None:
    """Switch tools off and on, for one owner's tasks.

    A task that comes to a tool that is off fails: tool_disabled.
    """


@tools.command(cls=NatsCommand)
@click.argument("name")
@OWNER
@click.pass_obj
def disable(nats: NatsAddress, name: str, owner: Owner) -> None:
    """Switch the tool NAME off: within a second no step with it begins.

    \b
    Example:
      tasktrail tools disable gmail_send --owner ann
    """
    try:
        asyncio.run(_disable(nats, owner, name))
    except BadSubject as error:
        raise click.UsageError(str(error)) from error
    click.echo(f"{name} is off for {owner}")


@tools.command(cls=NatsCommand)
@click.argument("name")
@OWNER
@click.pass_obj
@click.pass_context
def enable(ctx: click.Context, nats: NatsAddress, name: str, owner: Owner) -> None:
    """Switch the tool NAME on again.

    \b
    Example:
      tasktrail tools enable gmail_send --owner ann
    """
    try:
        was_off = asyncio.run(_enable(nats, owner, name))
    except BadSubject as error:
        raise click.UsageError(str(error)) from error
    if not was_off:
        click.echo(f"{name!r} is not off for {owner}; `tasktrail tools list --owner {owner}` shows what is", err=True)
        ctx.exit(BAD)
    click.echo(f"{name} is on for {owner}")


@tools.command(name="list", cls=NatsCommand)
@OWNER
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object a line, as the API gives it.")
@click.pass_obj
def list_tools(nats: NatsAddress, owner: Owner, as_json: bool) -> None:
    """The owner's tools that are off; all others are on.

    \b
    Example:
      tasktrail tools list --owner ann
    """
    off = asyncio.run(_all(nats, owner))
    if as_json:
        for one in off:
            click.echo(msgspec.json.encode(tool_body(one)))
        return
    click.echo(table(("TOOL", "OFF SINCE"), [(one.tool, moment(one.since)) for one in off]))


async def _disable(nats: NatsAddress, owner: Owner, name: str) -> None:
    async with _bucket(nats) as switches:
        await switches.disable(owner, name)


async def _enable(nats: NatsAddress, owner: Owner, name: str) -> bool:
    async with _bucket(nats) as switches:
        return await switches.enable(owner, name)


async def _all(nats: NatsAddress, owner: Owner) -> list[Disabled]:
    async with _bucket(nats) as switches:
        return await switches.all(owner)


@asynccontextmanager
async def _bucket(nats: NatsAddress) -> AsyncGenerator[Switches]:
    async with connected(nats, "tasktrail-tools") as connection:
        switches = await Switches.open(connection, replicas=await replicas_of(connection, f"KV_{BUCKET}") or 1)
        try:
            yield switches
        finally:
            await switches.close()

"""How tokens and tools read in our own API, and so in the command line's JSON too."""

from datetime import datetime

import msgspec
from msgspec import UNSET, Struct, UnsetType

from eventstore.switches import Disabled
from eventstore.tokens import Dialect, Scope, Token


class TokenBody(Struct, kw_only=True):
    """What is known of a token. `token`, the token itself, is there where it was just made, and never again."""

    id: str
    owner: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expires_at: datetime | None
    dialect: Dialect | None
    note: str
    multiplier: int
    unlimited: bool
    limits: dict[str, int]
    token: str | UnsetType = UNSET


class TokenList(Struct, kw_only=True):
    """Tokens, oldest first."""

    data: list[TokenBody]


class ToolBody(Struct, kw_only=True):
    """A tool; `since` when it is off, or null."""

    owner: str
    tool: str
    disabled: bool
    since: datetime | None


class ToolList(Struct, kw_only=True):
    """The tools that are off, by name; all others are on."""

    data: list[ToolBody]


def token_body(token: Token) -> TokenBody:
    """Without the token itself."""
    known = msgspec.structs.asdict(token) | msgspec.structs.asdict(token.plan)
    return msgspec.convert(known, TokenBody)


def tool_body(off: Disabled) -> ToolBody:
    """Of a tool that is off."""
    return ToolBody(owner=off.owner, tool=off.tool, disabled=True, since=off.since)

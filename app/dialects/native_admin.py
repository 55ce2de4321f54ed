"""Our own API's administration: the tokens and tools of one's own owner (scope `admin`), or of all (`admin:all`)."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from litestar import Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from msgspec import UNSET, Meta, Struct, UnsetType

from app.auth import NotAllowed, Principal
from app.dialects.asked import Asked, strictly
from app.dialects.native_lists import options
from app.dialects.native_tokens import TokenBody, TokenList, ToolBody, ToolList, token_body, tool_body
from app.openapi import PROBLEM
from app.problems import BadRequest, NotFound, OwnToken, TooMany
from eventstore.events import Owner
from eventstore.log import BadSubject, owner_named
from eventstore.switches import MAX_NAME_BYTES, Switches
from eventstore.tokens import PLAN, SCOPES, Dialect, Plan, Scope, Tokens, new_token

MAX_OF_ONE = 1_000
"""Tokens of one owner, and tools that are off: every process keeps them all in memory."""
MAX_OWNER = 148
LONGEST_S = 36_500 * 24 * 3600

OWNER = QueryParameter(description="a name, or as lists show it", min_length=1, max_length=MAX_OWNER)
SHOWN_ONCE = {"Cache-Control": "no-store"}
PRIVATE = {"Cache-Control": "private, no-cache"}


Limit = Annotated[int, Meta(ge=1, le=1_000_000)]


class OwnLimits(
    Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename=lambda name: name.replace("_", ".")
):
    """Limits of the token's own, instead of the deployment's, by their names."""

    native: Limit | UnsetType = UNSET
    niyra_ask: Limit | UnsetType = UNSET
    niyra_execute: Limit | UnsetType = UNSET
    niyra_poll: Limit | UnsetType = UNSET
    shannon_minute: Limit | UnsetType = UNSET
    shannon_hour: Limit | UnsetType = UNSET
    shannon_day: Limit | UnsetType = UNSET
    nanonets: Limit | UnsetType = UNSET


class NewToken(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to make. Without `owner` one's own; without `expires_in_s` for ever. What follows `note` is the plan, how
    much it may ask: only `admin:all` makes another than the usual."""

    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(SCOPES))]
    owner: Annotated[str, Meta(min_length=1, max_length=MAX_OWNER)] | None = None
    expires_in_s: Annotated[int, Meta(ge=1, le=LONGEST_S)] | None = None
    dialect: Dialect | None = None
    note: Annotated[str, Meta(max_length=200)] = ""
    multiplier: Annotated[int, Meta(ge=1, le=1_000)] = 1
    unlimited: bool = False
    limits: OwnLimits = msgspec.field(default_factory=OwnLimits)


class ToolSwitch(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which tool, and whether it is to be off. Without `owner` one's own."""

    tool: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES // 4)]
    disabled: bool
    owner: Annotated[str, Meta(min_length=1, max_length=MAX_OWNER)] | None = None


COMMON = {400: PROBLEM, 401: PROBLEM, 403: PROBLEM, 503: PROBLEM}
CHANGED = {**COMMON, 409: PROBLEM, 413: PROBLEM}
MADE = ResponseSpec(TokenBody, generate_examples=False, description="the token, this once")
TOKENS = ResponseSpec(TokenList, generate_examples=False, description="tokens")
TOOL = ResponseSpec(ToolBody, generate_examples=False, description="the tool as it is now")
REVOKED = {**COMMON, 404: PROBLEM, 409: PROBLEM}
TOOLS = ResponseSpec(ToolList, generate_examples=False, description="tools that are off")


@post("/admin/tokens", status_code=201, responses={**CHANGED, 201: MADE}, tags=["admin"])
async def create_token(
    request: Asked, data: JSONBody[NewToken], tokens: NamedDependency[Tokens]
) -> Response[TokenBody]:
    """Make a token, for one's own owner (for others by `admin:all`), with scopes that one has oneself."""
    request.user.need("admin")
    data = await strictly(request, data)
    owner = _ruled(request.user, data.owner) or request.user.owner
    limits = msgspec.convert(msgspec.to_builtins(data.limits), dict[str, int])
    plan = Plan(multiplier=data.multiplier, unlimited=data.unlimited, limits=limits)
    for scope in data.scopes:
        request.user.need(scope)
    expires_at = None if data.expires_in_s is None else datetime.now(UTC) + timedelta(seconds=data.expires_in_s)
    if plan != PLAN:
        request.user.need("admin:all")
    elif not request.user.rules_all:
        plan = request.user.plan  # whoever was given less gives no more
    if len(await tokens.all(owner)) >= MAX_OF_ONE:
        raise TooMany(f"{owner} has {MAX_OF_ONE} tokens: revoke what is not used")
    secret = new_token()
    made = await tokens.add(
        secret,
        owner,
        tuple(scope for scope in SCOPES if scope in data.scopes),
        expires_at=expires_at,
        dialect=data.dialect,
        note=data.note,
        plan=plan,
    )
    body = token_body(made)
    body.token = secret
    return Response(body, headers=SHOWN_ONCE)


@get("/admin/tokens", responses={**COMMON, 200: TOKENS}, tags=["admin"])
async def list_tokens(
    request: Asked, tokens: NamedDependency[Tokens], owner: Annotated[str | None, OWNER] = None
) -> Response[TokenList]:
    """The owner's tokens, oldest first; with `admin:all` and no `owner`, everybody's."""
    request.user.need("admin")
    known = await tokens.all(_ruled(request.user, owner))
    return Response(TokenList(data=[token_body(token) for token in known]), headers=PRIVATE)


@delete("/admin/tokens/{token_id:str}", status_code=204, responses=REVOKED, tags=["admin"])
async def revoke_token(request: Asked, token_id: FromPath[str], tokens: NamedDependency[Tokens]) -> None:
    """End a token: within a second no process takes it, and its open streams are cut. Another owner's is not there."""
    request.user.need("admin")
    if token_id in (request.user.token_id, request.user.token_hash):
        raise OwnToken("revoke it by another token")
    if await tokens.revoke(token_id, owner=_ruled(request.user, None)) is None:
        raise NotFound("no such token")


@get("/admin/tools", responses={**COMMON, 200: TOOLS}, tags=["admin"])
async def list_tools(
    request: Asked, switches: NamedDependency[Switches], owner: Annotated[str | None, OWNER] = None
) -> Response[ToolList]:
    """The owner's tools that are off. Without `owner` one's own."""
    request.user.need("admin")
    off = await switches.all(_ruled(request.user, owner) or request.user.owner)
    return Response(ToolList(data=[tool_body(one) for one in off]), headers=PRIVATE)


@put("/admin/tools", responses={**CHANGED, 200: TOOL}, tags=["admin"])
async def switch_tool(
    request: Asked, data: JSONBody[ToolSwitch], switches: NamedDependency[Switches]
) -> Response[ToolBody]:
    """Switch a tool off or on: within a second no step with one that is off begins. (Its name may hold anything, and so
    has no place in a path.)"""
    request.user.need("admin")
    data = await strictly(request, data)
    owner = _ruled(request.user, data.owner) or request.user.owner
    since = None
    if not data.disabled:
        await switches.enable(owner, data.tool)
    elif len(await switches.all(owner)) < MAX_OF_ONE or await switches.disabled(owner, data.tool):
        since = (await switches.disable(owner, data.tool)).since
    else:
        raise TooMany(f"{owner} has switched {MAX_OF_ONE} tools off")
    return Response(ToolBody(owner=owner, tool=data.tool, disabled=data.disabled, since=since))


HANDLERS = (
    options("/admin/tokens", "GET, OPTIONS, POST"),
    options("/admin/tools", "GET, OPTIONS, PUT"),
    *(create_token, list_tokens, revoke_token, list_tools, switch_tool),
)


def _ruled(principal: Principal, named: str | None) -> Owner | None:
    """Whose it is about; None: everybody's. Raises BadRequest, NotAllowed: whether there is such an owner or not."""
    if named is None:
        return None if principal.rules_all else principal.owner
    try:
        owner = owner_named(named)
    except BadSubject as error:
        raise BadRequest(str(error)) from error
    if owner != principal.owner and not principal.rules_all:
        raise NotAllowed("admin:all")
    return owner

"""The process commands' options, each also `TASKTRAIL_...` in the environment, and the settings that they make."""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from app.checked import (
    checked_authorities,
    checked_http_url,
    checked_nats_url,
    checked_sync_interval,
    checked_token,
    checked_views_url,
)
from app.local import DEFAULT_DIRECTORY
from app.settings import LIMITED, AgentSettings, AuditSettings, HttpSettings, LogSettings, OAuthSettings, WorkerSettings
from eventstore.connection import NatsAddress
from eventstore.server import SYNC_INTERVAL

Value = TypeVar("Value")
Check = Callable[[click.Context, click.Parameter, Value | None], Value | None]

HTTP, AGENTS, WORK, SIGNING = HttpSettings(), AgentSettings(), WorkerSettings(), AuditSettings()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MANY = click.IntRange(min=1)
SOME_SECONDS = click.FloatRange(min=0.1)


def option(
    name: str,
    text: str,
    kind: click.Path | click.IntRange | click.FloatRange | click.Choice[str] | None = None,
    *,
    default: str | float | Path | None = None,
    required: bool = False,
    several: str | None = None,
    check: Check[str] | Check[Path] | None = None,
) -> click.Option:
    """An option that the environment can set too: `--data-dir` is `TASKTRAIL_DATA_DIR`. It may be repeated where
    `several` is the name of them all."""
    made = click.Option(
        [name, several] if several else [name],
        help=text,
        type=kind,
        required=required,
        multiple=several is not None,
        callback=check,
        envvar=f"TASKTRAIL_{name.removeprefix('--').replace('-', '_').upper()}",
        show_envvar=True,
        show_default=True,
    )
    if default is not None:
        made.default = default
    return made


LOG_LEVEL = option(
    "--log-level",
    "What of the logs, on standard error, is written.",
    click.Choice(["debug", "info", "warning", "error"]),
    default="info",
)
NATS_TEXT = "A NATS server with JetStream, 2.12 or newer; a comma list for a cluster."
OUR_NATS = option("--nats-url", f"{NATS_TEXT} Without it, one of its own is started.", check=checked_nats_url)
GIVEN_NATS = option("--nats-url", NATS_TEXT, required=True, check=checked_nats_url)
VIEWS = option(
    "--views-url",
    "The database of the views, for lists: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME. "
    "[default: none, and no lists; `serve`: the file `views.sqlite` in the data directory]",
    check=checked_views_url,
)
LOG = (
    option("--nats-creds", "The credentials file of our NATS user.", FILE),
    option("--nats-ca", "The authorities of NATS's TLS certificate.", FILE, check=checked_authorities),
    option("--replicas", "How many servers of a cluster keep the log.", click.IntRange(1, 5), default=1),
    option(
        "--max-log-bytes",
        "The log's room; nearly full, it takes no new tasks. -1: all of the disk's.",
        click.IntRange(min=-1),
        default=-1,
    ),
    option(
        "--sync-interval",
        "How often nats-server forces what it acknowledged to the disk (500ms, 2m), or `always`: before each "
        "acknowledgement. Power loss may cost what came since. `serve` starts its own so; of another, say what it has.",
        default=SYNC_INTERVAL,
        check=checked_sync_interval,
    ),
)
AUDIT = (
    option(
        "--audit-key",
        "The file of the Ed25519 key that signs checkpoints of the log; made where there is none. "
        "[default: none, and no checkpoints; `serve`: `audit-key.pem` in the data directory]",
        click.Path(dir_okay=False, path_type=Path),
    ),
    option(
        "--checkpoint-every-s",
        "Seconds after which what is new in the log is signed.",
        SOME_SECONDS,
        default=SIGNING.every_s,
    ),
)
LISTEN = (
    option("--host", "The address to listen on.", default=HTTP.host),
    option("--port", "0: any free one.", click.IntRange(0, 65_535), default=HTTP.port),
)
WEB = (
    option("--ssl-certfile", "Speak HTTPS, with this certificate.", FILE),
    option("--ssl-keyfile", "The certificate's key, where it is in a file of its own.", FILE),
    option(
        "--forwarded-allow-ips",
        "Proxies (a comma list) that are believed about where a request comes from.",
        default=HTTP.forwarded_allow_ips,
    ),
    option("--root-path", "The path under which a proxy shows the API.", default=HTTP.root_path),
    option(
        "--cors-origin", "An origin whose pages may call the API from a browser; repeatable.", several="cors_origins"
    ),
    option(
        "--reads",
        "strict: a poll has seen what any other process was told before; bounded: at most a second late. "
        "[default: strict; bounded where `serve` has a nats-server of its own and one API process, the only one]",
        click.Choice(["strict", "bounded"]),
        default=None,
    ),
    option("--max-body-bytes", "Larger requests are refused.", MANY, default=HTTP.max_body_bytes),
    option(
        "--max-upload-bytes",
        "A form with files may have so many, all together.",
        MANY,
        default=HTTP.max_upload_bytes,
    ),
    option(
        "--max-stream-bytes",
        "A stream's reader who is further behind is cut off, and resumes.",
        MANY,
        default=HTTP.max_stream_bytes,
    ),
    option("--max-attached", "Tasks that are kept in memory.", MANY, default=HTTP.max_attached),
    option(
        "--max-audit-feeds",
        "Streams of the audit feed at once; a quarter of them one owner's.",
        MANY,
        default=HTTP.max_audit_feeds,
    ),
    option("--ping-s", "Seconds between a quiet stream's comments.", SOME_SECONDS, default=HTTP.ping_s),
    option(
        "--niyra-execute-window-s",
        "Seconds that Niyra's `execute` waits for the end; then its caller polls.",
        SOME_SECONDS,
        default=HTTP.niyra_execute_window_s,
    ),
    option(
        "--niyra-ask-window-s",
        "Seconds that Niyra's `ask` waits for the answer.",
        SOME_SECONDS,
        default=HTTP.niyra_ask_window_s,
    ),
)
OAUTH = (
    option(
        "--oauth-issuer",
        "Take OAuth access tokens (JWTs) of this issuer, too: exactly as its tokens name it.",
        check=checked_http_url,
    ),
    option(
        "--oauth-audience",
        "What the issuer calls this API: a token must name it as its audience (aud). Needed with --oauth-issuer.",
    ),
    option(
        "--oauth-jwks-url",
        "Where the issuer's keys are. [default: where its metadata says]",
        check=checked_http_url,
    ),
    option("--oauth-owner-claim", "The claim that names the owner.", default="sub"),
    option("--oauth-dialect-claim", "The claim that may name the dialect.", default="tasktrail_dialect"),
)
OFFER = (
    option("--default-agent", "The agent of a task that names none.", default=AGENTS.default),
    option("--agent-limit", "How many tasks of one agent run at once.", MANY, default=AGENTS.limit),
    option(
        "--documents",
        "What the agent `researcher` searches: a folder of text and Markdown (unless given, the project's docs).",
        click.Path(exists=True, file_okay=False, path_type=Path),
    ),
)
WORKING = (
    option("--slots", "How many tasks a worker process runs at once.", MANY, default=WORK.slots),
    option(
        "--effects",
        "For tests: each tool of the agent `simulator` that acts appends a line to this file.",
        click.Path(dir_okay=False, path_type=Path),
    ),
    option(
        "--simulated-crashes",
        "off: a scenario of the agent `simulator` may not kill its worker, and the tasks of others with it.",
        click.Choice(["on", "off"]),
        default="on",
    ),
)
LEASE = option(
    "--lease-s",
    "Seconds that a silent worker keeps its task; the same for all processes.",
    SOME_SECONDS,
    default=WORK.lease_s,
)
SWEEP = option("--sweep-s", "Seconds between looks for lost work.", SOME_SECONDS, default=WORK.sweep_s)
SERVING = (
    option(
        "--data-dir",
        "Where everything is kept, the address and token for this machine's clients included.",
        click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_DIRECTORY,
    ),
    option(
        "--token",
        "The development token: all scopes, owner `dev`. Without it one is made on the first start, and kept.",
        check=checked_token,
    ),
    option(
        "--api-processes",
        "How many processes answer HTTP, all at one address. With more than one, --reads is strict by default.",
        click.IntRange(1, 64),
        default=1,
    ),
    option("--worker-processes", "How many processes run agents.", click.IntRange(1, 64), default=1),
)


def log_settings(given: Mapping[str, object], nats: NatsAddress | None = None) -> LogSettings:
    """From a command's parameters; `nats` where it is known otherwise."""
    if nats is None:
        address = {"url": given["nats_url"], "creds": given["nats_creds"], "ca": given["nats_ca"]}
        nats = msgspec.convert(address, NatsAddress)
    room = {"nats": nats, "replicas": given["replicas"], "max_bytes": given["max_log_bytes"]}
    return msgspec.convert(room | {"sync_interval": given["sync_interval"]}, LogSettings)


def http_settings(given: Mapping[str, object]) -> HttpSettings:
    """From a command's parameters. Raises UsageError for a certificate that can't be used."""
    told = {name: given[name] for name in HttpSettings.__struct_fields__ if given.get(name) is not None}
    told |= {"limits": {name: given[name] for name in LIMITED}, "oauth": oauth_settings(given)}
    http = msgspec.convert(told, HttpSettings)
    if http.ssl_keyfile and not http.ssl_certfile:
        raise click.UsageError("--ssl-keyfile needs --ssl-certfile")
    if http.ssl_certfile:
        try:
            # The empty password: a key that wants one is refused, not asked for.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(http.ssl_certfile, http.ssl_keyfile, password="")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise click.UsageError(f"{http.ssl_certfile} can't be used as our certificate: {error}") from error
    return http


def oauth_settings(given: Mapping[str, object]) -> OAuthSettings | None:
    """From a command's parameters; None: no issuer's tokens are taken. Raises UsageError."""
    issuer, audience, jwks_url = (given[f"oauth_{name}"] for name in ("issuer", "audience", "jwks_url"))
    if issuer is None or audience is None:
        # Half of it would look like protection: a token that is meant for somebody else must not open ours.
        if issuer or audience or jwks_url:
            lacking = "--oauth-audience" if issuer else "--oauth-issuer"
            raise click.UsageError(f"{lacking} is missing: access tokens are taken where both name whose and for whom")
        return None
    told = {"issuer": issuer, "audience": audience, "jwks_url": jwks_url}
    told |= {name: given[f"oauth_{name}"] for name in ("owner_claim", "dialect_claim")}
    return msgspec.convert(told, OAuthSettings)


def agent_settings(given: Mapping[str, object]) -> AgentSettings:
    """From a command's parameters; what it has no option for is as it is by default."""
    wanted = {
        "default": given.get("default_agent", AGENTS.default),
        "limit": given.get("agent_limit", AGENTS.limit),
        "documents": given.get("documents"),
        "effects": given.get("effects"),
        "crashes": given.get("simulated_crashes", "on") == "on",
    }
    return msgspec.convert(wanted, AgentSettings)


def audit_settings(given: Mapping[str, object]) -> AuditSettings:
    """From a command's parameters."""
    return msgspec.convert({"key": given["audit_key"], "every_s": given["checkpoint_every_s"]}, AuditSettings)


def worker_settings(given: Mapping[str, object]) -> WorkerSettings:
    """From a command's parameters; what it has no option for is as it is by default."""
    known = {name: given[name] for name in WorkerSettings.__struct_fields__ if name in given}
    return msgspec.convert(known, WorkerSettings)


def as_environment(context: click.Context) -> dict[str, str]:
    """What the command was given, as a child process of ours is told it: nothing of it is in a command line."""
    told: dict[str, str] = {}
    for parameter in context.command.params:
        value: object = context.params.get(parameter.name or "")
        if isinstance(parameter.envvar, str) and value is not None:
            # Only --cors-origin has several values, and they are words.
            told[parameter.envvar] = " ".join(
                msgspec.convert(value, list[str]) if isinstance(value, tuple) else [str(value)]
            )
    return told


def without_token(environment: dict[str, str]) -> dict[str, str]:
    """The same, less our own token."""
    return {name: value for name, value in environment.items() if name != "TASKTRAIL_TOKEN"}

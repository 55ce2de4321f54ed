"""What can be set; the command line and `TASKTRAIL_...` in the environment fill it."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from eventstore.connection import NatsAddress
from eventstore.server import SYNC_INTERVAL

MIB = 1024 * 1024
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class OAuthSettings(Struct, frozen=True, kw_only=True):
    """Whose access tokens are taken beside our own. `jwks_url` None: where the issuer's metadata says; `owner_claim`
    names the owner, `dialect_claim` the dialect, where a token has it."""

    issuer: str
    audience: str
    jwks_url: str | None = None
    owner_claim: str = "sub"
    dialect_claim: str = "tasktrail_dialect"

    @property
    def unencrypted(self) -> bool:
        """Whether somebody between us and the issuer could show us keys of their own."""
        asked = urlsplit(self.jwks_url or self.issuer)
        return asked.scheme != "https" and asked.hostname not in LOOPBACK


class LimitSettings(Struct, frozen=True, kw_only=True):
    """How many requests one token may make; a token's plan may say otherwise. 0: as many as it likes."""

    native_limit: int = 0
    niyra_ask_limit: int = 60
    niyra_execute_limit: int = 20
    niyra_poll_limit: int = 600
    shannon_minute_limit: int = 60
    shannon_hour_limit: int = 1_000
    shannon_day_limit: int = 10_000
    nanonets_limit: int = 600


LIMITED = {
    "native_limit": "of our own API in a minute. 0: as many as it likes.",
    "niyra_ask_limit": "to Niyra's `ask` in a minute.",
    "niyra_execute_limit": "to Niyra's `execute` in a minute.",
    "niyra_poll_limit": "to Niyra's `get_task` in a minute.",
    "shannon_minute_limit": "of Shannon's API in a minute.",
    "shannon_hour_limit": "of Shannon's API in an hour.",
    "shannon_day_limit": "of Shannon's API in a day.",
    "nanonets_limit": "of Nanonets' API in a minute.",
}
"""What each is about."""


class HttpSettings(Struct, frozen=True, kw_only=True):
    """How the API listens and what it bounds. Sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8080
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    forwarded_allow_ips: str = "127.0.0.1"
    root_path: str = ""
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = MIB
    max_upload_bytes: int = 32 * MIB
    max_bodies_bytes: int = 256 * MIB
    max_answers_bytes: int = 256 * MIB
    max_stream_bytes: int = MIB
    streams_per_token: int = 1_000
    ping_s: float = 15.0
    max_attached: int = 10_000
    max_audit_feeds: int = 256
    reads: Literal["strict", "bounded"] = "strict"
    niyra_execute_window_s: float = 60.0
    niyra_ask_window_s: float = 30.0
    oauth: OAuthSettings | None = None
    limits: LimitSettings = LimitSettings()

    @property
    def largest_body_bytes(self) -> int:
        """Of any request: a body with its files in base64."""
        return self.max_body_bytes + self.max_upload_bytes * 4 // 3

    @property
    def beyond_loopback(self) -> bool:
        """Whether others than this machine can come."""
        return self.host not in LOOPBACK


class LogSettings(Struct, frozen=True, kw_only=True):
    """The log: where it is, how many replicas, how large it may grow (bytes; -1: no limit), how often it is synced."""

    nats: NatsAddress
    replicas: int = 1
    max_bytes: int = -1
    sync_interval: str = SYNC_INTERVAL

    @property
    def joins(self) -> bool:
        """Whether appends that wait go together: one sync is for all of them."""
        return self.sync_interval == "always"


class AuditSettings(Struct, frozen=True, kw_only=True):
    """Who signs what the log holds: the file of the key (None: nobody), and how often at most, in seconds."""

    key: Path | None = None
    every_s: float = 300.0


class AgentSettings(Struct, frozen=True, kw_only=True):
    """The agents on offer."""

    default: str = "simulator"
    limit: int = 32
    documents: Path | None = None
    effects: Path | None = None
    crashes: bool = True


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """How a worker works. `lease_s` is how long a silent worker keeps its task, `slots` how many it runs at once."""

    slots: int = 32
    lease_s: float = 10.0
    sweep_s: float = 30.0

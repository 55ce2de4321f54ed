"""What can be set; the command line and `TASKTRAIL_...` in the environment fill it."""

from pathlib import Path
from typing import Literal

from msgspec import Struct

from eventstore.connection import NatsAddress

MIB = 1024 * 1024


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
    max_stream_bytes: int = MIB
    ping_s: float = 15.0
    max_attached: int = 10_000
    max_audit_feeds: int = 256
    reads: Literal["strict", "bounded"] = "strict"
    niyra_execute_window_s: float = 60.0
    niyra_ask_window_s: float = 30.0

    @property
    def beyond_loopback(self) -> bool:
        """Whether others than this machine can come."""
        return self.host not in ("127.0.0.1", "::1", "localhost")


class LogSettings(Struct, frozen=True, kw_only=True):
    """The log: where it is, how many replicas, how large it may grow (bytes; -1: no limit)."""

    nats: NatsAddress
    replicas: int = 1
    max_bytes: int = -1


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

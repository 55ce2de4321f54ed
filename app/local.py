"""What a data directory keeps for the clients of this machine: where the service is, the token, where NATS is.

One file, `tasktrail.json`, readable by its user alone. At a clean stop the addresses leave it and the token stays.
"""

from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from eventstore.connection import NatsAddress
from eventstore.lock import write_privately

DEFAULT_DIRECTORY = Path(".tasktrail")
"""The data directory where none is named: in the current directory."""
FILE = "tasktrail.json"


class Local(Struct, frozen=True, kw_only=True):
    """`url` and `nats` are None when the service was stopped; after a crash they are its last. `certificate` is what
    the service shows to a TLS client; `views` the database of its views."""

    token: str
    url: str | None = None
    nats: NatsAddress | None = None
    certificate: Path | None = None
    views: str | None = None


def file_url(path: Path) -> str:
    """The address of views in a SQLite file, without what SQLAlchemy would take to say it."""
    return f"sqlite:///{quote(str(path.absolute()))}"


def read_local(data_dir: Path) -> Local | None:
    """What is kept there; None if nothing is, or nothing that this user may read."""
    try:
        return msgspec.json.decode((data_dir / FILE).read_bytes(), type=Local, dec_hook=_decoded)
    except (OSError, ValueError, msgspec.DecodeError):
        return None


def write_local(data_dir: Path, local: Local) -> None:
    """Keep this instead of what was kept. Raises OSError."""
    write_privately(data_dir / FILE, msgspec.json.format(msgspec.json.encode(local, enc_hook=_encoded)))


def _encoded(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError


def _decoded(wanted: type, value: object) -> object:
    if issubclass(wanted, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError

"""What options are held to before anything begins; each check says what is wrong, and what would be right."""

import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import click

from eventstore.connection import hidden

SYNC_INTERVAL = re.compile(r"always|[1-9][0-9]{0,5}(ms|s|m|h)")
TOKEN = re.compile(r"[\x21-\x7e]{1,512}")


def checked_nats_url(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """Addresses of NATS servers."""
    for one in (url or "").split(",") if url else []:
        try:
            parts = urlsplit(one)
            good = parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise click.BadParameter(f"{hidden(one)!r} is no address of a NATS server (nats://127.0.0.1:4222, say)")
    return url


def checked_http_url(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """An address that HTTP is spoken at."""
    if url is not None:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
        except ValueError:
            good = False
        if not good or not TOKEN.fullmatch(url):
            raise click.BadParameter(f"{url!r} is no address (https://login.example.org, say)")
    return url


def checked_sync_interval(_context: click.Context, _option: click.Parameter, interval: str | None) -> str | None:
    """A time as nats-server reads it, or `always`."""
    if interval is not None and not SYNC_INTERVAL.fullmatch(interval):
        raise click.BadParameter(f"{interval!r} is neither `always` nor a time (500ms, 1s, 2m or 1h, say)")
    return interval


def checked_token(_context: click.Context, _option: click.Parameter, token: str | None) -> str | None:
    """What may be a token."""
    if token is not None and not TOKEN.fullmatch(token):
        raise click.BadParameter("a token is 1 to 512 printable ASCII characters, without spaces")
    return token


def checked_authorities(_context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """A file of certificates."""
    if path is not None:
        try:
            ssl.create_default_context(cafile=str(path))
        except (ssl.SSLError, OSError) as error:
            raise click.BadParameter(f"{path} holds no certificates: {error}") from error
    return path


def checked_views_url(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    """An address of a database, whole."""
    if url is None:
        return None
    # Imported here: most processes and commands have no use for a database's driver.
    from projections.database import settled
    from projections.views_errors import ViewsUnavailable

    try:
        return settled(url)
    except ViewsUnavailable as error:
        raise click.BadParameter(str(error)) from error

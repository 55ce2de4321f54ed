"""How many files this process may have open: each connection, and so each stream, takes one."""

import resource
from contextlib import suppress

import structlog

log = structlog.stdlib.get_logger()

FEW = 10_000
"""Fewer, and thousands of streams are not to be had."""
MACOS_MOST = 10_240
"""What macOS grants where its hard limit says that there is none."""


def raise_open_files() -> None:
    """Have as many as the system lets this process have, and its children; say so where that is few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, MACOS_MOST):
        if _beyond(wanted, soft):
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                break
    may, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _beyond(FEW, may):
        advice = "each stream takes one: raise the hard limit (LimitNOFILE of systemd, ulimit -Hn, docker --ulimit)"
        log.warning("open_files.few", limit=may, advice=advice)


def _beyond(wanted: int, has: int) -> bool:
    if has == resource.RLIM_INFINITY:
        return False
    return wanted == resource.RLIM_INFINITY or wanted > has

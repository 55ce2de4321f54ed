"""The options that say how much a token may ask."""

import click

from app.options import HTTP, option
from app.settings import LIMITED

LIMITS = tuple(
    option(
        f"--{name.replace('_', '-')}",
        f"Requests that a token may make {what}",
        click.IntRange(min=0 if name == "native_limit" else 1),
        default=getattr(HTTP.limits, name),
    )
    for name, what in LIMITED.items()
)

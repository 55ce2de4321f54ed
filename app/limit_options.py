"""The options that say how much a token may ask, and how much a process holds for all."""

import click

from app.options import HTTP, MANY, option
from app.settings import LIMITED

BOUNDS = (
    option(
        "--streams-per-token",
        "Streams that a token may have open in a process; as many as it likes where it is unlimited.",
        MANY,
        default=HTTP.streams_per_token,
    ),
    option(
        "--max-bodies-bytes",
        "Bytes of requests' bodies that a process takes in at once; a quarter of them one owner's.",
        MANY,
        default=HTTP.max_bodies_bytes,
    ),
    option(
        "--max-answers-bytes",
        "The same of answers that may be large.",
        MANY,
        default=HTTP.max_answers_bytes,
    ),
)
LIMITS = tuple(
    option(
        f"--{name.replace('_', '-')}",
        f"Requests that a token may make {what}",
        click.IntRange(min=0 if name == "native_limit" else 1),
        default=getattr(HTTP.limits, name),
    )
    for name, what in LIMITED.items()
)

"""Which generation of the views is read, and how: a question to it is asked again where it was switched meanwhile."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from projections.database import Database
from projections.schema import GENERATIONS, NAME, SERVED
from projections.views_errors import ViewsUnavailable

Answer = TypeVar("Answer")


class Served(Struct, frozen=True):
    """What is read: a generation, its fold, how far it is, and how far its tasks' clocks were apart (microseconds)."""

    generation: int
    fold: int
    checkpoint: int
    skew: int


Question = Callable[[AsyncConnection, Served], Awaitable[Answer]]


async def read(database: Database, ask: Question[Answer], *, at_one_moment: bool = False) -> Answer:
    """Ask the generation that is served, to the end. Raises ViewsUnavailable."""
    return await database.whole(_ask(database, ask, at_one_moment=at_one_moment))


async def _ask(database: Database, ask: Question[Answer], *, at_one_moment: bool) -> Answer:
    served: Served | None = None
    while True:
        try:
            async with database.reading(at_one_moment=at_one_moment) as connection:
                served = await what_is_served(connection)
                return await ask(connection, served)
        except ViewsUnavailable:
            # In PostgreSQL a switch may drop the table just before it is read: then there is another one by now.
            if served is None or not await _switched_from(database, served):
                raise


async def _switched_from(database: Database, served: Served) -> bool:
    async with database.reading() as connection:
        return (await what_is_served(connection)).generation != served.generation


async def what_is_served(connection: AsyncConnection) -> Served:
    """Raises ViewsUnavailable where nothing is yet."""
    c = GENERATIONS.c
    row = select(c.generation, c.fold, c.checkpoint, c.skew).join(SERVED, SERVED.c.generation == c.generation)
    served = (await connection.execute(row.where(SERVED.c.name == NAME))).one_or_none()
    if served is None:
        raise ViewsUnavailable("the views are being built")
    return Served(*served)

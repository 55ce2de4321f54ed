"""The two databases: whatever takes `views_url` or `database` runs once with each."""

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from projections.database import Database
from tests.projections.databases import Cluster, cluster


@pytest.fixture(scope="session")
def postgresql() -> Generator[Cluster]:
    """One PostgreSQL for all tests; each has a database of its own in it."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def views_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the views of this test are."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'views.db'}"
    running: Cluster = request.getfixturevalue("postgresql")
    return running.new_database()


@pytest.fixture
async def database(views_url: str) -> AsyncGenerator[Database]:
    """An empty database."""
    database = Database.open(views_url)
    yield database
    await database.close()

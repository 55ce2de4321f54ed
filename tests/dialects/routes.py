"""The application's own route table."""

from litestar import Litestar

from app.api import build
from app.beginning import Beginning
from app.dialects.crossroads import Crossroads
from app.dialects.shannon_tracing import Tracing
from app.front import Front
from app.heads import Heads
from app.limiting import Telling
from app.observed import Observed
from tests.api import Api


def litestar_of(api: Api) -> Litestar:
    """What is inside of all the layers."""
    built: object = build(api.rooms)
    while isinstance(built, Front | Beginning | Observed | Heads | Crossroads | Tracing | Telling):
        built = built._app  # pyright: ignore[reportPrivateUsage]  # what is inside is what is asked about
    assert isinstance(built, Litestar)
    return built

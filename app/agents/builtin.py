"""The agents that come with Tasktrail."""

from functools import cached_property
from pathlib import Path

import app
from app.agents.agent import Agent, Brief, Work
from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.settings import AgentSettings

PROJECT_DOCS = Path(app.__file__).parent.parent / "docs"
"""What the researcher searches unless told otherwise; only a checkout has it."""


class LazyResearcher:
    """The researcher, which is imported when it first runs: it takes numpy along, and most processes only name it."""

    name = "researcher"
    description = "Searches a folder of documents and writes a brief in which every sentence cites file and line."

    def __init__(self, documents: Path, *, limit: int) -> None:
        self.documents = documents
        self.limit = limit

    def run(self, brief: Brief) -> Work:
        """Write the brief. Raises AgentFailed."""
        return self.loaded.run(brief)

    @cached_property
    def loaded(self) -> Agent:
        """The agent itself."""
        from app.agents.researcher import Researcher

        return Researcher(self.documents, limit=self.limit)


def catalogue(settings: AgentSettings) -> Catalogue:
    """`simulator`, and `researcher` where there are documents. Raises UnknownAgent for an unknown default."""
    agents: list[Agent] = [Simulator(effects=settings.effects, crashes=settings.crashes, limit=settings.limit)]
    documents = settings.documents or (PROJECT_DOCS if PROJECT_DOCS.is_dir() else None)
    if documents is not None:
        agents.append(LazyResearcher(documents, limit=settings.limit))
    return Catalogue(agents, default=settings.default)

"""The agents that a deployment offers, by name."""

from collections.abc import Iterator

from app.agents.agent import Agent


class UnknownAgent(Exception):
    """No agent by this name."""


class Catalogue:
    """Agents by name; `default` is the one of a task that names none."""

    def __init__(self, agents: list[Agent], *, default: str) -> None:
        self._agents = {agent.name: agent for agent in agents}
        if default not in self._agents:
            raise UnknownAgent(f"no agent {default!r}; there are: {', '.join(self._agents)}")
        self.default = default

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._agents)

    def __contains__(self, name: str) -> bool:
        return name in self._agents

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())

    def get(self, name: str) -> Agent | None:
        """The agent, or None."""
        return self._agents.get(name)

    def limit(self, name: str) -> int:
        """How many tasks of this agent may run at once."""
        agent = self._agents.get(name)
        return agent.limit if agent is not None else 0

"""The command group `audit`. Its commands are imported when one is asked for: no other command needs what they need."""

import click


class AuditCommands(click.Group):
    """A group whose commands are elsewhere."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        return self._known().get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them, in the order of their use."""
        return [*self._known()]

    def _known(self) -> dict[str, click.Command]:
        from app.audit_commands import COMMANDS

        return {command.name: command for command in COMMANDS if command.name}


@click.group(name="audit", cls=AuditCommands)
def audit() -> None:
    """Prove what the log holds, take it elsewhere, count it.

    The log is that of the service on this machine, running or stopped (`--data-dir`), of another one (`--url` and
    `--token`, which needs scope audit:all to see all of it), or on NATS (`--nats-url`).
    """

"""The command that writes what the log holds as documents for programs; it asks no service."""

from pathlib import Path

import click

from app.schemas import DOCUMENTS


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False, writable=True),
    default=Path(),
    metavar="DIRECTORY",
    help="Where to write them.  [here]",
)
def schemas(output: Path) -> None:
    """Write the JSON Schema of all facts and the AsyncAPI of what can be followed.

    The service gives the same under /docs: facts.schema.json and asyncapi.json.

    \b
    Example:
      tasktrail schemas --output schemas
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, document in DOCUMENTS.items():
            (output / name).write_bytes(document())
            click.echo(output / name)
    except OSError as error:
        raise click.UsageError(f"{output}: {error.strerror}") from error

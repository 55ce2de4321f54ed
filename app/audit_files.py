"""`audit export`, `audit import`: the log into a file, and back into an empty log; either goes on where it stopped."""

import os
import sys
from collections.abc import Generator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import msgspec

from app import __version__
from app.asking import BAD, SEQUENCE, TIME
from app.audit_options import needs
from app.audit_sources import AuditCommand, Opened, Place, WritingCommand, opened
from app.freezing import run_frozen
from app.progress import bar
from app.replies import ClientError, NotTried
from app.token_commands import OwnerType
from app.wording import one_line
from eventstore.checkpointing import Signed
from eventstore.events import Owner
from eventstore.log import LogError
from projections.exports import Selection, begun, check_continued, cloudevents, export, ndjson
from projections.imports import ExportFile, faults_in, put_back
from projections.lines import BadLine

Format = Literal["ndjson", "cloudevents", "parquet"]
STDOUT = Path("-")
SHOWN = 20


@click.command(name="export", cls=AuditCommand)
@click.option(
    "--format",
    "form",
    type=click.Choice(["ndjson", "cloudevents", "parquet"]),
    default="ndjson",
    show_default=True,
    help="ndjson: all there is, to be verified and imported; cloudevents: one a line; parquet: a table.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    required=True,
    help="The file; `-`: standard output. One that was begun is continued.",
)
@click.option("--owner", type=OwnerType(), help="Only this owner's records, and the checkpoints.")
@click.option("--after", type=SEQUENCE, default=0, help="Only records after this sequence.")
@click.option(
    "--since", type=TIME, metavar="TIME", help="Only records since then: 2026-01-31, or 2026-01-31T12:00:00Z."
)
@click.pass_obj
def export_log(
    place: Place, form: Format, output: Path, owner: Owner | None, after: int, since: datetime | None
) -> None:
    """Write the log to a file, oldest record first, with what is too big for a record.

    Interrupted, by whatever: the same command goes on where it stopped. Later: it adds what is new. Where the
    deployment has a key, a signed checkpoint is the last record: keep it, and nothing before can be changed unseen.

    \b
    Examples:
      tasktrail audit export --output log.ndjson
      tasktrail audit export --owner ann --format parquet --output ann.parquet
    """
    selection = Selection(owner=owner, after=after, since=since)
    with _of_files(output):
        if form == "parquet":
            _check_parquet(output)
        run_frozen(_export(place, form, output, selection))


@contextmanager
def _of_files(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise NotTried(f"{path}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        if path != STDOUT:
            click.echo("stopped; the same command goes on from there", err=True)
        raise


async def _export(place: Place, form: Format, output: Path, selection: Selection) -> None:
    async with opened(place) as at:
        await _check_after(at, selection)
        if not at.source.whole and selection.owner is None:
            selection = msgspec.structs.replace(selection, owner=at.owner)
        signed, why_not = await _signed(at)
        up_to = signed.sequence if signed else await at.source.end()
        draft = output.with_name(f"{output.name}.ndjson") if form == "parquet" else output
        written = await _write(at, form, draft, selection, up_to)
        if form == "parquet":
            # Imported here: only a table needs pyarrow, which is an extra.
            from projections.parquet import to_parquet

            with bar("writing the table") as show:
                written = to_parquet(draft, output, show)
        if signed and not await _is_taken(at, selection, signed.sequence):
            signed, why_not = None, f"no checkpoint is in it: the last one, {signed.sequence:,}, was not asked for"
    click.echo(f"{at.what}: {written:,} records written, up to record {up_to:,} of the log", err=True)
    click.echo(f"checkpoint {signed.sequence:,} is the last, signed by {signed.key}" if signed else why_not, err=True)


async def _check_after(at: Opened, selection: Selection) -> None:
    end = await at.source.end() if selection.after else 0
    if selection.after > end:
        raise NotTried(f"--after {selection.after:,} is beyond the end: the last record of {at.what} is {end:,}")


async def _is_taken(at: Opened, selection: Selection, sequence: int) -> bool:
    async with aclosing(at.source.arrivals(sequence - 1, sequence)) as batches:
        return sequence > selection.after and any([selection.takes(one) async for batch in batches for one in batch])


async def _signed(at: Opened) -> tuple[Signed | None, str]:
    """A checkpoint of all that there is now; else why there is none."""
    if at.sign is None:
        return None, f"no checkpoint was asked for: {at.unsigned}"
    try:
        signed = await at.sign()
    except (LogError, ClientError) as error:
        return None, f"no checkpoint is at the end: {error}"
    return (signed, "") if signed.sequence else (None, "no checkpoint is at the end: the log is empty")


async def _write(at: Opened, form: Format, output: Path, selection: Selection, up_to: int) -> int:
    now = datetime.now(UTC)
    wanted = cloudevents() if form == "cloudevents" else ndjson(__version__, now, at.source, selection)
    with bar("exporting") as show:
        if output == STDOUT:
            sys.stdout.buffer.write(wanted.header)
            written = await export(at.source, sys.stdout.buffer, wanted, selection, show, after=0, up_to=up_to)
            sys.stdout.buffer.flush()
            return written
        kept = begun(output, wanted)
        await check_continued(kept, wanted, at.source)
        with output.open("r+b") as file:
            file.seek(kept.size)
            file.truncate()
            written = await export(at.source, file, wanted, selection, show, after=kept.sequence, up_to=up_to)
            file.flush()
            os.fsync(file.fileno())
        return written


def _check_parquet(output: Path) -> None:
    """What can be known before much is done."""
    if output == STDOUT:
        raise click.UsageError("--format parquet needs a file")
    if output.exists():
        raise NotTried(f"{output} is there already; a Parquet file can't be continued: remove it, or name another")
    needs("pyarrow", "--format parquet")


@click.command(name="import", cls=WritingCommand)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dispatch", is_flag=True, help="Tasks that have not ended go on, as if they had begun here.")
@click.pass_obj
@click.pass_context
def import_log(ctx: click.Context, place: Place, file: Path, dispatch: bool) -> None:
    """Put a whole NDJSON export into an empty log, record by record as it is. Unfinished tasks stay as they are.

    All of the file is checked first: where anything is wrong nothing is written, and the exit code is 1. Interrupted:
    the same command goes on where it stopped.

    \b
    Example:
      tasktrail audit import log.ndjson --data-dir restored
    """
    with _of_files(file):
        # What is no export can't be tried; a line of one that is wrong is a fault.
        export_file = ExportFile.open(file, strict=True)
        try:
            ctx.exit(run_frozen(_import(place, export_file, dispatch=dispatch)))
        except BadLine as error:
            click.echo(f"nothing was written: {error}", err=True)
            ctx.exit(BAD)


async def _import(place: Place, file: ExportFile, *, dispatch: bool) -> int:
    with bar("checking") as show:
        found = await faults_in(file, show)
    if found.fault_count:
        click.echo(f"nothing was written: {file.path} has {found.fault_count:,} faults", err=True)
        for fault in found.faults[:SHOWN]:
            click.echo(f"  {one_line(str(fault))}", err=True)
        return BAD
    async with opened(place, make=True) as at:
        assert at.log is not None, "what can be written to is a log"
        with bar("importing") as show:
            written = await put_back(file, at.log, show, imported=not dispatch)
    before = found.records - written
    again = f" ({before:,} were there by an earlier try)" if before else ""
    click.echo(f"{at.what}: {written:,} records imported{again}")
    return 0

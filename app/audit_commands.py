"""The `audit` commands that ask what is true: is the log as it was signed (`verify`), and by whom (`key`)."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import click
import msgspec
from msgspec import Struct

from app.asking import BAD, TASK_ID
from app.audit_files import export_log, import_log
from app.audit_key import audit_key
from app.audit_sources import Opened, Place, ReadingCommand, opened
from app.audit_stats import stats
from app.freezing import run_frozen
from app.progress import bar
from app.replies import NotTried
from app.supervisor import AUDIT_KEY_FILE
from app.wording import one_line
from eventstore.codec import decode_checkpoint
from eventstore.events import Checkpoint, TaskId
from eventstore.log import CHECKPOINTS, Arrival
from projections.audit import Fault, Verification
from projections.imports import ExportFile, last_checkpoint_in
from projections.proof import BadKey, is_signed, named, public_key
from projections.sources import Source, is_of
from projections.sources import verify as show_all

SHOWN = 100
"""So many faults are written out; all are counted."""


class KeyType(click.ParamType[str]):
    """A public key."""

    name = "key"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As checkpoints name it."""
        try:
            return named(public_key(value))
        except BadKey as error:
            self.fail(str(error), param, ctx)


class Verified(Struct, frozen=True, kw_only=True):
    """What a verification came to, for programs. `whole`: all records were shown; `signed_up_to`: all up to there is
    covered by checkpoints; `keys` are theirs, `keys_given` whether they were asked for; `fault_count`: of `faults` and
    of `broken` (what is wrong with the file's lines), of each of which the first are named."""

    source: str
    whole: bool
    records: int
    last_sequence: int
    seconds: float
    newer: int
    signed_up_to: int
    checkpoints: int
    keys: tuple[str, ...]
    keys_given: bool
    fault_count: int
    faults: tuple[Fault, ...]
    broken: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.fault_count


class _Watched:
    """A source of which is remembered what it has at one sequence, and whether it has anything of a task."""

    def __init__(self, source: Source, sequence: int, task: TaskId | None) -> None:
        self._source = source
        self._sequence = sequence
        self._task = task
        self.found: Arrival | None = None
        self.of_task = 0
        self.whole = source.whole

    async def end(self) -> int:
        return await self._source.end()

    async def blob(self, name: str) -> bytes | None:
        return await self._source.blob(name)

    async def arrivals(self, after: int, up_to: int) -> AsyncGenerator[list[Arrival]]:
        async with aclosing(self._source.arrivals(after, up_to)) as batches:
            async for batch in batches:
                if batch[0].sequence <= self._sequence <= batch[-1].sequence:
                    self.found = next((one for one in batch if one.sequence == self._sequence), None)
                if self._task is not None:
                    self.of_task += sum(is_of(self._task, one.subject) for one in batch)
                yield batch


@click.command(cls=ReadingCommand)
@click.option("--task", "task_id", type=TASK_ID, help="Only this task (and the checkpoints, which cover it).")
@click.option(
    "--key",
    "keys",
    type=KeyType(),
    multiple=True,
    metavar="KEY",
    help="Only this key's signatures count; repeatable, for a log whose key was changed.",
)
@click.option(
    "--held",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A checkpoint's line that you kept, or an export that ends with one: the log must have that very record.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@click.pass_obj
@click.pass_context
def verify(
    ctx: click.Context, place: Place, task_id: TaskId | None, keys: tuple[str, ...], held: Path | None, as_json: bool
) -> None:
    """Check every record: the chain of each task, the order of all, the blobs, and what was signed of it.

    The exit code is 1 where anything is wrong; each fault is named by its record.

    \b
    Examples:
      tasktrail audit verify
      tasktrail audit verify --file log.ndjson --key ed25519:MCowBQYDK2VwAyEA... --held checkpoint.json
    """
    verified = run_frozen(_verify(place, task_id, frozenset(keys), held))
    click.echo(msgspec.json.encode(verified) if as_json else _report(verified, task_id))
    if not verified.good:
        ctx.exit(BAD)


async def _verify(place: Place, task_id: TaskId | None, keys: frozenset[str], held: Path | None) -> Verified:
    kept = None if held is None else last_checkpoint_in(held)
    async with opened(place) as at:
        if isinstance(at.source, ExportFile) and at.source.begins_later:
            raise NotTried(f"{at.what} does not begin with the first record: verify a whole export, or the log")
        watched = _Watched(at.source, 0 if kept is None else kept.sequence, task_id)
        verification = Verification(whole=at.source.whole and task_id is None, keys=keys)
        since = time.monotonic()
        with bar() as show:
            await show_all(watched, verification, show, task=task_id)
        if task_id is not None and not watched.of_task:
            raise NotTried(f"{at.what} has no record of {task_id}")
        if kept is not None:
            if not at.source.whole:
                raise NotTried(f"{at.what} does not show all of the log, so what you hold can't be looked for")
            verification.held(kept, watched.found)
        return _verified(at, verification, time.monotonic() - since, bool(keys))


def _verified(at: Opened, verification: Verification, seconds: float, keys_given: bool) -> Verified:
    covered = verification.covered
    file = at.source if isinstance(at.source, ExportFile) else None
    return Verified(
        source=at.what,
        whole=at.source.whole,
        records=verification.records,
        last_sequence=verification.last_sequence,
        seconds=round(seconds, 3),
        newer=verification.newer,
        signed_up_to=covered.sequence,
        checkpoints=covered.checkpoints,
        keys=tuple(sorted(covered.keys)),
        keys_given=keys_given,
        fault_count=verification.fault_count + (file.broken_count if file else 0),
        faults=tuple(sorted(verification.faults, key=lambda fault: fault.sequence)),
        broken=tuple(file.broken) if file else (),
    )


def _report(verified: Verified, task_id: TaskId | None) -> str:
    """For people."""
    rate = verified.records / max(verified.seconds, 0.001)
    lines = [
        f"{verified.source}: {verified.records:,} records in {verified.seconds:.1f} s, {rate:,.0f} a second",
        *_signatures(verified),
    ]
    if not verified.whole and task_id is None:
        lines.append(
            "only one owner's records are shown here: that a whole task is missing, or the end of one, can't be seen"
        )
    if verified.newer:
        lines.append(f"{verified.newer:,} records are in the words of a newer release; their chain was checked")
    if verified.good:
        return "\n".join([*lines, "no faults"])
    count = verified.fault_count
    lines.append(f"{count:,} fault{'s' if count > 1 else ''}:")
    faults = [*map(str, verified.faults), *(f"the file, {one}" for one in verified.broken)]
    lines += [f"  {one_line(fault)}" for fault in faults[:SHOWN]]
    if count > SHOWN:
        lines.append(f"  and {count - min(SHOWN, len(faults)):,} more")
    return "\n".join(lines)


def _signatures(verified: Verified) -> list[str]:
    if not verified.checkpoints:
        return ["nothing is signed here: that the end of a task, or a whole task, is missing can't be seen"]
    trust = "as given" if verified.keys_given else "trusted because the log itself says so; --key says whom you trust"
    lines = [
        f"signed up to record {verified.signed_up_to:,}; checkpoints: {verified.checkpoints:,}; keys ({trust}):",
        *(f"  {key}" for key in verified.keys),
    ]
    after = verified.last_sequence - verified.signed_up_to - 1
    if after > 0:
        what = f"{after:,} records after that" if verified.whole else "what is shown of the records after that"
        lines.append(f"not signed yet: {what}")
    return lines


@click.command(cls=ReadingCommand)
@click.pass_obj
def key(place: Place) -> None:
    """Print the public key that signs the log's checkpoints: auditors should have it from you, not from the log.

    It is that of the data directory's key file; else that of the log's last checkpoint.

    \b
    Example:
      tasktrail audit key
    """
    click.echo(asyncio.run(_key(place)))


async def _key(place: Place) -> str:
    path = place.data_dir / AUDIT_KEY_FILE
    if place.url is None and place.nats is None and place.file is None and path.exists():
        return named(audit_key(path).public_key())
    if place.file is not None:
        return _key_of(last_checkpoint_in(place.file))
    async with opened(place) as at:
        if at.log is not None:
            last = await at.log.last_checkpoint()
            if last is None:
                raise NotTried(f"{at.what} has no checkpoint yet")
            return _key_of(last)
        if at.sign is None:
            raise NotTried(f"{at.what} shows this token one owner's records only: the key needs scope audit:all")
        return (await at.sign()).key


def _key_of(arrival: Arrival) -> str:
    record = decode_checkpoint(arrival.stored)
    if not isinstance(record.fact, Checkpoint) or arrival.subject != CHECKPOINTS:
        raise NotTried("the last checkpoint is in the words of a newer release")
    if not is_signed(record, record.fact):
        raise NotTried("the signature of the last checkpoint is wrong: verify says more")
    return named(public_key(record.fact.key))


COMMANDS: list[click.Command] = [verify, export_log, import_log, stats, key]

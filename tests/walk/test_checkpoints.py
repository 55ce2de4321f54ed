"""Checkpoints on a real log: written while we serve, on request, at a stop; by whoever leads, and by one at a time."""

import asyncio
import base64
import stat
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from app import checkpoints as room
from app.audit_key import audit_key
from app.checkpoints import Carrier, Checkpoints
from app.settings import LogSettings
from eventstore.checkpointing import NobodySigns, Signer
from eventstore.codec import decode_checkpoint, encode
from eventstore.connection import NatsAddress
from eventstore.events import Checkpoint
from eventstore.jetstream import JetStreamLog
from eventstore.log import CHECKPOINTS, Arrival, EventLog, LogUnavailable, task_subject
from eventstore.server import EmbeddedServer
from projections.audit import Verification
from projections.proof import BadKey, Leaves, named, signed, text_of
from projections.sources import LogSource, verify
from tests.api import DEV, Api, running
from tests.log.logs import ANN, SOON_S, created, grow, jetstream, new_task, record_of

KEY = Ed25519PrivateKey.generate()
NAME = named(KEY.public_key())


@asynccontextmanager
async def carried(nats: NatsAddress, *, every_s: float = 300.0) -> AsyncGenerator[Signer]:
    """Somebody who signs, ready to be asked."""
    carrying = asyncio.create_task(Carrier(LogSettings(nats=nats), KEY, every_s).run())
    async with jetstream(nats) as log:
        signer = Signer(log.connection)
        try:
            async with asyncio.timeout(SOON_S):
                while True:
                    try:
                        await signer.sign()
                        break
                    except NobodySigns:
                        await asyncio.sleep(0.02)
            yield signer
        finally:
            carrying.cancel()
            await asyncio.wait({carrying})


async def verified(log: EventLog) -> Verification:
    verification = Verification(whole=True, keys=frozenset({NAME}))
    await verify(LogSource(log), verification, lambda at, end: None)
    return verification


async def test_what_is_new_is_signed_in_time_and_nothing_where_nothing_is(nats_address: NatsAddress):
    async with jetstream(nats_address) as log, carried(nats_address, every_s=0.1):
        grown = await grow(log, new_task(), 3)
        async with asyncio.timeout(SOON_S):
            while (await verified(log)).covered.sequence < grown[-1].sequence:  # noqa: ASYNC110  # nothing announces it
                await asyncio.sleep(0.05)
        was = await log.last_sequence()
        await asyncio.sleep(3 * room.LOOK_S)  # what must not happen is announced by nothing
        assert await log.last_sequence() == was


async def test_all_that_is_there_is_signed_on_request(nats_address: NatsAddress):
    async with jetstream(nats_address) as log, carried(nats_address) as signer:
        assert (await signer.sign()).sequence == 0
        await grow(log, new_task(), 5)
        signed = await signer.sign()
        assert (signed.sequence, signed.covers, signed.key) == (6, 5, NAME)
        assert await signer.sign() == signed
        verification = await verified(log)
        assert (verification.faults, verification.covered.sequence) == ([], 5)


async def test_the_last_words_are_signed_at_a_stop(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        async with carried(nats_address):
            await grow(log, new_task(), 5)
        verification = await verified(log)
        assert (verification.faults, verification.covered.sequence) == ([], 5)


async def test_who_comes_next_goes_on_where_the_last_one_was(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        for _ in range(3):
            async with carried(nats_address):
                await grow(log, new_task(), 4)
        verification = await verified(log)
        assert (verification.faults, verification.covered.checkpoints) == ([], 3)


async def test_two_who_sign_at_once_leave_one_chain(nats_address: NatsAddress):
    async with jetstream(nats_address) as log, jetstream(nats_address) as other:
        both = [Checkpoints(log, KEY), Checkpoints(other, KEY)]
        for _ in range(5):
            await grow(log, new_task(), 3)
            told = await asyncio.gather(*[one.write() for one in both], return_exceptions=True)
            assert all(not isinstance(one, BaseException) or isinstance(one, LogUnavailable) for one in told)
            assert any(not isinstance(one, BaseException) for one in told)
        for one in both:
            await one.close()
        assert (await verified(log)).faults == []


async def test_a_long_unsigned_log_gets_several_with_their_leaves_in_blobs(
    nats_address: NatsAddress, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(room, "MAX_LEAVES", 15_000)
    async with jetstream(nats_address) as log:
        stored = encode(record_of(created()))
        last = 20_000
        await log.put_back([Arrival(n, task_subject(ANN, new_task()), stored) for n in range(1, last + 1)])
        checkpoints = Checkpoints(log, KEY)
        signed = await checkpoints.write()
        await checkpoints.close()
        verification = await verified(log)
        assert (verification.faults, verification.covered.checkpoints) == ([], 2)
        assert signed.covers == last
        arrival = await log.last_checkpoint()
        assert arrival is not None
        assert len(arrival.stored) < 200_000


async def test_a_server_that_dies_between_leaves_no_hole(server: EmbeddedServer):
    async with jetstream(server.address) as log:
        checkpoints = Checkpoints(log, KEY)
        grown = await grow(log, new_task(), 3)
        await checkpoints.write()
        await server.kill()
        await server.restart()
        await log.last_sequence()
        await grow(log, new_task(), 3)
        await until_written(log, checkpoints, grown[-1].sequence + 4)
        await checkpoints.close()
        assert (await verified(log)).faults == []


OTHERS = Ed25519PrivateKey.generate()


async def forge(log: JetStreamLog, content: bytes) -> None:
    """What anybody who may publish can put there."""
    answer = await log.connection.request(CHECKPOINTS, content)
    assert b'"error"' not in answer.data, answer.data


def forged(key: Ed25519PrivateKey, after: int, sequence: int, *, version: int = 1) -> bytes:
    """Signed, by somebody, and covering whatever they like."""
    record = signed(key, "forged", datetime.now(UTC), "eve", None, Leaves(after))
    assert isinstance(record.fact, Checkpoint)
    said = replace(record.fact, sequence=sequence)
    record = replace(record, version=version, fact=said)
    signature = base64.b64encode(key.sign(text_of(record, said))).decode()
    return encode(replace(record, fact=replace(said, signature=signature)))


FORGED = {
    "junk": b"junk",
    "deep": b'{"a":' * 10_000,
    "beyond the end": forged(OTHERS, 0, 10**17),
    "unsigned": forged(OTHERS, 0, 1).replace(b'"actor":"eve"', b'"actor":"bob"'),
    "another key's": forged(OTHERS, 3, 3),
    "of the last version": forged(OTHERS, 3, 3, version=2**64 - 1),
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_checkpoint_stops_no_later_ones(nats_address: NatsAddress, content: bytes):
    async with jetstream(nats_address) as log:
        grown = await grow(log, new_task(), 3)
        going_on = Checkpoints(log, KEY)
        assert (await going_on.write()).covers == 3
        await forge(log, content)
        grown = await grow(log, grown[0].task_id, 1, grown[-1])
        signed_now = await going_on.write()
        assert (signed_now.sequence, signed_now.covers, signed_now.key) == (7, 6, NAME)
        await forge(log, content)
        grown = await grow(log, grown[0].task_id, 1, grown[-1])
        begun = Checkpoints(log, KEY)
        signed_now = await begun.write()
        assert (signed_now.sequence, signed_now.covers, signed_now.key) == (10, 9, NAME)
        assert await going_on.write() == signed_now
        said = [decode_checkpoint(one.stored).fact for one in await ours(log)]
        assert [(one.after, one.sequence) for one in said if isinstance(one, Checkpoint)] == [(0, 3), (3, 6), (6, 9)]
        await begun.close()
        await going_on.close()


async def ours(log: EventLog) -> list[Arrival]:
    """The checkpoints that name our key."""
    batches = LogSource(log).arrivals(0, await log.last_sequence())
    return [
        one async for batch in batches for one in batch if one.subject == CHECKPOINTS and NAME.encode() in one.stored
    ]


async def test_a_copy_of_an_older_checkpoint_takes_nothing_back(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        for _ in range(3):
            await grow(log, new_task(), 2)
            checkpoints = Checkpoints(log, KEY)
            await checkpoints.write()
            await checkpoints.close()
        first, *_, last = await ours(log)
        await forge(log, first.stored)
        checkpoints = Checkpoints(log, KEY)
        assert (await checkpoints.write()).covers == last.sequence - 1
        await grow(log, new_task(), 1)
        assert (await checkpoints.write()).covers == last.sequence + 2
        await checkpoints.close()
        said = decode_checkpoint((await ours(log))[-1].stored).fact
        assert isinstance(said, Checkpoint)
        assert said.after == last.sequence - 1


async def test_a_first_forged_checkpoint_is_no_beginning(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        await forge(log, FORGED["beyond the end"])
        checkpoints = Checkpoints(log, KEY)
        told = await checkpoints.write()
        assert (told.covers, told.key) == (1, NAME)
        assert await checkpoints.write() == told
        await checkpoints.close()


async def test_a_new_key_goes_on_from_the_old_one(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        for key in (OTHERS, KEY):
            await grow(log, new_task(), 2)
            checkpoints = Checkpoints(log, key)
            await checkpoints.write()
            await checkpoints.close()
        verification = Verification(whole=True, keys=frozenset({NAME, named(OTHERS.public_key())}))
        await verify(LogSource(log), verification, lambda at, end: None)
        assert (verification.faults, verification.covered.checkpoints) == ([], 2)


async def until_written(log: JetStreamLog, checkpoints: Checkpoints, covers: int) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                if (await checkpoints.write()).covers >= covers:
                    return
            except LogUnavailable:
                await asyncio.sleep(0.05)


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


async def test_the_route_says_where_the_checkpoint_is(api: Api, nats_address: NatsAddress):
    answer = await api.client.post("/checkpoints")
    assert (answer.status_code, answer.json()["code"]) == (409, "nobody_signs")
    async with carried(nats_address):
        await api.begin()
        answer = await api.client.post("/checkpoints")
        assert (answer.status_code, answer.json()) == (200, {"sequence": 2, "covers": 1, "key": NAME})


async def test_the_route_needs_its_scope(api: Api):
    await api.rooms.tokens.add("tt_reader", DEV, ("audit",))
    answer = await api.client.post("/checkpoints", headers={"Authorization": "Bearer tt_reader"})
    assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")


def test_a_key_is_made_once_and_for_its_user_alone(tmp_path: Path):
    path = tmp_path / "audit-key.pem"
    key = audit_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert named(audit_key(path).public_key()) == named(key.public_key())


def test_many_who_make_a_key_at_once_have_the_same_one(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(audit_key, [tmp_path / "audit-key.pem"] * 8))
    assert len({named(key.public_key()) for key in made}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["audit-key.pem"]


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_key_is_refused_and_left_alone(tmp_path: Path, content: bytes):
    path = tmp_path / "audit-key.pem"
    path.write_bytes(content)
    with pytest.raises(BadKey, match="can't be used as the audit key"):
        audit_key(path)
    assert path.read_bytes() == content

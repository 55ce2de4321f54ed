"""The documents for programs: valid, complete, written in the docs as generated, and true of what the log holds."""

import json
import re
from functools import cache
from pathlib import Path
from typing import get_args

import httpx
import jsonschema_rs
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from app.commands import DecideReview, ReceiveInput
from app.feed import RESET
from app.schema_commands import schemas
from app.schemas import DOCUMENTS, asyncapi, facts_schema
from eventstore.codec import encode
from eventstore.connection import NatsAddress
from eventstore.events import Json, Record, SessionFact, TaskFact, tag_of
from eventstore.log import task_subject
from tests.api import running
from tests.given import OWNER, started
from tests.given import TASK_ID as A_TASK
from tests.lifecycle.test_codec import FACTS, STAMPS, record_of
from tests.lifecycle.test_released import IDS, LINES
from tests.worker.house import opened

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
KEY = re.compile(r"[a-zA-Z0-9._-]+")
Document = dict[str, "Document"]


@cache
def schema() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(json.loads(facts_schema()), validate_formats=True)


def described() -> Document:
    document: Document = json.loads(asyncapi())
    return document


@cache
def message(tag: str) -> jsonschema_rs.Draft7Validator:
    """What AsyncAPI says of the message of this fact (its own kind of schema is JSON Schema's draft 7, and more)."""
    payload = {"$ref": f"#/components/messages/{tag}/payload", "components": described()["components"]}
    return jsonschema_rs.Draft7Validator(payload, validate_formats=True)


# The documents


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_written_in_the_docs_is_what_is_generated(name: str) -> None:
    assert (REFERENCE / name).read_bytes() == DOCUMENTS[name](), "run `make schemas`"


def test_the_command_writes_what_the_docs_have(tmp_path: Path) -> None:
    said = CliRunner().invoke(schemas, ["--output", str(tmp_path / "new" / "folder")])
    assert said.exit_code == 0, said.output
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "folder").iterdir()} == {
        name: document() for name, document in DOCUMENTS.items()
    }
    (tmp_path / "a file").write_text("")
    assert CliRunner().invoke(schemas, ["--output", str(tmp_path / "a file" / "x")]).exit_code == 2


async def test_the_service_gives_them_to_everybody(nats_address: NatsAddress) -> None:
    async with running(nats_address) as api, httpx.AsyncClient(base_url=api.url) as nobody:
        for name, document in DOCUMENTS.items():
            answer = await nobody.get(f"/docs/{name}")
            assert (answer.status_code, answer.content) == (200, document())
        assert (await nobody.get("/docs/openapi.json")).status_code == 200


def test_the_json_schema_is_one() -> None:
    document = json.loads(facts_schema())
    jsonschema_rs.meta.validate(document)
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_struct_of_a_record_is_described_in_words() -> None:
    document: Document = json.loads(facts_schema())
    for name, struct in document["$defs"].items():
        assert str(struct["description"]).strip(), name
        assert not re.search(r"\n(?!\n)\S|\n  ", str(struct["description"]).replace("\n\n", "")), name


def references(value: object, at: str = "#") -> list[tuple[str, str]]:
    """All references of a document: where, and to what."""
    match value:
        case {"$ref": str() as reference}:
            return [(at, reference)]
        case dict():
            members = msgspec.convert(value, dict[str, object]).items()
        case list():
            members = [(str(number), one) for number, one in enumerate(msgspec.convert(value, list[object]))]
        case _:
            return []
    return [found for name, one in members for found in references(one, f"{at}/{name}")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_leads_somewhere(name: str) -> None:
    document = json.loads(DOCUMENTS[name]())
    found = references(document)
    assert found
    for at, reference in found:
        target = document
        assert reference.startswith("#/"), at
        for step in reference.removeprefix("#/").split("/"):
            assert step in target, (at, reference)
            target = target[step]


def test_what_can_be_followed_is_there_with_all_its_messages() -> None:
    document = described()
    assert document["asyncapi"] == "3.0.0"
    channels = {channel["address"]: channel for channel in document["channels"].values()}
    task, session = ({str(fact.__struct_config__.tag) for fact in get_args(kind)} for kind in (TaskFact, SessionFact))
    assert {address: set(channel["messages"]) for address, channel in channels.items()} == {
        "/tasks/{task_id}/events": task | {"reset"},
        "/events": task | session | {"log.checkpoint", "reset"},
        "tasks.{partition}.{owner}.{task_id}": task,
        "sessions.{owner}.{session_id}": session,
        "checkpoints": {"log.checkpoint"},
    }
    for address, channel in channels.items():
        assert set(re.findall(r"{(\w+)}", str(address))) == set(channel.get("parameters", {}))
    assert {str(operation["channel"]["$ref"]) for operation in document["operations"].values()} == {
        f"#/channels/{name}" for name in document["channels"]
    }
    assert {name for group in document["components"].values() for name in group if not KEY.fullmatch(name)} == set()


def test_a_tasks_subject_is_an_address_of_the_channel() -> None:
    partition, owner, task_id = task_subject(OWNER, A_TASK).split(".")[1:]
    channel = described()["channels"]["taskLog"]
    assert partition in channel["parameters"]["partition"]["enum"]
    address = str(channel["address"]).format(partition=partition, owner=owner, task_id=task_id)
    assert address == task_subject(OWNER, A_TASK)


# What they say of the log


def fits(stored: bytes) -> None:
    """Assert that a record is what the documents say."""
    record = json.loads(stored)
    schema().validate(record)
    message(record["fact"]["type"]).validate(record)


@pytest.mark.parametrize("line", LINES, ids=IDS)
def test_every_released_record_fits(line: bytes) -> None:
    fits(line)


@settings(max_examples=100, deadline=None)
@given(st.one_of(*FACTS.values()).flatmap(lambda fact: st.builds(Record, fact=st.just(fact), **STAMPS)))
def test_whatever_is_stored_fits(record: Record) -> None:
    fits(encode(record))


SCENARIO: list[Json] = [
    {"plan": ["search", {"tool": "read", "why": "to know"}]},
    {"tool": "search", "input": {"q": "tides"}, "output": "x" * 300_000},
    {"say": "Two hits. "},
    {"ask": "For whom is it?"},
    {"usage": {"provider": "p", "model": "m", "input_tokens": 900, "output_tokens": 60, "cost": 0.002}},
    {"review": "Send it?"},
    {"complete": "Sent to {answer}."},
]


async def test_every_record_of_a_real_run_fits(nats_address: NatsAddress) -> None:
    async with opened(nats_address) as house:
        house.dispatch()
        house.work()
        task_id = await house.submit(*SCENARIO)
        await house.reach(task_id, "waiting_for_input")
        await house.tell(task_id, ReceiveInput(text="Ann", key="k1"))
        await house.reach(task_id, "awaiting_review")
        await house.tell(task_id, DecideReview(approved=True, feedback="Go on"))
        await house.reach(task_id, "completed")
        broken = await house.submit({"fail": {"code": "broken"}})
        await house.reach(broken, "failed")
        records = [*await house.records(task_id), *await house.records(broken)]
    for recorded in records:
        fits(recorded.stored)
    assert any(recorded.record.blob for recorded in records)
    assert len({tag_of(recorded.record.fact) for recorded in records}) >= 10


@pytest.mark.parametrize(
    "wrong",
    [
        (b'"run":1', b'"run":"one"'),
        (b'"run":1,', b""),
        (b'"type":"task.started",', b""),
        (b'"version":1', b'"version":null'),
        (b'Z"', b'"'),
        (b'"fact":{', b'"fact":7,"was":{'),
    ],
)
def test_what_no_reader_of_the_log_could_read_does_not_fit(wrong: tuple[bytes, bytes]) -> None:
    stored = encode(record_of(started()))
    assert wrong[0] in stored
    assert schema().is_valid(json.loads(stored))
    assert not schema().is_valid(json.loads(stored.replace(*wrong)))


def test_a_newer_releases_facts_and_fields_fit() -> None:
    stored = encode(record_of(started()))
    for newer in ((b'"task.started"', b'"task.forked"'), (b'"run":1', b'"run":1,"zone":"eu"')):
        assert newer[0] in stored
        assert schema().is_valid(json.loads(stored.replace(*newer)))


def test_a_message_is_of_its_own_fact_alone() -> None:
    for line in LINES:
        record = json.loads(line)
        for tag in ("task.created", "task.completed", "session.titled"):
            assert message(tag).is_valid(record) == (record["fact"]["type"] == tag)


def test_a_reset_is_what_it_is_said_to_be() -> None:
    event, data = RESET.decode().strip().split("\n")
    assert event == "event: reset"
    message("reset").validate(json.loads(data.removeprefix("data: ")))

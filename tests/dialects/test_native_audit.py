"""The audit feed's pages: what of the log is whose to read, which part of it, and as what."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct, json

from app.checkpoints import Checkpoints
from app.commands import CancelTask, CreateTask
from app.dialects.native_audit import KINDS, LogLine
from app.settings import HttpSettings
from app.tasks import Done
from eventstore.connection import NatsAddress
from eventstore.cursor import event_id
from eventstore.events import Owner, TaskId
from eventstore.log import task_subject
from eventstore.stream import Stream
from eventstore.tokens import Scope
from projections.lines import arrival_of, line_of
from tests.api import CAUSE, DEV, Api, running
from tests.lifecycle.commands import start_run
from tests.log.logs import new_task
from tests.walk.wire import Wire

EVE = Owner("eve")
BATCH = {"Accept": "application/cloudevents-batch+json"}
ONE = {"Accept": "application/cloudevents+json"}


class Read(Struct):
    """A page, as a client reads it."""

    data: list[LogLine]
    has_more: bool
    next_after: int

    @property
    def sequences(self) -> list[int]:
        return [line.sequence for line in self.data]


async def task_of(api: Api, owner: Owner, *, agent: str = "simulator", filling: object = None) -> TaskId:
    command = CreateTask(agent=agent, fingerprint="f1", input=filling)
    done = await api.rooms.tasks.create(owner, command, CAUSE)
    assert isinstance(done, Done)
    return done.task.task_id


@asynccontextmanager
async def asker(api: Api, owner: Owner, *scopes: Scope) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of this owner, with a token of these scopes."""
    token = f"tt_{owner}_{'_'.join(scopes)}"
    await api.rooms.tokens.add(token, owner, scopes)
    async with httpx.AsyncClient(base_url=api.url, headers={"X-API-Key": token}) as client:
        yield client


async def read(client: httpx.AsyncClient, query: str = "") -> Read:
    answer = await client.get(f"/events{query}")
    assert answer.status_code == 200, answer.text
    return json.decode(answer.content, type=Read)


async def test_a_page_is_the_lines_of_the_log_byte_for_byte(api: Api):
    await api.begin(CancelTask(by="ann"))
    await task_of(api, EVE)
    answer = await api.client.get("/events")
    lines = b",".join(line_of(arrival)[:-1] for arrival in await api.arrivals())
    assert answer.content == b'{"data":[%b],"has_more":false,"next_after":3}' % lines
    assert answer.headers["tasktrail-last-sequence"] == "3"


async def test_pages_follow_each_other_without_a_gap_or_a_double(api: Api):
    for _ in range(5):
        await api.begin(CancelTask(by="ann"))
    path, found = "/events?limit=3", list[int]()
    for _ in range(4):
        answer = await api.client.get(path)
        page = json.decode(answer.content, type=Read)
        found += page.sequences
        assert page.has_more == (page.next_after < 10)
        path = answer.links["next"]["url"]
    assert found == [*range(1, 11)]
    assert (await read(api.client, "?after=10")).data == []
    await api.begin()
    assert json.decode((await api.client.get(path)).content, type=Read).sequences == [11]


async def test_a_page_goes_on_after_an_id_a_sequence_or_a_cloudevents_sequence(api: Api):
    await api.begin(CancelTask(by="ann"))
    first = (await api.arrivals())[0]
    for after in (event_id(first), "1", "00000000000000000001"):
        assert (await read(api.client, f"?after={after}")).sequences == [2]


async def test_a_cursor_of_another_life_is_refused_by_pages_and_lines(api: Api):
    await api.begin(CancelTask(by="ann"))
    first, second = map(event_id, await api.arrivals())
    swapped = f"{first.partition('-')[0]}-{second.partition('-')[2]}"
    for after in (swapped, "3", "99-256"):
        for accept in ("application/json", "application/x-ndjson", BATCH["Accept"], ONE["Accept"]):
            answer = await api.client.get(f"/events?after={after}", headers={"Accept": accept})
            assert (answer.status_code, answer.json()["code"]) == (409, "unknown_cursor"), (after, accept)


async def test_each_owner_reads_what_is_theirs(api: Api):
    mine, hers = await api.begin(), await task_of(api, EVE)
    async with asker(api, EVE, "audit") as eve:
        assert [line.subject for line in (await read(eve)).data] == [task_subject(EVE, hers)]
        assert (await read(eve, "?owner=eve")).sequences == [2]
        assert (await read(eve, f"?task_id={mine}")).data == []
        assert (await read(eve)).has_more is False
    assert (await read(api.client)).sequences == [1, 2]
    assert (await read(api.client, "?owner=eve")).sequences == [2]
    assert (await read(api.client, "?owner=eve,dev")).sequences == [1, 2]
    assert (await read(api.client, "?owner=nobody")).data == []


async def test_another_owner_is_refused_by_name_whether_there_is_one_or_not(api: Api):
    await api.begin()
    async with asker(api, EVE, "audit") as eve:
        told = [(await eve.get(f"/events?owner={owner}")).json() for owner in ("dev", "nobody", "eve,dev")]
    assert {(one["status"], one["code"], one["detail"]) for one in told} == {
        (403, "not_allowed", "this needs a token with scope audit:all")
    }


async def test_anothers_event_id_is_no_cursor(api: Api):
    await api.begin()
    (record,) = await api.arrivals()
    async with asker(api, EVE, "audit") as eve:
        assert (await eve.get(f"/events?after={event_id(record)}")).status_code == 409


async def test_the_scope_is_needed_and_admin_is_not_everybody(api: Api):
    await api.begin()
    async with asker(api, EVE, "tasks:read", "tasks:write") as eve:
        for path in ("/events", "/events/blobs/x"):
            answer = await eve.get(path)
            assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
    async with asker(api, EVE, "admin") as eve:
        assert (await read(eve)).data == []
        assert (await eve.get("/events?owner=dev")).status_code == 403
    async with asker(api, EVE, "audit:all") as auditor:
        assert (await read(auditor)).sequences == [1]
    assert (await api.client.get("/events", headers={"Authorization": "Bearer no"})).status_code == 401


async def test_records_are_found_by_task_agent_and_type(api: Api):
    one = await api.begin(start_run())
    other = await task_of(api, DEV, agent="researcher")
    await api.tell(one, CancelTask(by="ann"))
    assert (await read(api.client, f"?task_id={one}")).sequences == [1, 2, 4]
    assert (await read(api.client, f"?task_id={one.removeprefix('task_')},{other}")).sequences == [1, 2, 3, 4]
    assert (await read(api.client, "?agent=researcher")).sequences == [3]
    assert (await read(api.client, "?agent=researcher,simulator")).sequences == [1, 2, 3, 4]
    assert (await read(api.client, "?type=task.created,task.cancelled")).sequences == [1, 3, 4]
    assert (await read(api.client, f"?type=task.created&agent=simulator&task_id={one}&owner=dev")).sequences == [1]
    assert (await read(api.client, f"?task_id={one}&owner=eve,dev")).sequences == [1, 2, 4]
    assert (await read(api.client, f"?task_id={one}&owner=eve")).sequences == []


async def test_the_agent_of_a_task_that_began_before_the_cursor_is_known(nats_address: NatsAddress):
    async with running(nats_address) as before:
        task_id = await before.begin(start_run())
        await task_of(before, DEV, agent="researcher")
        await before.tell(task_id, CancelTask(by="ann"))
    async with running(nats_address) as api:
        assert (await read(api.client, "?agent=simulator&after=2")).sequences == [4]


async def test_a_page_that_finds_little_looks_at_a_bounded_part_of_the_log(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.audit_feed.MAX_SCANNED", 4)
    monkeypatch.setattr("app.audit_feed.AT_ONCE", 2)
    for _ in range(5):
        await api.begin(start_run())
    await api.begin(CancelTask(by="ann"))
    page = await read(api.client, "?type=task.cancelled")
    assert (page.data, page.has_more, page.next_after) == ([], True, 4)
    assert (await read(api.client, "?type=task.cancelled&after=8")).sequences == [12]


async def test_a_page_has_about_a_mebibyte(api: Api):
    for _ in range(4):
        await task_of(api, DEV, filling="x" * 200_000)
    for _ in range(4):
        await task_of(api, DEV, filling="x" * 200_000)
    page = await read(api.client)
    assert (page.sequences, page.has_more, page.next_after) == ([1, 2, 3, 4, 5, 6], True, 6)
    assert (await read(api.client, "?after=6")).sequences == [7, 8]


async def test_the_log_is_read_from_a_time_on(api: Api):
    await api.begin()
    await api.begin()
    between = datetime.now(UTC)
    await api.begin()
    query = {"since": between.isoformat()}
    answer = await api.client.get("/events", params=query)
    assert json.decode(answer.content, type=Read).sequences == [3]
    assert (await read(api.client, "?since=0001-01-01T00:00:00Z")).sequences == [1, 2, 3]
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for never in ("9999-12-31T23:59:59Z", later):
        page = json.decode((await api.client.get("/events", params={"since": never})).content, type=Read)
        assert (page.data, page.has_more, page.next_after) == ([], False, 3)
    assert (await read(api.client, "?since=0001-01-01T00:00:00Z&after=2")).sequences == [3]


BAD = {
    "bad_cursor": ["after=x", "after=", "after=" + "0" * 21],
    "bad_request": [
        *("since=yesterday", "since=2026-01-01T00:00:00", "owner=A.b", "owner=*", "owner=", "agent=a,,b"),
        *("task_id=task_1", "task_id=>", "type=task.creatd", "type=" + ",".join(["task.created"] * 101)),
        *("limit=0", "limit=1001", "follow=yes", "format=xml"),
    ],
}


async def test_what_can_not_be_asked_is_said_clearly(api: Api):
    for code, queries in BAD.items():
        for query in queries:
            answer = await api.client.get(f"/events?{query}")
            assert (answer.status_code, answer.json()["code"]) == (400, code), query
    told = (await api.client.get("/events?type=task.creatd")).json()["detail"]
    assert told.startswith("type: 'task.creatd' is none; there are: task.created, ")
    told = (await api.client.get("/events?follow=yes")).json()["detail"]
    assert told == "follow: there is no 'yes'; there are: true, false"
    both = await api.client.get("/events?type=task.creatd&type=task.created")
    assert both.status_code == 400, "all that is said of it counts"


async def test_a_batch_is_cloudevents_and_leads_on(api: Api):
    task_id = await api.begin(CancelTask(by="ann"))
    await task_of(api, EVE)
    answer = await api.client.get("/events?limit=2", headers=BATCH)
    assert answer.headers["content-type"] == BATCH["Accept"]
    batch = json.decode(answer.content, type=list[dict[str, object]])
    events = [from_structured_event(HTTPMessage({"content-type": ONE["Accept"]}, json.encode(one))) for one in batch]
    assert [event.get_type() for event in events] == ["task.created", "task.cancelled"]
    assert {(event.get_source(), event.get_subject()) for event in events} == {("/owners/dev", task_id)}
    assert [event.get_extension("sequence") for event in events] == [f"{n:020}" for n in (1, 2)]
    rest = await api.client.get(answer.links["next"]["url"], headers=BATCH)
    assert [one["source"] for one in json.decode(rest.content, type=list[dict[str, object]])] == ["/owners/eve"]
    assert (await api.client.get(rest.links["next"]["url"], headers=BATCH)).content == b"[]"


async def test_single_cloudevents_come_one_after_the_other(api: Api):
    await api.begin(CancelTask(by="ann"))
    path = "/events"
    for tag in ("task.created", "task.cancelled"):
        answer = await api.client.get(path, headers=ONE)
        assert answer.headers["content-type"] == ONE["Accept"]
        event = from_structured_event(HTTPMessage(dict(answer.headers), answer.content))
        assert event.get_type() == tag
        path = answer.links["next"]["url"]
    answer = await api.client.get(path, headers=ONE)
    assert (answer.status_code, answer.content) == (204, b"")
    await api.begin()
    assert (await api.client.get(answer.links["next"]["url"], headers=ONE)).status_code == 200


async def test_the_whole_log_has_sessions_and_checkpoints_and_an_owners_part_its_sessions(api: Api):
    await api.begin()
    stream = Stream(api.rooms.connection, "TASKS")
    await stream.open()
    record = line_of((await api.arrivals())[0])
    await stream.publish("sessions.eve.chat.1", arrival_of(record).stored)
    await stream.close()
    checkpoints = Checkpoints(api.rooms.tasks.log, Ed25519PrivateKey.generate())
    await checkpoints.write()
    await checkpoints.close()
    assert (await read(api.client)).sequences == [1, 2, 3]
    assert (await read(api.client, "?type=log.checkpoint")).sequences == [3]
    assert (await read(api.client, "?agent=simulator")).sequences == [1]
    async with asker(api, EVE, "audit") as eve:
        assert (await read(eve)).sequences == [2]


async def test_records_that_can_not_be_read_keep_nobody_from_the_others(api: Api):
    subject = task_subject(DEV, new_task())
    for content in (b"junk", b'{"fact":{"agent":' + b"[" * 50_000, b"{}"):
        answer = await api.rooms.connection.request(subject, content)
        assert b'"error"' not in answer.data
    await api.begin()
    assert (await read(api.client, "?agent=simulator")).sequences == [4]


async def test_a_records_blob_is_its_owners_and_an_auditors(api: Api):
    await api.begin()
    await task_of(api, EVE, filling="x" * 300_000)
    record = json.decode((await api.arrivals())[1].stored, type=dict[str, object])
    path = f"/events/blobs/{record['record_id']}"
    answer = await api.client.get(path)
    assert answer.json() == {"input": "x" * 300_000}
    async with asker(api, EVE, "audit") as eve, asker(api, Owner("bob"), "audit") as bob:
        assert (await eve.get(path)).content == answer.content
        assert (await bob.get(path)).status_code == 404
    small = json.decode((await api.arrivals())[0].stored, type=dict[str, object])
    for other in (small["record_id"], "x", "*", "%00"):
        assert (await api.client.get(f"/events/blobs/{other}")).status_code == 404


async def test_a_blob_whose_record_never_came_is_not_shown(api: Api):
    task_id = await api.begin()
    await api.rooms.tasks.log.blobs.put("orphan", b"{}", subject=task_subject(DEV, task_id), expected=1)
    await api.rooms.tasks.log.blobs.put("nobodys", b"{}")
    for name in ("orphan", "nobodys"):
        assert (await api.client.get(f"/events/blobs/{name}")).status_code == 404


async def test_the_description_names_every_kind_of_answer(api: Api):
    described = (await api.client.get("/docs/openapi.json")).json()["paths"]["/events"]["get"]
    assert sorted(described["responses"]["200"]["content"]) == sorted(KINDS)
    names = {parameter["name"] for parameter in described["parameters"]}
    assert names == {
        *("after", "since", "owner", "agent", "task_id", "type", "limit", "format", "follow", "token"),
    }


async def test_a_page_that_found_nothing_yet_leads_on_from_the_same_time(api: Api):
    await api.begin()
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    answer = await api.client.get("/events", params={"since": later})
    await api.begin()
    path = answer.links["next"]["url"]
    assert json.decode((await api.client.get(path)).content, type=Read).data == []
    answer = await api.client.get("/events", params={"since": "2020-01-01T00:00:00Z"})
    assert answer.links["next"]["url"].startswith("/events?after=2-")


async def test_a_link_repeats_no_token(api: Api):
    answer = await api.client.get(f"/events?token={api.token}&limit=5")
    assert answer.links["next"]["url"] == "/events?limit=5&after=0"


async def test_what_else_can_be_done_with_the_feed_is_said(api: Api):
    for path in ("/events", "/events/blobs/x"):
        options = await api.client.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, "GET, OPTIONS")
        for accept in ("text/event-stream", "application/x-ndjson", "*/*"):
            wire = await Wire.ask(api.url, path, {**api.bearer, "Accept": accept}, method="HEAD")
            status = (await wire.head()).status
            await wire.close()
            assert status == (200 if path == "/events" else 404)


async def test_more_feeds_than_there_may_be_are_told_to_come_again(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_audit_feeds=1)) as api:
        await api.begin()
        follow = {**api.bearer, "Accept": "text/event-stream"}
        wire = await (await Wire.ask(api.url, "/events", follow)).head()
        await wire.frames(1)
        assert api.metric("audit_feeds") == 1
        for accept in ("text/event-stream", "application/x-ndjson"):
            answer = await api.client.get("/events", headers={"Accept": accept})
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_feeds")
            assert answer.headers["retry-after"] == "5"
        for accept in ("application/json", ONE["Accept"]):
            assert (await api.client.get("/events", headers={"Accept": accept})).status_code == 200
        await wire.close()


async def test_one_owner_leaves_places_to_the_others(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_audit_feeds=8)) as api, asker(api, EVE, "audit") as eve:
        await api.begin()
        follow = {**api.bearer, "Accept": "text/event-stream"}
        wires = [await (await Wire.ask(api.url, "/events", follow)).head() for _ in range(3)]
        assert [wire.status for wire in wires] == [200, 200, 503]
        assert (await eve.get("/events", headers={"Accept": "application/x-ndjson"})).status_code == 200
        for wire in wires:
            await wire.close()

"""Each record as a CloudEvent: what the official SDK reads from it, and that nothing of the record is lost."""

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from msgspec import json
from msgspec.structs import replace

from eventstore.codec import encode
from eventstore.events import Owner, Record
from eventstore.log import Arrival, task_subject
from projections.cloudevents import CloudEvent, cloudevent_of
from tests.log.logs import AT, created, new_task

TASK = new_task()
SUBJECT = task_subject(Owner("ann"), TASK)


def read(event: bytes) -> BaseCloudEvent:
    """As the official SDK reads it; it refuses what is no CloudEvent."""
    return from_structured_event(HTTPMessage({"content-type": "application/cloudevents+json"}, event))


BARE = Record(
    record_id="r1",
    version=1,
    at=AT,
    actor="ann/t",
    causation_id=None,
    correlation_id=None,
    previous="",
    fact=created(),
)
STORED = encode(BARE)


def test_a_record_is_a_structured_event():
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    record = replace(BARE, correlation_id="request-1", causation_id="request-2", traceparent=traceparent)
    event = read(cloudevent_of(Arrival(42, SUBJECT, encode(record))))
    assert (event.get_id(), event.get_source(), event.get_type()) == ("r1", "/owners/ann", "task.created")
    assert (event.get_subject(), event.get_time(), event.get_specversion()) == (TASK, AT, "1.0")
    assert event.get_datacontenttype() == "application/json"
    assert event.get_extension("sequence") == "00000000000000000042"
    assert event.get_extension("correlationid") == "request-1"
    assert event.get_extension("causationid") == "request-2"
    assert event.get_extension("traceparent") == traceparent


def test_what_a_record_does_not_say_is_left_out():
    event = read(cloudevent_of(Arrival(1, SUBJECT, STORED)))
    assert {"causationid", "correlationid", "traceparent"}.isdisjoint(event.get_attributes())


def test_its_data_is_the_record_as_it_is_stored():
    written = cloudevent_of(Arrival(1, SUBJECT, STORED))
    assert bytes(json.decode(written, type=CloudEvent).data) == STORED
    assert b"\n" not in written


def test_sequences_order_as_text():
    written = [cloudevent_of(Arrival(n, SUBJECT, STORED)) for n in (2, 10, 999)]
    sequences = [json.decode(one, type=CloudEvent).sequence for one in written]
    assert sequences == sorted(sequences)


def test_a_fact_of_a_newer_release_keeps_its_name():
    newer = STORED.replace(b'"task.created"', b'"task.paid"')
    assert read(cloudevent_of(Arrival(1, SUBJECT, newer))).get_type() == "task.paid"


def test_a_sessions_record_is_its_owners_and_about_the_session():
    event = read(cloudevent_of(Arrival(1, "sessions.ann.chat-1.2", STORED)))
    assert (event.get_source(), event.get_subject()) == ("/owners/ann", "chat-1.2")


def test_a_checkpoint_is_about_the_whole_log():
    event = read(cloudevent_of(Arrival(7, "checkpoints", b'{"sequence":6,"signature":"x"}')))
    assert (event.get_source(), event.get_type(), event.get_subject()) == ("/checkpoints", "log.checkpoint", None)
    assert event.get_data() == {"sequence": 6, "signature": "x"}


def test_what_is_no_record_is_shown_all_the_same():
    event = read(cloudevent_of(Arrival(7, SUBJECT, b"\xff\n{")))
    assert (event.get_type(), event.get_data()) == ("log.unreadable", b"\xff\n{")

"""Records as lines: whatever bytes the log holds come back as they were, one line each."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.log import Arrival
from projections.cloudevents import cloudevent_of
from projections.lines import BadLine, arrival_of, blob_line, blob_of, line_of

SUBJECTS = st.sampled_from(["tasks.3.ann.task_1", "sessions.ann.s1", "checkpoints", 'odd."subject\n'])
STORED = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()),
    st.sampled_from([b'{"a":\n1}', b'{"a":1}\r', b'"\xff"', b'{"a":"\xc3"}', b"", b"null", b'{"a":1} {"b":2}']),
)


@given(sequence=st.integers(1, 2**63 - 1), subject=SUBJECTS, stored=STORED, imported=st.booleans())
def test_a_record_is_one_line_of_json_and_comes_back(sequence: int, subject: str, stored: bytes, imported: bool):
    line = line_of(Arrival(sequence, subject, stored, imported=imported))
    assert line.endswith(b"\n")
    assert line.splitlines() == [line[:-1]]
    json.loads(line)
    back = arrival_of(line)
    assert (back.sequence, back.subject, back.stored, back.imported) == (sequence, subject, stored, imported)


@given(subject=SUBJECTS, stored=STORED)
def test_a_record_is_one_line_as_a_cloudevent_too(subject: str, stored: bytes):
    event = cloudevent_of(Arrival(7, subject, stored))
    assert b"\n" not in event
    assert b"\r" not in event
    json.loads(event)


@given(content=st.binary(max_size=100))
def test_a_blob_is_a_line_and_comes_back(content: bytes):
    line = blob_line("a-record", content)
    assert line.splitlines() == [line[:-1]]
    assert blob_of(line) == ("a-record", content)


def test_a_blobs_line_that_was_changed_is_refused():
    with pytest.raises(BadLine, match="is not what its line says"):
        blob_of(blob_line("a-record", b"abc").replace(b"YWJj", b"YWJk"))


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b'{"sequence":1}', b'{"sequence":1,"id":"1-1","subject":"a","stored":"%"}', b"\xff"]
)
def test_what_is_no_line_is_refused(line: bytes):
    with pytest.raises(BadLine):
        arrival_of(line)


def test_a_records_line_is_no_blobs():
    assert blob_of(line_of(Arrival(1, "checkpoints", b"{}"))) is None

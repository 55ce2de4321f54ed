"""Kind polling: who waits as long as told asks rarely, and hears of the end soon."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from app.commands import CancelTask
from app.dialects.pace import LONGEST_S, poll_after_s, retry_after
from projections.task import INITIAL, Status, Task
from tests.api import DEV, Api
from tests.dialects.niyra import TASKS
from tests.lifecycle.commands import complete, request_input, start_run

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def running(status: Status = "running") -> Task:
    return replace(INITIAL, status=status, created_at=BEGAN)


def polls(takes_s: float, *, least_s: float = 0.0) -> list[float]:
    """When one who obeys asks about a task that takes so long, up to the poll that finds its end."""
    at_s, asked = 0.0, list[float]()
    while True:
        asked.append(at_s)
        if at_s >= takes_s:
            return asked
        said = retry_after(running(), least_s=least_s, now=BEGAN + timedelta(seconds=at_s))
        at_s += int(said["Retry-After"])


def test_a_task_of_a_minute_is_asked_for_fourteen_times_at_most():
    assert len(polls(60)) == 14
    assert len(polls(60, least_s=3)) == 11  # Niyra's
    assert len(polls(3_600)) <= 3_600 / LONGEST_S + 10


@pytest.mark.parametrize("takes_s", [0.5, 1, 2, 5, 10, 20, 45, 60, 600])
def test_the_end_is_heard_of_before_it_took_half_as_long_again(takes_s: float):
    assert polls(takes_s)[-1] - takes_s <= min(LONGEST_S, max(1.0, takes_s / 2))


def test_where_somebody_has_to_do_something_first_there_is_less_hurry():
    for status in ("waiting_for_input", "awaiting_review", "paused"):
        assert poll_after_s(running(status), BEGAN) == 5.0
    assert poll_after_s(running("queued"), BEGAN) == 2.0


def test_an_ended_task_need_not_be_asked_for_again():
    ended = replace(running(), status="completed", ended_at=BEGAN)
    assert (poll_after_s(ended, BEGAN), retry_after(ended)) == (None, {})


def test_a_clock_that_is_behind_does_not_make_it_hurry():
    assert retry_after(running(), now=BEGAN - timedelta(days=1)) == {"Retry-After": "1"}


async def test_every_answer_about_a_task_says_when_to_ask_again_until_its_end(api: Api):
    created = await api.client.post("/tasks", json={"input": "x"})
    path = created.headers["Location"]
    polled = await api.client.get(path)
    same = await api.client.get(path, headers={"If-None-Match": polled.headers["ETag"]})
    assert same.status_code == 304
    assert {answer.headers["Retry-After"] for answer in (created, polled, same)} <= {"1", "2", "3"}
    paused = await api.client.post(f"{path}/pause")
    assert int(paused.headers["Retry-After"]) >= 5
    cancelled = await api.client.post(f"{path}/cancel")
    assert not {"Retry-After"} & {*cancelled.headers, *(await api.client.get(path)).headers}


async def test_who_waits_with_us_is_not_told_to_wait_elsewhere(api: Api):
    task_id = await api.begin()
    for prefer, told in (("wait=0", False), ("respond-async", True)):
        for answer in (
            await api.client.get(f"/tasks/{task_id}", headers={"Prefer": prefer}),
            await api.client.post("/tasks", json={}, headers={"Prefer": prefer}),
        ):
            assert ("Retry-After" in answer.headers) is told


async def test_what_the_body_says_is_of_its_version(api: Api):
    task_id = await api.begin(start_run(), request_input())
    bodies = [(await api.client.get(f"/tasks/{task_id}")).content for _ in range(3)]
    assert len(set(bodies)) == 1
    assert (await api.client.get(f"/tasks/{task_id}")).json()["poll_after_s"] == 5.0
    assert (await api.client.get(f"{TASKS}/{task_id}")).headers["Retry-After"] == "5"


async def test_niyras_poller_is_told_as_long_as_its_example_waits_or_longer(api: Api):
    task_id = await api.begin(start_run())
    known = await api.client.get(f"{TASKS}/{task_id}")
    same = await api.client.get(f"{TASKS}/{task_id}", headers={"If-None-Match": known.headers["ETag"]})
    assert (known.headers["Retry-After"], same.headers["Retry-After"], same.status_code) == ("3", "3", 304)
    await api.tell(task_id, complete())
    assert "Retry-After" not in (await api.client.get(f"{TASKS}/{task_id}")).headers
    cancelled = await api.begin(CancelTask(by=DEV))
    assert "Retry-After" not in (await api.client.get(f"{TASKS}/{cancelled}")).headers

"""What `make bench` does with figures, and with a bench that fails; the figures themselves are nobody's test."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from tests.bench.drawing import draw_aims, nearness
from tests.bench.figures import Figure, shown
from tests.bench.leftovers import children
from tests.bench.listening import reading
from tests.bench.machine import Machine, this_machine
from tests.bench.peers import comparing
from tests.bench.peers.asking import script
from tests.bench.peers.peer import PEERS, Order
from tests.bench.running import Outcome, Report, carry_out, nothing_left
from tests.bench.written import NoMarks, as_markdown, keep, put

MACHINE = Machine(
    processor="A Processor",
    cores=2,
    memory_gib=24.0,
    kernel="Linux 6",
    python="3.11",
    versions={"uvloop": "1"},
    load=0.1,
)
REACHED = Figure(name="polls, share", values=[0.5, 0.8, 0.9], unit="", share_of="bare uvicorn", aim=0.7)
MISSED = Figure(name="polls, p99", values=[2.5], unit="x", share_of="bare uvicorn", aim=2, than="under")
MISSING = Figure(name="polls", values=[], unit="x", aim=3, missing="FastAPI is not installed")
BARE = Figure(name="bare uvicorn", values=[12_345.6], unit="polls/s")
PAGE = "above\n<!-- bench: written by make bench, not by hand -->\nold\n<!-- end of bench -->\nbelow\n"


def a_report() -> Report:
    figures = [REACHED, MISSED, MISSING, BARE]
    outcomes = [
        Outcome(bench="polls", seconds=3.0, figures=figures),
        Outcome(bench="audit", seconds=1.0, failure="ValueError: no"),
    ]
    return Report(machine=MACHINE, began=datetime(2026, 11, 30, tzinfo=UTC), outcomes=outcomes)


def test_an_aim_is_reached_by_the_median_of_all_runs() -> None:
    assert [one.reached for one in (REACHED, MISSED, MISSING, BARE)] == [True, False, None, None]
    assert [round(nearness(one), 2) for one in (REACHED, MISSED)] == [1.14, 0.8]


def test_the_table_has_each_figure_with_its_runs_and_whether_its_aim_is_reached() -> None:
    lines = shown([REACHED, MISSED, MISSING, BARE]).splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["polls,", "share", "0.8", "0.5", "to", "0.9", "of", "bare", "uvicorn", "at", "least", "0.7:", "reached"],
        ["polls,", "p99", "2.5", "x", "of", "bare", "uvicorn", "under", "2:", "NOT", "reached"],
        ["polls", "FastAPI", "is", "not", "installed", "at", "least", "3:", "not", "measured"],
        ["bare", "uvicorn", "12,346", "polls/s"],
    ]
    assert as_markdown([REACHED]).splitlines()[2] == (
        "| polls, share | 0.8 | 0.5 to 0.9 | of bare uvicorn | at least 0.7: reached |"
    )


def test_all_that_was_measured_is_kept_beside_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    keep(a_report(), tmp_path / "out", page, "bench")
    assert msgspec.json.decode((tmp_path / "out" / "figures.json").read_bytes(), type=Report) == a_report()
    assert (tmp_path / "out" / "figures.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("<!-- end of bench -->\nbelow\n")
    assert "old" not in text
    assert "A Processor" in text
    assert "| polls, p99 | 2.5 x |  | of bare uvicorn | under 2: NOT reached |" in text
    assert "Not measured: ValueError: no." in text


def test_a_second_run_takes_the_place_of_the_first_and_a_page_without_marks_is_refused() -> None:
    once = put(PAGE, "bench", "new")
    assert put(once, "bench", "new") == once
    with pytest.raises(NoMarks):
        put("no marks here", "bench", "new")


def test_nothing_aimed_at_is_drawn_too(tmp_path: Path) -> None:
    draw_aims(Report(machine=MACHINE, began=datetime(2026, 11, 30, tzinfo=UTC)), tmp_path / "none.png")
    assert (tmp_path / "none.png").read_bytes().startswith(b"\x89PNG")


def test_a_busy_machine_is_said_to_be_busy() -> None:
    assert "load average was 1.50 on 2 cores" in msgspec.structs.replace(MACHINE, load=1.5).warning
    assert MACHINE.warning == ""


def test_this_machine_has_a_name() -> None:
    machine = this_machine()
    assert machine.versions["nats-server"].count(".") == 2
    assert machine.processor in machine.title
    assert "absent" not in machine.versions.values()


async def _measure(_: Path) -> list[Figure]:
    return [BARE]


async def _break(_: Path) -> list[Figure]:
    raise ValueError("the reason\nand more")


async def _leave_behind(_: Path) -> list[Figure]:
    """A process that has a child of its own, and never ends by itself."""
    held = "import subprocess; subprocess.run(['sleep', '600'])"
    asked = await asyncio.create_subprocess_exec(sys.executable, "-c", held, stdout=asyncio.subprocess.PIPE)
    await asked.communicate()
    return []


def test_a_bench_that_fails_loses_no_others_figures(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(machine=MACHINE, began=datetime(2026, 11, 30, tzinfo=UTC))
    carry_out(report, {"one": _measure, "two": _break, "three": _measure}, 60)
    assert [one.figures for one in report.outcomes] == [[BARE], [], [BARE]]
    assert [one.failure for one in report.outcomes] == ["", "ValueError: the reason", ""]
    assert report.failed
    assert "two: FAILED" in capsys.readouterr().out


def test_a_bench_is_over_with_the_time_and_leaves_no_process_behind() -> None:
    report = Report(machine=MACHINE, began=datetime(2026, 11, 30, tzinfo=UTC))
    before = children()
    with nothing_left():
        carry_out(report, {"one": _leave_behind, "two": _measure}, 0.5)
        assert children() == before
    assert "not done" in report.outcomes[0].failure
    assert "not begun" in report.outcomes[1].failure


def test_what_wrk_sends_is_written_as_lua() -> None:
    assert script({"A2A-Version": "1.0"}, None) == 'wrk.headers["A2A-Version"] = "1.0"\n'
    assert 'local body, number = "{\\"n\\": \\"@@\\"}", 0' in script({}, '{"n": "@@"}')


def test_the_command_line_names_its_benches() -> None:
    said = subprocess.run([sys.executable, "-m", "tests.bench", "nothing"], capture_output=True, text=True)
    assert said.returncode == 2
    assert "'polls'" in said.stderr


async def test_readers_hear_every_event_wherever_it_is_cut() -> None:
    at = 1000.25
    sent = b"".join(b"data: emit %.6f tool %d began\r\n\r\n" % (at, number) for number in range(50))

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        assert b"GET /tasks/1?mode=x HTTP/1.1\r\n" in asked
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n: hello\r\n\r\n")
        await begin.wait()
        for place in range(0, len(sent), 7):
            writer.write(sent[place : place + 7])
            await writer.drain()
        writer.close()

    begin = asyncio.Event()
    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/tasks/1?mode=x"
    async with server:
        for stamp in (None, PEERS["fastapi"].stamp):
            begin.clear()
            async with reading(url, {}, b"emit ", 3) as readers:
                readers.begin(stamp)
                begin.set()
                heard = await readers.hear(50, within_s=60)
                assert heard.events == 150
                assert len(heard.late_ms) == (0 if stamp is None else 150)


def test_when_an_event_was_emitted_is_read_from_its_frame() -> None:
    assert PEERS["a2a"].stamp(b'data: {"text": "emit 1796066934.722765 tool 0 began"}') == 1796066934.722765
    assert PEERS["tasktrail"].stamp(b'data: {"at":"2026-11-30T19:28:54.5Z","x":1}') == 1796066934.5


def test_every_peer_is_asked_for_the_same_work() -> None:
    order = Order(steps=3, takes_ms=20, gate=7)
    assert msgspec.json.decode(order.scenario)["steps"][1]["repeat"] == msgspec.json.decode(order.text)["steps"] == 3
    for peer in PEERS.values():
        asked = msgspec.json.encode(peer.body(order)).decode()
        assert ("begin?" in asked) if peer.go else (r"\"gate\":7" in asked)


def test_peers_stand_side_by_side_and_who_is_missing_is_said(tmp_path: Path) -> None:
    ours, fastapi, a2a, _ = comparing.NAMES
    figures = [
        Figure(name=ours, values=[1000.0, 3000.0, 2000.0], unit=""),
        Figure(name=fastapi, values=[500.0], unit=""),
        Figure(name=a2a, values=[], unit="", missing="no environment"),
    ]
    report = Report(machine=MACHINE, began=datetime(2026, 11, 30, tzinfo=UTC), about="Quietly.")
    report.outcomes = [Outcome(bench="polls/s", seconds=1, figures=figures)]
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("bench", "peers"))
    keep(report, tmp_path, page, "peers", name="peers", draw=comparing.draw, body=comparing.markdown)
    text = page.read_text()
    assert "| polls/s | 2,000 | 500 (0.25) | - | - |" in text
    assert f"- {a2a}: not measured, no environment" in text
    assert "Quietly." in text
    assert "500 (0.25)" in comparing.shown(report)
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")

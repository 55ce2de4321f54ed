"""The researcher: a brief whose every sentence is cited, from real files, the same on every replay."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.agents.agent import CallTool, Plan, Say, StepFailed
from app.agents.documents import Library, Lines, passages_of, sentences_of
from app.agents.researcher import Researcher
from eventstore.events import Json, Problem
from tests.worker.play import Played, Replies, brief, play, replay

CITED = re.compile(r"(?P<text>.+) \[(?P<file>[^\]]+):(?P<first>\d+)(-(?P<last>\d+))?\]")
MARKS = re.compile(r"^\s*(>\s?)*\s*([-*+]\s+|\d{1,3}[.)]\s+)?")

TIDES = """# Tides

The moon raises the tides. The sun raises smaller
ones, e.g. at new moon! They come twice a day.

- Spring tides follow the full moon.
- Neap tides follow the half moon, and
  are the weakest of the month.

```python
tides = moon + sun  # The tides are code here.
```

| moon | tides |
|------|-------|
"""
BREAD = "Bread needs flour.\r\nBread needs water and time. The moon has no say in bread.\r\n"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "kitchen").mkdir(parents=True)
    (folder / "tides.md").write_text(TIDES)
    (folder / "kitchen" / "bread.txt").write_bytes(BREAD.encode())
    return folder


def sentences(played: Played, folder: Path) -> list[str]:
    """The sentences of a brief, each checked against the lines that it cites."""
    assert played.result is not None
    found: list[str] = []
    body, _, _ = played.result.partition("\n## Sources\n")
    for line in body.splitlines():
        if not line or line.startswith("#") or line.startswith("Nothing "):
            continue
        cited = CITED.fullmatch(line)
        assert cited is not None, line
        lines = (folder / cited["file"]).read_text(errors="replace").split("\n")
        first, last = int(cited["first"]), int(cited["last"] or cited["first"])
        quoted = [" ".join(MARKS.sub("", text).split()) for text in lines[first - 1 : last]]
        assert cited["text"] in " ".join(quoted), line
        if first != last:  # no line is cited that has no part in it
            assert cited["text"] not in " ".join(quoted[1:])
            assert cited["text"] not in " ".join(quoted[:-1])
        found.append(cited["text"])
    return found


def research(folder: Path, question: Json, replies: Replies | None = None) -> Played:
    return play(Researcher(folder), brief(question), replies)


def test_every_sentence_of_the_brief_is_where_it_says(folder: Path) -> None:
    played = research(folder, "What do the moon and the sun have to do with tides?")
    assert sentences(played, folder) == [
        "The moon raises the tides.",
        "The sun raises smaller ones, e.g. at new moon!",
        "Spring tides follow the full moon.",
        "Neap tides follow the half moon, and are the weakest of the month.",
        "The moon has no say in bread.",
    ]
    assert played.result is not None
    assert "[tides.md:3]" in played.result
    assert "[tides.md:3-4]" in played.result
    assert "\n## Sources\n\n- tides.md: 3, 3-4, 6, 7-8\n- kitchen/bread.txt: 2\n" in played.result


def test_it_plans_then_searches_and_reads_and_streams_what_it_completes_with(folder: Path) -> None:
    played = research(folder, "bread")
    assert isinstance(played.steps[0], Plan)
    assert set(played.tools) == {"search", "read"}
    assert played.tools[0] == "search"
    assert played.said == played.result
    assert any(isinstance(step, Say) and len(step.pieces) > 1 for step in played.steps)


def test_code_and_tables_are_not_quoted(folder: Path) -> None:
    text = research(folder, "tides code python moon").said
    assert "code here" not in text
    assert "|" not in text


def test_a_search_tells_file_lines_text_and_score(folder: Path) -> None:
    found = Library(folder).search("spring", 3)
    assert found.documents == 2
    assert [(hit.file, hit.first, hit.last) for hit in found.hits] == [("tides.md", 6, 6)]
    assert found.hits[0].score > 0
    assert "Spring tides" in found.hits[0].text


def test_what_only_the_heading_says_finds_the_passage_below(folder: Path) -> None:
    (folder / "z.md").write_text("## Zeppelins\n\nThey fly slowly.\n")
    assert sentences(research(folder, "zeppelin"), folder) == ["They fly slowly."]


def test_extra_wishes_are_looked_up_too_and_nothing_is_said_twice(folder: Path) -> None:
    played = research(folder, "tides", {"inbox": [["and bread?", " "], ["tides"]]})
    assert played.result is not None
    headings = [line for line in played.result.splitlines() if line.startswith("## ")]
    assert headings == ["## tides", "## and bread?", "## tides", "## Sources"]
    said = sentences(played, folder)
    assert "Bread needs flour." in said
    assert len(said) == len(set(said))
    assert "Nothing more was found on this in 2 documents." in played.result


def test_what_the_approver_adds_is_a_wish(folder: Path) -> None:
    played = research(folder, "tides", {"plan": [{"approved": True, "feedback": "look for flour too"}]})
    assert "Bread needs flour." in sentences(played, folder)


@pytest.mark.parametrize("question", ["quantum chromodynamics", "the", "?!", "潮汐"])
def test_it_says_so_when_nothing_is_found(folder: Path, question: str) -> None:
    played = research(folder, question)
    assert played.result is not None
    assert "Nothing was found on this in 2 documents." in played.result
    assert "Sources" not in played.result
    assert "read" not in played.tools


def test_without_documents_the_task_fails(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        failed = research(folder, "tides").failed
        assert failed is not None
        assert failed.code == "no_documents"
        assert str(tmp_path) not in failed.message
    (tmp_path / "binary.txt").write_bytes(b"\0\1\2")
    (tmp_path / "picture.png").write_bytes(b"png")
    assert research(tmp_path, "tides").failed == Problem(
        code="no_documents", message="the folder of documents has no readable .md or .txt file"
    )


@pytest.mark.parametrize("given_input", [None, "", "  \n", 3, ["tides"], {"question": "tides"}])
def test_an_input_that_asks_nothing_is_refused(folder: Path, given_input: Json) -> None:
    failed = research(folder, given_input).failed
    assert failed is not None
    assert failed.code == "bad_input"


def test_a_refused_plan_reads_nothing(folder: Path) -> None:
    played = research(folder, "tides", {"plan": [{"approved": False, "feedback": "not now"}]})
    assert played.failed == Problem(code="plan_refused", message="not now")
    assert played.tools == []


def test_a_dry_run_ends_with_the_plan(folder: Path) -> None:
    played = play(Researcher(folder), replace(brief("tides"), approval_mode="dry_run"))
    assert (len(played.steps), played.result, played.failed) == (1, None, None)


def test_only_documents_of_the_folder_are_read(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("The secret tides.")
    (folder / "link.txt").symlink_to(secret)
    (folder / "outside").symlink_to(tmp_path, target_is_directory=True)
    (folder / ".hidden.md").write_text("The hidden tides.")
    (folder / "inside.txt").symlink_to(folder / "tides.md")
    os.mkfifo(folder / "pipe.txt")
    library = Library(folder)
    assert library.search("tides", 9).documents == 3
    assert not any(
        "secret" in hit.text or "hidden" in hit.text for hit in library.search("secret hidden tides", 99).hits
    )
    for path in ("../secret.txt", str(secret), "link.txt", "outside/secret.txt", ".hidden.md", "pipe.txt", "\0", ""):
        with pytest.raises(StepFailed) as refused:
            library.read(path, 1, 1)
        assert refused.value.problem.code == "no_such_document"


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (1, 4), (-1, -1)])
def test_only_lines_that_exist_are_read(folder: Path, first: int, last: int) -> None:
    library = Library(folder)
    assert library.read("kitchen/bread.txt", 1, 2).lines == tuple(BREAD.split("\r\n")[:2])
    with pytest.raises(StepFailed) as refused:
        library.read("kitchen/bread.txt", first, last)
    assert refused.value.problem.code == "no_such_lines"


def test_a_file_too_big_or_with_an_unprintable_name_is_passed_over(folder: Path) -> None:
    (folder / "big.txt").write_text("The tides are big.\n" * 60_000)
    (folder / "odd\nname.txt").write_text("The tides are odd.")
    (folder / os.fsdecode(b"odd\xff.txt")).write_text("The tides are odd.")
    assert Library(folder).search("tides", 9).documents == 2


def test_a_changed_folder_is_indexed_again(folder: Path) -> None:
    library = Library(folder)
    assert library.search("walrus", 3).hits == ()
    (folder / "walrus.md").write_text("A walrus sleeps on ice.")
    assert [hit.file for hit in library.search("walrus", 3).hits] == ["walrus.md"]
    (folder / "walrus.md").unlink()
    assert library.search("walrus", 3).hits == ()


def test_a_document_that_vanishes_after_the_search_is_left_out(folder: Path) -> None:
    agent = Researcher(folder)
    first = play(agent, brief("moon"))
    searched = next(at for at, step in enumerate(first.steps) if isinstance(step, CallTool))
    (folder / "tides.md").unlink()
    again = play(agent, brief("moon"), recorded=first.recorded[: searched + 1])
    assert sentences(again, folder) == ["The moon has no say in bread."]
    replay(agent, brief("moon"), again, len(again.steps))


def test_it_asks_the_same_steps_on_every_replay(folder: Path) -> None:
    replies: Replies = {"inbox": [["bread"], ["spring tides", "nonsense"]]}
    first = research(folder, "moon", replies)
    for known in range(len(first.steps) + 1):
        replay(Researcher(folder), brief("moon"), first, known, replies)
    # On a replay the record is all that counts.
    for path in (folder / "tides.md", folder / "kitchen" / "bread.txt"):
        path.unlink()
    replay(Researcher(folder), brief("moon"), first, len(first.steps), replies)


PROSE = st.text(alphabet="aB .!?\n\t>-*#1)|`'\"é\u2028", max_size=120)


@settings(max_examples=200, deadline=None)
@given(PROSE)
def test_sentences_stand_in_the_lines_they_name(text: str) -> None:
    lines = text.split("\n")
    for passage in passages_of("x.md", lines):
        read = Lines(file="x.md", first=passage.first, lines=tuple(lines[passage.first - 1 : passage.last]))
        for quote in sentences_of(read):
            assert passage.first <= quote.first <= quote.last <= passage.last
            within = " ".join(MARKS.sub("", line) for line in lines[quote.first - 1 : quote.last])
            assert quote.text in " ".join(within.split())


DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(not any(DOCS.rglob("*.md")), reason="the project has no documents yet")
def test_it_reads_the_projects_own_documents() -> None:
    played = research(DOCS, "How is a task stored, and what happens when a worker dies?")
    assert played.failed is None
    assert sentences(played, DOCS)

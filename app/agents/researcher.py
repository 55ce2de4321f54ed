"""The agent that searches a folder of documents and writes a brief in which every sentence cites file and line.

It quotes: a sentence of the brief is a sentence of a document, cited as `[tides.md:3]`, or as `[tides.md:3-4]` where it
is wrapped. It quotes the answers of its steps, never a file read on the side, so that every replay says the same.
"""

import re
from collections.abc import Generator
from pathlib import Path

import msgspec

from app.agents.agent import (
    Act,
    AgentFailed,
    Brief,
    Say,
    Step,
    StepFailed,
    Work,
    call_tool,
    propose,
    read_inbox,
)
from app.agents.documents import Found, Hit, Library, Lines, Quote, Ranking, sentences_of, words
from eventstore.events import Json, PlannedStep

# Bounds of the brief.
MAX_WISHES = 16
MAX_WISH = 1_000
MAX_HITS = 6
MAX_QUOTES = 8
SENTENCE_LENGTH = range(8, 500)


class Researcher:
    """Proposes a plan, searches, reads, and writes a brief; what the user says meanwhile is looked up too."""

    name = "researcher"
    description = "Searches a folder of documents and writes a brief in which every sentence cites file and line."

    def __init__(self, documents: Path, *, limit: int = 32) -> None:
        self.library = Library(documents)
        self.limit = limit

    def run(self, brief: Brief) -> Work:
        """Write the brief. Raises AgentFailed: `bad_input`, `plan_refused`, `no_documents`."""
        question = _question(brief.input)
        verdict = yield from propose(
            (
                PlannedStep(tool="search", why=f"find passages on: {question[:200]}"),
                PlannedStep(tool="read", why="quote them with file and line"),
            )
        )
        if not verdict.approved:
            raise AgentFailed("plan_refused", verdict.feedback or "the plan was not approved")
        if brief.approval_mode == "dry_run":
            return None
        written = yield from _say(f"# {_one_line(brief.title or question, 120)}\n")
        wishes, done, quotes = [question, *_wishes([verdict.feedback or ""])], 0, list[Quote]()
        while done < len(wishes):
            section, chosen = yield from self._section(wishes[done], quotes)
            quotes += chosen
            done += 1
            written += yield from _say(section)
            wishes += _wishes((yield from read_inbox()))
            del wishes[MAX_WISHES:]
        if quotes:
            written += yield from _say(_sources(quotes))
        return written

    def _section(self, wish: str, known: list[Quote]) -> Generator[Step, Json, tuple[str, list[Quote]]]:
        """What the documents say to one wish; nothing that is `known` is said again."""
        try:
            found = msgspec.convert((yield from self._search(wish)), type=Found)
        except StepFailed as error:
            raise AgentFailed(error.problem.code, error.problem.message) from error
        quotes: list[Quote] = []
        for hit in found.hits:
            try:
                read = msgspec.convert((yield from self._read(hit)), type=Lines)
            except StepFailed:  # the file changed since the search; the other hits are still good
                continue
            quotes += (msgspec.structs.replace(quote, score=hit.score) for quote in sentences_of(read))
        chosen = choose(wish, quotes, known)
        heading = f"\n## {_one_line(wish, 120)}\n\n"
        if chosen:
            return heading + _paragraphs(chosen), chosen
        more = "more " if quotes and known else ""
        return f"{heading}Nothing {more}was found on this in {found.documents} documents.\n", []

    def _search(self, query: str) -> Generator[Step, Json, Json]:
        def act(_told: Act) -> Json:
            return msgspec.to_builtins(self.library.search(query, MAX_HITS))

        return call_tool("search", {"query": query, "limit": MAX_HITS}, act, read_only=True)

    def _read(self, hit: Hit) -> Generator[Step, Json, Json]:
        def act(_told: Act) -> Json:
            return msgspec.to_builtins(self.library.read(hit.file, hit.first, hit.last))

        return call_tool("read", {"file": hit.file, "from": hit.first, "to": hit.last}, act, read_only=True)


def choose(wish: str, quotes: list[Quote], known: list[Quote]) -> list[Quote]:
    """The sentences that say most to the wish: by their own words first, then by the passage they stand in."""
    said = {" ".join(words(quote.text)) for quote in known}
    meant = {" ".join(words(quote.text)): quote for quote in reversed(quotes) if len(quote.text) in SENTENCE_LENGTH}
    left = [quote for meaning, quote in reversed(meant.items()) if meaning not in said]
    own = Ranking([quote.text for quote in left]).scores(wish)
    order = sorted(range(len(left)), key=lambda at: (-(own[at] + 0.2 * left[at].score), at))
    telling = [at for at in order if own[at] > 0][:MAX_QUOTES]
    if not telling and len(left) == len(meant):
        # Only the heading above bears on the wish: the first sentences below it have to do.
        telling = order[:2]
    return [left[at] for at in telling]


def _paragraphs(chosen: list[Quote]) -> str:
    """A paragraph a document, in the order of its best sentence; a sentence a line, in the order of the document."""
    files = dict.fromkeys(quote.file for quote in chosen)
    paragraphs = (sorted((q for q in chosen if q.file == file), key=lambda q: (q.first, q.last)) for file in files)
    return "\n".join("".join(f"{q.text} [{q.file}:{q.lines}]\n" for q in paragraph) for paragraph in paragraphs)


def _sources(quotes: list[Quote]) -> str:
    files = dict.fromkeys(quote.file for quote in quotes)
    cited = {file: sorted({(q.first, q.lines) for q in quotes if q.file == file}) for file in files}
    return "\n## Sources\n\n" + "".join(f"- {file}: {', '.join(line for _, line in cited[file])}\n" for file in files)


def _question(given: Json) -> str:
    text = " ".join(given.split())[:MAX_WISH] if isinstance(given, str) else ""
    if not text:
        raise AgentFailed("bad_input", "the input is a text: say what to look for")
    return text


def _wishes(said: list[str]) -> list[str]:
    return [" ".join(text.split())[:MAX_WISH] for text in said if text.strip()]


def _one_line(text: str, length: int) -> str:
    even = " ".join(text.split())
    return even if len(even) <= length else f"{even[: length - 1]}…"


def _say(text: str) -> Generator[Step, Json, str]:
    """Stream a part of the draft, line by line; the same text."""
    yield Say(text=text, pieces=tuple(re.findall(r"[^\n]*\n", text)))
    return text

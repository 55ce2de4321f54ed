"""A folder of text and Markdown documents: its passages, ranked by BM25, and its lines, to be cited."""

import logging
import os
import re
import stat
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import bm25s
from bm25s.stopwords import STOPWORDS_EN
from msgspec import Struct

from app.agents.agent import StepFailed

# Bounds of the folder: what is beyond them is not searched.
MAX_FILES = 2_000
MAX_FILE_BYTES = 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
MAX_VISITED = 50_000
MAX_PASSAGE_LINES = 30

# The library's list lacks the words that questions are made of.
STOPWORDS = frozenset(STOPWORDS_EN) | {
    "how",
    "what",
    "when",
    "where",
    "which",
    "who",
    "why",
    "do",
    "does",
    "did",
    "can",
}
WORD = re.compile(r"\w\w+")
FENCE = re.compile(r"\s*(```|~~~)")
HEADING = re.compile(r"#{1,6}\s+(.*)")
BULLET = re.compile(r"\s*([-*+]|\d{1,3}[.)])\s+")
NO_PROSE = re.compile(r"\s*(\||<!--|[-=*_ ]{3,}$)")
MARKER = re.compile(r"\s*(>\s?)*\s*([-*+]\s+|\d{1,3}[.)]\s+)?")
SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bDr)(?<!\bMr)(?<!\bSt)[.!?][\"')\]*_`]*\s+(?=[\"'(\[*_`]*[^\Wa-z_])"
)

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG, and reports every index that is built


class Passage(Struct, frozen=True, kw_only=True):
    """Some lines of a document that belong together; `heading` is the one above. Lines count from 1."""

    file: str
    first: int
    last: int
    text: str
    heading: str = ""


class Hit(Struct, frozen=True, kw_only=True):
    """A passage that bears on the query."""

    file: str
    first: int
    last: int
    text: str
    score: float


class Found(Struct, frozen=True, kw_only=True):
    """What a search answers: the best hits, best first, among so many documents."""

    documents: int
    hits: tuple[Hit, ...]


class Lines(Struct, frozen=True, kw_only=True):
    """What a read answers: lines of a file, the first of which has the number `first`."""

    file: str
    first: int
    lines: tuple[str, ...]


class Quote(Struct, frozen=True, kw_only=True):
    """A sentence, and where it stands."""

    file: str
    first: int
    last: int
    text: str
    score: float = 0.0

    @property
    def lines(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Index(Struct, frozen=True, kw_only=True):
    """The folder as it was when its files (name, size, time of change) were `seen`."""

    seen: tuple[tuple[str, int, int], ...]
    documents: dict[str, tuple[str, ...]]
    passages: tuple[Passage, ...]
    ranking: "Ranking"


class _Scores(Protocol):
    def tolist(self) -> list[float]: ...


class _Ranked(Protocol):
    """What we use of a bm25s index (its own types are partly unknown)."""

    def index(self, corpus: list[list[str]], *, show_progress: bool) -> None: ...

    def get_scores(self, query_tokens_single: list[str]) -> _Scores: ...


def _empty() -> _Ranked:
    return bm25s.BM25()


class Ranking:
    """Texts, ranked against queries by BM25."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.size = len(texts)
        tokens = [words(text) for text in texts]
        self._ranked: _Ranked | None = None
        if any(tokens):  # bm25s divides by the number of words
            ranked = _empty()
            ranked.index(tokens, show_progress=False)
            self._ranked = ranked

    def scores(self, query: str) -> list[float]:
        """One for each text; 0 has no word in common. Rounded, so that no platform's last bit decides."""
        asked = words(query)
        if self._ranked is None or not asked:
            return [0.0] * self.size
        return [round(score, 4) for score in self._ranked.get_scores(asked).tolist()]


class Library:
    """A folder of .md and .txt documents, indexed when first asked and again when a file has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: Index | None = None
        self._lock = threading.Lock()

    def search(self, query: str, limit: int) -> Found:
        """The passages that bear on the query. Raises StepFailed where there is nothing to search."""
        index = self._fresh()
        scores = index.ranking.scores(query)
        best = sorted((at for at, score in enumerate(scores) if score > 0), key=lambda at: (-scores[at], at))[:limit]
        passages = [(index.passages[at], scores[at]) for at in best]
        hits = (Hit(file=p.file, first=p.first, last=p.last, text=p.text[:300], score=score) for p, score in passages)
        return Found(documents=len(index.documents), hits=tuple(hits))

    def read(self, file: str, first: int, last: int) -> Lines:
        """Lines of a document. Raises StepFailed for whatever is not one: the folder's documents are all there is."""
        lines = self._fresh().documents.get(file)
        if lines is None:
            raise StepFailed("no_such_document", f"{file[:200]!r} is no document of the folder")
        if not 1 <= first <= last <= len(lines):
            raise StepFailed("no_such_lines", f"{file} has the lines 1 to {len(lines)}, not {first} to {last}")
        return Lines(file=file, first=first, lines=lines[first - 1 : last])

    def _fresh(self) -> Index:
        with self._lock:
            files = list(_files(self.folder))
            found = tuple((name, status.st_size, status.st_mtime_ns) for name, _, status in files)
            if self._index is None or self._index.seen != found:
                self._index = _build(found, [(name, path) for name, path, _ in files])
            if not self._index.documents:
                what = "has no readable .md or .txt file" if self.folder.is_dir() else "does not exist"
                raise StepFailed("no_documents", f"the folder of documents {what}")
            return self._index


def _files(folder: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Name, path and status of every document, in an order that is the same everywhere."""
    root = folder.resolve()
    visited = taken = size = 0
    for where, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if _citable(name))
        for name in sorted(names):
            visited += 1
            if visited > MAX_VISITED or taken == MAX_FILES:
                return
            path = Path(where, name)
            status = _status(path, root) if _citable(name) else None
            if status is None or size + status.st_size > MAX_BYTES:
                continue
            taken, size = taken + 1, size + status.st_size
            yield path.relative_to(root).as_posix(), path, status


def _citable(name: str) -> bool:
    # Not hidden; and a name that can't be printed may not even be JSON.
    return name.isprintable() and not name.startswith(".")


def _status(path: Path, root: Path) -> os.stat_result | None:
    if path.suffix.lower() not in {".md", ".txt"}:
        return None
    try:
        if not path.resolve().is_relative_to(root):  # a link that leads out
            return None
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES else None


def _build(found: tuple[tuple[str, int, int], ...], files: list[tuple[str, Path]]) -> Index:
    documents: dict[str, tuple[str, ...]] = {}
    for name, path in files:
        try:
            content = path.read_bytes()
        except OSError:  # gone, or not ours to read
            continue
        if b"\0" not in content:
            text = content.decode("utf-8-sig", errors="replace")
            documents[name] = tuple(line.rstrip("\r") for line in text.removesuffix("\n").split("\n"))
    passages = tuple(passage for name, lines in documents.items() for passage in passages_of(name, lines))
    ranking = Ranking([f"{passage.heading} {passage.text}" for passage in passages])
    return Index(seen=found, documents=documents, passages=passages, ranking=ranking)


def passages_of(file: str, lines: Sequence[str]) -> Iterator[Passage]:
    """Paragraphs and list items; code, tables and rules are no prose."""
    heading, fenced, begun = "", False, 0
    for number, line in enumerate((*lines, ""), start=1):
        fence = FENCE.match(line) is not None
        title = HEADING.match(line) if not fenced and not file.endswith(".txt") else None
        prose = not (fence or fenced or title or not line.strip() or NO_PROSE.match(line))
        if begun and (not prose or BULLET.match(line) or number - begun >= MAX_PASSAGE_LINES):
            text = " ".join(" ".join(lines[begun - 1 : number - 1]).split())
            yield Passage(file=file, first=begun, last=number - 1, text=text, heading=heading)
            begun = 0
        if prose and not begun:
            begun = number
        heading = title[1].strip() if title else heading
        fenced ^= fence


def sentences_of(read: Lines) -> Iterator[Quote]:
    """The sentences of a passage, each with its own lines; white space is evened out."""
    parts = [" ".join(MARKER.sub("", line, count=1).split()) for line in read.lines]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part) + 1)
    text = " ".join(parts)
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    for begin, end in zip([0, *ends], [*ends, len(text)], strict=True):
        sentence = text[begin:end].strip()
        if sentence:
            at = text.index(sentence, begin)
            first, last = (bisect_right(starts, place) - 1 for place in (at, at + len(sentence) - 1))
            yield Quote(
                file=read.file, first=read.first + first, last=read.first + last, text=" ".join(sentence.split())
            )


def words(text: str) -> list[str]:
    """The words that count, in the singular more or less."""
    found = (word for word in WORD.findall(text.lower()) if word not in STOPWORDS)
    return [word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "su" else word for word in found]

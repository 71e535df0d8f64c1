"""Small corpora: a split for which no document was drawn takes one from another split."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from megaselect.data.documents import Document
from megaselect.data.json_lines import LineOptions, cut_lines, parse_lines
from megaselect.data.os_errors import explain_os_errors
from megaselect.data.pieces import Division
from megaselect.data.workspace import PreparationStopped
from megaselect.errors import DataError


class _Place(NamedTuple):
    """A document: a text, or that line of a .jsonl file."""

    document: Document
    line: int | None


def fill_splits(division: Division, splits: list[str], options: LineOptions, description: str) -> Division:
    """The division with a document in each of `splits`; as it is, where each has one.

    A split without a document takes the last one of the split that has most. That follows from the input alone.
    Lines are read only until every split has one. Raises DataError where there are fewer documents than splits;
    description: of the input.
    """
    counts = dict.fromkeys(splits, 0)
    last: dict[str, deque[_Place]] = {split: deque(maxlen=len(splits)) for split in splits}
    for split, place in _texts(division):
        counts[split] += 1
        last[split].append(place)
    lines = _lines(division, options)
    while not all(counts.values()) and (found := next(lines, None)):
        split, place = found
        counts[split] += 1
        last[split].append(place)
    if sum(counts.values()) < len(splits):
        raise DataError(f"{description}: {_too_few(sum(counts.values()), options)}")
    for split in (split for split, count in counts.items() if not count):
        giver = max(splits, key=counts.__getitem__)
        division = _move(division, last[giver].pop(), giver, split)
        counts[giver] -= 1
        counts[split] += 1
    return division


def _texts(division: Division) -> Iterator[tuple[str, _Place]]:
    for split, documents in division.texts.items():
        for document in documents:
            if document.num_bytes:
                yield split, _Place(document, None)


def _lines(division: Division, options: LineOptions) -> Iterator[tuple[str, _Place]]:
    with explain_os_errors("read the input", "make it readable and run the same command again", PreparationStopped):
        for document in division.lines:
            for lines in cut_lines(document):
                for text in parse_lines(lines, options):
                    if text.raw:
                        yield text.split, _Place(document, text.line)


def _move(division: Division, place: _Place, giver: str, taker: str) -> Division:
    document, line = place
    if line is not None:
        moved = (*division.moved.get(document, ()), (line, taker))
        return division._replace(moved={**division.moved, document: moved})
    left = [text for text in division.texts[giver] if text != document]
    return division._replace(texts={**division.texts, giver: left, taker: [*division.texts[taker], document]})


def _too_few(num_documents: int, options: LineOptions) -> str:
    fractions = {"--valid-fraction": options.valid_fraction, "--test-fraction": options.test_fraction}
    flags = [flag for flag, fraction in fractions.items() if fraction]
    if not num_documents:
        return "there is no document with text in it; name input that has one"
    asked = " and ".join(f"{flag} {fractions[flag]:g}" for flag in flags)
    too_many = " ".join(f"{flag} 0" for flag in flags[num_documents - 1 :])
    return (
        f"{asked} would need {len(flags) + 1} documents, one for each split, but there "
        f"{'is' if num_documents == 1 else 'are'} {num_documents} (a document is never split, unless it is a text file "
        f"of more than a few bytes); add documents, or set {too_many}"
    )

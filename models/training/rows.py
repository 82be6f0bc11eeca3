"""Conversations as rows of tokens: encoded as the chat template writes them, several to a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from models.corpus.conversations import Conversation
from models.training.tokenizer import END, START

# How much the prediction of a token counts, by who says it. What users type is learnt a little, for it tells words
# apart; system prompts are a handful of texts.
_IMPORTANCE = {"system": 0.0, "user": 0.1, "assistant": 1.0}
_OF_NAMES = 4.0  # how much more a name counts: which one is said is most of what there is to learn
_OPEN_ROWS = 24  # rows that are filled side by side; more would fill them better and take longer


@dataclass(frozen=True, slots=True)
class Rows:
    """``tokens`` and ``segments`` are (rows, length + 1), ``importance`` (rows, length) is that of the next token.
    Segment 0 is padding."""

    tokens: np.ndarray
    segments: np.ndarray
    importance: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (
            self.tokens[indices].astype(np.int32),
            self.segments[indices].astype(np.int32),
            self.importance[indices].astype(np.float32),
        )

    @property
    def filled(self) -> int:
        """Tokens that are no padding."""
        return int((self.segments > 0).sum())


def make_rows(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], length: int, names: Iterable[str] = ()
) -> Rows:
    """Pack ``conversations`` into rows of ``length``; what is longer loses its end. ``names`` count more than other
    words of the assistant."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)", re.IGNORECASE)
    packed = list(_packed(_encoded(tokenizer, conversations, pattern), length + 1))
    tokens = np.zeros((len(packed), length + 1), np.uint16)
    segments = np.zeros((len(packed), length + 1), np.uint8)
    importance = np.zeros((len(packed), length + 1), np.float16)
    for index, row in enumerate(packed):
        at = 0
        for number, (ids, weights) in enumerate(row):
            tokens[index, at : at + len(ids)] = ids
            segments[index, at : at + len(ids)] = number + 1
            importance[index, at : at + len(ids)] = weights
            at += len(ids)
    return Rows(tokens, segments, importance[:, 1:])


_Encoded = tuple[list[int], list[float]]  # tokens, and what predicting each of them counts


def _encoded(tokenizer: Tokenizer, conversations: Sequence[Conversation], names: re.Pattern[str]) -> Iterator[_Encoded]:
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    line = tokenizer.encode("\n").ids
    texts = iter(tokenizer.encode_batch([f"{role}\n{text}" for messages in conversations for role, text in messages]))
    for messages in conversations:
        ids: list[int] = []
        weights: list[float] = []
        for role, text in messages:
            encoding = next(texts)
            share = _IMPORTANCE[role]
            said = [share] * len(encoding.ids)
            if role == "assistant":
                spans = [match.span() for match in names.finditer(f"{role}\n{text}")]
                for index, (begin, until) in enumerate(encoding.offsets):
                    if any(begin < last and first < until for first, last in spans):
                        said[index] = share * _OF_NAMES
            ids += [start, *encoding.ids, end, *line]
            # The role and its line break are given, the end is said.
            weights += [0.0] * 3 + said[2:] + [share] + [0.0] * len(line)
        yield ids, weights


def _packed(encoded: Iterator[_Encoded], size: int) -> Iterator[list[_Encoded]]:
    """First fit over a window of open rows; the fullest is closed when a new one is needed."""
    rows: list[list[_Encoded]] = []
    room: list[int] = []
    for ids, weights in encoded:
        ids, weights = ids[:size], weights[:size]
        index = next((number for number, left in enumerate(room) if left >= len(ids)), None)
        if index is None:
            if len(rows) == _OPEN_ROWS:
                fullest = room.index(min(room))
                room.pop(fullest)
                yield rows.pop(fullest)
            rows.append([])
            room.append(size)
            index = len(rows) - 1
        rows[index].append((ids, weights))
        room[index] -= len(ids)
    yield from rows

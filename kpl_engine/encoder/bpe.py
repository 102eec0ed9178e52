"""CLIP's byte-pair encoding: cleaned text -> token ids.

Every byte is a symbol, so no text is unknown. Ids are: the 256 bytes, the 256 bytes that end a
word, one a merge in order of rank. Source: Radford et al. 2021 (CLIP), byte-level BPE of GPT-2.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from kpl_engine.errors import EncoderError

__all__ = ["BytePairEncoder"]

_END = "</w>"
# Words, single digits, and runs of everything else. There is no pattern for special tokens: text
# the user typed never becomes one (open_clip lets "<end_of_text>" in a text end it).
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_MAX_CACHED_WORDS = 1 << 16


def _byte_symbols() -> dict[int, str]:
    """One visible character for each byte, visible bytes first: this order fixes the ids."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


class BytePairEncoder:
    """Token ids of cleaned text, without start and end tokens.

    Parameters
    ----------
    merges : sequence of str
        Pairs ``"a b"`` in order of rank. `EncoderError` when one is not made of known symbols.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        import regex

        self._symbols = _byte_symbols()
        alphabet = [*self._symbols.values(), *(symbol + _END for symbol in self._symbols.values())]
        self._ids = {symbol: index for index, symbol in enumerate(alphabet)}
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, merge in enumerate(merges):
            parts = merge.split(" ") if isinstance(merge, str) else []
            if len(parts) != 2 or any(part not in self._ids for part in parts) or "".join(parts) in self._ids:
                raise EncoderError(
                    f"tokenizer: merges[{rank}] is {merge!r:.60}, expected two known symbols that make a new one; "
                    "export the model again"
                )
            self._ranks[parts[0], parts[1]] = rank
            self._ids["".join(parts)] = len(alphabet) + rank
        self._words = regex.compile(_WORDS, regex.IGNORECASE)
        self._cache: dict[str, tuple[int, ...]] = {}

    @property
    def num_ids(self) -> int:
        """How many ids bytes and merges take."""
        return len(self._ids)

    def encode(self, text: str) -> list[int]:
        """Ids of one cleaned text."""
        found: list[int] = []
        for word in self._words.findall(text):
            ids = self._cache.get(word)
            if ids is None:
                if len(self._cache) >= _MAX_CACHED_WORDS:
                    self._cache.clear()
                ids = self._cache[word] = self._encode_word(word)
            found.extend(ids)
        return found

    def _encode_word(self, word: str) -> tuple[int, ...]:
        parts = [self._symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += _END
        return tuple(self._ids[part] for part in _Chain(parts, self._ranks).merge())


class _Chain:
    """The parts of one word as a linked list, so that a word of n bytes costs O(n log n), not O(n²).

    The pair of lowest rank is joined everywhere, from the left, before the next one is looked for.
    """

    def __init__(self, parts: list[str], ranks: dict[tuple[str, str], int]) -> None:
        self._parts: list[str | None] = list(parts)  # None once joined to the left neighbour
        self._ranks = ranks
        self._next = [*range(1, len(parts)), -1]
        self._previous = list(range(-1, len(parts) - 1))
        self._places: dict[int, list[int]] = {}  # rank -> left ends of that pair; some may be stale
        self._queue: list[int] = []
        for left in range(len(parts) - 1):
            self._note(left)

    def merge(self) -> list[str]:
        while self._queue:
            rank = heapq.heappop(self._queue)
            for left in sorted(self._places.pop(rank)):
                if self._rank(left) == rank:
                    self._join(left)
        return [part for part in self._parts if part is not None]

    def _rank(self, left: int) -> int:
        """Rank of the pair that begins at ``left``, -1 for none."""
        if left < 0 or self._next[left] < 0:
            return -1
        first, second = self._parts[left], self._parts[self._next[left]]
        return -1 if first is None or second is None else self._ranks.get((first, second), -1)

    def _note(self, left: int) -> None:
        rank = self._rank(left)
        if rank >= 0:
            if rank not in self._places:
                self._places[rank] = []
                heapq.heappush(self._queue, rank)
            self._places[rank].append(left)

    def _join(self, left: int) -> None:
        right = self._next[left]
        after = self._next[right]
        self._parts[left] = f"{self._parts[left]}{self._parts[right]}"
        self._parts[right] = None
        self._next[left] = after
        if after >= 0:
            self._previous[after] = left
        self._note(self._previous[left])
        self._note(left)

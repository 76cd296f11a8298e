"""How much memory an allocator comes to hold for a sequence of allocations.

torch takes CPU tensors from glibc with `posix_memalign`. glibc looks for a free block that is
larger than asked for by the alignment, cuts the beginning and the end off, and gives them back.
Small objects (a tensor's own, autograd's nodes) move into these cut-offs; while they are there,
the hole that the tensor leaves is too small for another tensor of its size. So the heap grows
with every freed tensor, not only with living ones: by a fifth in an ordinary step, by far more
where activations are made again and again (gradient checkpointing). The replay follows glibc's
malloc (best fit, coalescing, a heap that is never trimmed, mappings for large blocks); how often
a cut-off is taken is the one thing it can't know, and was measured.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from statistics import median

ALIGNMENT = 64
# As `compute` sets glibc up.
MMAP_BYTES = 32 << 20
# A chunk's smallest size, and what glibc asks for besides an aligned block's size.
_LEAST, _HEADER = 32, 8
_PAGE = 4096
_TOP_PAD = 128 << 10
# Cut-offs of this size are of use to small objects alone.
_CUT_OFF = 1024

# Share of the cut-offs that an object takes which lives as long as the next tensor, and share of
# those that one takes which stays to the end. Measured on SmolLM2-135M; see docs/benchmarks.md.
TAKEN_FOR_A_WHILE, TAKEN_FOR_GOOD = 0.3, 0.03
# Which cut-offs are taken is drawn; peaks of single draws differ by some per cent.
_DRAWS = 3


class Heap:
    """glibc's main arena under tensors.

    Attributes:
        peak: most bytes that heap and mappings held together.
    """

    def __init__(
        self, taken: float = TAKEN_FOR_A_WHILE, kept: float = TAKEN_FOR_GOOD, seed: int = 0
    ) -> None:
        """An empty heap.

        Args:
            taken: share of cut-offs that are taken as long as the next tensor lives.
            kept: share of cut-offs that are taken for good.
            seed: of which ones.
        """
        self.peak = 0
        self._taken, self._kept = taken, kept
        self._random = random.Random(seed)  # noqa: S311 - a replay, no secret
        self._end = self._mapped = 0
        self._free: list[tuple[int, int]] = []  # (size, address), sorted
        self._size_at: dict[int, int] = {}
        self._start_of: dict[int, int] = {}  # address of a free block by where it ends
        self._blocks: dict[int, tuple[int, int]] = {}
        self._mappings: dict[int, int] = {}
        self._waiting: list[tuple[int, int]] = []
        self._with: dict[int, list[tuple[int, int]]] = {}

    def allocate(self, name: int, size: int) -> None:
        """Take an aligned block."""
        chunk = max(_LEAST, -(-(size + _HEADER) // 16) * 16)
        self._with[name], self._waiting = self._waiting, []
        found = self._find(chunk + ALIGNMENT + _LEAST)
        if found is None:
            self._mappings[name] = -(-(size + ALIGNMENT) // _PAGE) * _PAGE
            self._mapped += self._mappings[name]
        else:
            address, length = found
            lead = -(address + 16) % ALIGNMENT
            if 0 < lead < _LEAST:
                lead += ALIGNMENT
            self._cut_off(address, lead)
            address, length = address + lead, length - lead
            if length - chunk >= _LEAST:
                self._cut_off(address + chunk, length - chunk)
                length = chunk
            self._blocks[name] = (address, length)
        self.peak = max(self.peak, self._end + self._mapped)

    def free(self, name: int) -> None:
        """Give a block back."""
        if name in self._mappings:
            self._mapped -= self._mappings.pop(name)
        else:
            self._give_back(*self._blocks.pop(name))
        for address, length in self._with.pop(name):
            self._give_back(address, length)

    def _cut_off(self, address: int, length: int) -> None:
        chance = self._random.random() if 0 < length <= _CUT_OFF else 1.0
        if length and chance >= self._taken + self._kept:
            self._give_back(address, length)
        elif chance >= self._kept:
            self._waiting.append((address, length))

    def _find(self, need: int) -> tuple[int, int] | None:
        """A block of at least `need` bytes; None where a mapping is due."""
        at = bisect.bisect_left(self._free, (need, 0))
        while at < len(self._free) and sum(self._free[at]) == self._end:
            at += 1
        if at < len(self._free):
            length, address = self._free[at]
            self._take(address)
            if length - need < _LEAST:
                return address, length
            self._give_back(address + need, length - need)
            return address, need
        top = self._start_of.get(self._end, self._end)
        room = self._end - top
        if room < need + _LEAST:
            if need >= MMAP_BYTES:
                return None
            self._end += -(-(need + _TOP_PAD - room) // _PAGE) * _PAGE
        if room:
            self._take(top)
        self._give_back(top + need, self._end - top - need)
        return top, need

    def _give_back(self, address: int, length: int) -> None:
        """Free a block, together with free ones beside it."""
        if address + length in self._size_at:
            length += self._take(address + length)
        if address in self._start_of:
            before = self._start_of[address]
            length += self._take(before)
            address = before
        bisect.insort(self._free, (length, address))
        self._size_at[address] = length
        self._start_of[address + length] = address

    def _take(self, address: int) -> int:
        length = self._size_at.pop(address)
        del self._start_of[address + length]
        self._free.pop(bisect.bisect_left(self._free, (length, address)))
        return length


def heap_peak(events: Sequence[tuple[int, int]]) -> int:
    """Peak of a heap over allocations, the median of a few draws.

    Args:
        events: (name, bytes) for an allocation, (name, -1) for its end.
    """
    return int(median(_drawn(events, seed) for seed in range(_DRAWS)))


def _drawn(events: Sequence[tuple[int, int]], seed: int) -> int:
    heap = Heap(seed=seed)
    for name, size in events:
        if size < 0:
            heap.free(name)
        else:
            heap.allocate(name, size)
    return heap.peak

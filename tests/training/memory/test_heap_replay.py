"""The replayed heap reuses what glibc reuses, and grows where glibc grows."""

from tuneline.training.memory.heap_replay import MMAP_BYTES, Heap, heap_peak

MIB = 1 << 20


def one_after_the_other(count, size):
    return [event for name in range(count) for event in ((name, size), (name, -1))]


def test_a_freed_block_is_used_again():
    heap = Heap(taken=0, kept=0)
    for name, size in one_after_the_other(50, MIB):
        heap.allocate(name, size) if size >= 0 else heap.free(name)
    assert MIB <= heap.peak < 1.3 * MIB


def test_neighbours_that_are_free_become_one_block():
    heap = Heap(taken=0, kept=0)
    for name in range(4):
        heap.allocate(name, MIB)
    for name in (1, 2, 0, 3):
        heap.free(name)
    heap.allocate(9, 3 * MIB)
    assert heap.peak < 4.5 * MIB


def test_a_cut_off_that_something_small_takes_spoils_the_hole():
    """What glibc's aligned blocks do: each freed one is too small for the next of its size."""
    held = Heap(taken=0, kept=1.0)
    free = Heap(taken=0, kept=0)
    for heap in (held, free):
        for name in range(20):
            heap.allocate(name, MIB)
            heap.allocate(100 + name, 1000)
            heap.free(name)
    assert held.peak > 3 * free.peak
    assert free.peak < 3 * MIB


def test_what_is_taken_for_a_while_comes_back_with_the_next_tensor():
    heap = Heap(taken=1.0, kept=0)
    for turn in range(20):
        heap.allocate(2 * turn, MIB)
        heap.allocate(2 * turn + 1, MIB)
        heap.free(2 * turn)
        heap.free(2 * turn + 1)
    assert heap.peak < 6 * MIB


def test_large_blocks_are_mappings_and_go_back():
    large = 2 * MMAP_BYTES
    assert large <= heap_peak(one_after_the_other(5, large)) < 1.1 * large
    together = [(0, large), (1, large), (0, -1), (1, -1)]
    assert heap_peak(together) >= 2 * large


def test_the_same_allocations_give_the_same_peak():
    events = [(n, 1000 * (n % 7 + 1)) for n in range(500)]
    events += [(n, -1) for n in range(0, 500, 3)]
    events += [(n + 1000, 5000) for n in range(300)]
    assert heap_peak(events) == heap_peak(events) > sum(s for _, s in events[:500])

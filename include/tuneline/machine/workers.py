"""Run a function over chunks of rows on all cores, each worker with its own state.

Workers are processes, since patterns hold the interpreter lock and a model runs on one thread. The
caller cuts the chunks, so results do not depend on the number of workers.
"""

from __future__ import annotations

import gc
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tuneline.machine.cores import available_cores
from tuneline.machine.memory import THRESHOLDS

if TYPE_CHECKING:
    import pyarrow as pa

# Starting processes and loading a model in each takes seconds; fewer rows are faster in this one.
LEAST_ROWS = 4_000
# Chunks that wait for each process, so that it never waits for one.
AHEAD = 3

# A function of a batch of rows that knows no other batch.
Kernel = Callable[["pa.RecordBatch"], "pa.RecordBatch"]

_Chunk = TypeVar("_Chunk")
_Result = TypeVar("_Result")
_worker: list[Any] = []


def worker_count(rows: int, least: int = LEAST_ROWS) -> int:
    """Return the number of processes for a number of rows; 1 means this one."""
    return available_cores() if rows >= least else 1


def map_chunks(
    make: Callable[[], Callable[[_Chunk], _Result]], chunks: Iterable[_Chunk], workers: int
) -> Iterator[_Result]:
    """Yield the results in the order of the chunks, of which a few at a time are read.

    Args:
        make: maker of the function that does a chunk, called once in each process. It and the
            chunks must be picklable.
    """
    if workers == 1:
        yield from map(make(), chunks)
        return
    # Unlike the standard library's, these workers do not import the caller's main module again.
    from joblib.externals.loky import ProcessPoolExecutor

    with ProcessPoolExecutor(
        workers,
        initializer=_start,
        initargs=(make,),
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    ) as pool:
        ahead: deque[Future[_Result]] = deque()
        for chunk in chunks:
            ahead.append(pool.submit(_work, chunk))
            if len(ahead) > AHEAD * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def as_batch(rows: Iterable[Any], default: Callable[[Any], Any] | None = None) -> pa.RecordBatch:
    """Return rows as a batch: JSON in ASCII, since Arrow takes no text with a lone surrogate."""
    import pyarrow as pa

    lines = [json.dumps(row, default=default) for row in rows]
    return pa.record_batch({"row": pa.array(lines, pa.large_string())})


def rows_in(batch: pa.RecordBatch) -> Iterator[Any]:
    """Yield the rows of such a batch."""
    return map(json.loads, batch["row"].to_pylist())


class Engine(Protocol):
    """Runs kernels: in processes of this machine, or in Spark (`tuneline.machine.spark`)."""

    def map(
        self, make: Callable[[], Kernel], batches: Iterable[pa.RecordBatch], workers: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the results in the order of the batches; see `map_chunks`."""


class _Here:
    map = staticmethod(map_chunks)


HERE: Engine = _Here()


def _start(make: Callable[[], Any]) -> None:
    gc.set_threshold(*THRESHOLDS)
    _worker[:] = [make()]


def _work(chunk: Any) -> Any:
    return _worker[0](chunk)

"""Run kernels in the Python workers of Spark, which is reached by Spark Connect.

A batch travels as the bytes of an Arrow stream in one column, so that a worker gets the very batch
that a process of this machine would get, and results are equal to the byte. A kernel is sent once a
session, with the folders that it names. What a lost worker or executor had, Spark does again.
"""

from __future__ import annotations

import gc
import hashlib
import io
import os
import re
import socket
import sys
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.errors import RetryableError, UserError, first_line
from tuneline.machine.memory import THRESHOLDS
from tuneline.machine.redaction import redact
from tuneline.machine.workers import Kernel

if TYPE_CHECKING:
    import pyarrow as pa

_LOCAL = re.compile(r"local\[(\d+|\*)\]")
# Times that Spark of this machine does a task before it gives up; by itself it would do it once.
_TRIES = 4
# Tasks and rows of a wave for each core; one wave is sent while another is worked on.
_TASKS, _ROWS, _WAVES = 4, 1 << 14, 2
# Seconds that a server may take to accept a connection.
_SECONDS = 10
_WAVE = "number long, batch binary"


@cache
def connect() -> Spark:
    """Return the session at `$SPARK_REMOTE`; `local[N]` starts a Spark of this machine.

    Raises:
        UserError: if the variable or PySpark is missing, or the server has another version.
        RetryableError: if no server answers.
    """
    remote = _remote()
    # Their fields are Arrow's here.
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas")
    import pyspark
    from pyspark.sql.connect.client.retries import DefaultPolicy
    from pyspark.sql.connect.session import SparkSession

    with _answers():
        url = remote if remote.startswith("sc://") else _start(SparkSession, remote)
        # Great Expectations asks PySpark for functions, which looks here whose they are.
        os.environ["SPARK_CONNECT_MODE_ENABLED"] = "1"
        _knock(url)
        session: Any = SparkSession.builder.remote(url).getOrCreate()
        # Two minutes, in which a server may start again; PySpark would wait for ten.
        session.client.set_retry_policies([DefaultPolicy(max_retries=7)])
        theirs, ours = session.version, pyspark.__version__
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise UserError(f"the Spark server is {theirs}, PySpark here {ours}; make them equal")
        # A range has a part for each core.
        parts = session.range(1 << 16).mapInArrow(_ones, "number long").toArrow().num_rows
        for name in ("leafNodeDefaultParallelism", "shuffle.partitions"):
            session.conf.set(f"spark.sql.{name}", _TASKS * parts)
    return Spark(session, _ROWS * parts)


def _remote() -> str:
    """Return `$SPARK_REMOTE`, which may hold a token and is never quoted."""
    remote = os.environ.get("SPARK_REMOTE", "").strip()
    if not remote.startswith(("sc://", "local")):
        state = "names no Spark Connect server" if remote else "is not set"
        raise UserError(
            f"data.engine is spark and SPARK_REMOTE {state}; set it to sc://HOST:PORT (from a "
            "secret if it holds a token), or to local[2] for a Spark of this machine"
        )
    if find_spec("pyspark") is None:
        raise UserError(
            "data.engine is spark and PySpark is not installed; use requirements/spark.txt (in a "
            "checkout `make setup-spark`, in an image EXTRAS)"
        )
    return remote


def _start(session: Any, master: str) -> str:
    """Start a Spark of this machine and return its address; it ends with this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        "spark.driver.host": "127.0.0.1",
        # Rows pass the JVM as bytes: its best compiler costs more than it could save.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
    }
    session._start_connect_server(_LOCAL.sub(rf"local[\1,{_TRIES}]", master), settings)
    return f"sc://localhost:{port}"


def _knock(url: str) -> None:
    """Refuse a server that does not listen; PySpark itself would try for ten minutes."""
    from pyspark.errors import PySparkException
    from pyspark.sql.connect.client.core import DefaultChannelBuilder

    try:
        host, _, port = DefaultChannelBuilder(url).endpoint.rpartition(":")
    except (PySparkException, ValueError):
        raise UserError(
            "SPARK_REMOTE can't be read; an address of Spark Connect is sc://HOST:15002/;token=…"
        ) from None
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except OSError as error:
        raise RetryableError(
            f"no Spark Connect server listens at {host}:{port} ({error.strerror or error}); start "
            "it, or set SPARK_REMOTE to the right one"
        ) from None


def _ones(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    deque(batches, maxlen=0)
    yield pa.record_batch({"number": [1]})


@contextmanager
def _answers() -> Iterator[None]:
    """Translate what goes wrong on the way to Spark and in it."""
    from grpc import RpcError
    from pyspark.errors import PySparkException, PythonException

    try:
        yield
    except PythonException as error:
        # The last line of the worker's traceback.
        said = [line for line in str(error).splitlines() if re.match(r"[\w.]+: ", line)]
        raise RuntimeError(redact(said[-1] if said else first_line(error))) from None
    except (PySparkException, RpcError) as error:
        raise RetryableError(
            f"Spark could not do its part: {redact(first_line(error))}; see to the server that "
            "SPARK_REMOTE names and run the step again"
        ) from None


@dataclass(frozen=True)
class Spark:
    """A session; a wave has `rows` rows or a few more."""

    session: Any
    rows: int

    def map(
        self, make: Callable[[], Kernel], batches: Iterable[pa.RecordBatch], workers: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """See `Engine.map`; the cluster decides how many workers there are."""
        with _answers(), ThreadPoolExecutor(_WAVES) as senders:
            wave = partial(self._wave, self._sent(make))
            ahead: deque[Future[list[pa.RecordBatch]]] = deque()
            for given in self._waves(batches):
                ahead.append(senders.submit(wave, given))
                if len(ahead) == _WAVES:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()

    def _waves(
        self, batches: Iterable[pa.RecordBatch]
    ) -> Iterator[list[tuple[int, pa.RecordBatch]]]:
        wave, rows = list[tuple[int, "pa.RecordBatch"]](), 0
        for number, batch in enumerate(batches):
            wave.append((number, batch))
            rows += len(batch)
            if rows >= self.rows:
                yield wave
                wave, rows = [], 0
        if wave:
            yield wave

    def _wave(self, kernel: str, wave: list[tuple[int, pa.RecordBatch]]) -> list[pa.RecordBatch]:
        import pyarrow as pa

        numbers, batches = zip(*wave, strict=True)
        given = pa.table({"number": numbers, "batch": list(map(_bytes, batches))})
        sent = self.session.createDataFrame(given, _WAVE)
        found = sent.mapInArrow(partial(_work, kernel), _WAVE).toArrow().sort_by("number")
        assert found["number"].to_pylist() == list(numbers), "Spark lost a batch"
        return [_batch(each) for each in found["batch"]]

    def _sent(self, make: Callable[[], Kernel]) -> str:
        """Send a kernel to the workers; return the name of its file."""
        pickled = _pickled(make)
        name = f"tuneline-{hashlib.sha256(pickled).hexdigest()}.pickle"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(pickled)
            self.session.addArtifacts(str(path), file=True)
        return name

    def frame(self, table: pa.Table) -> Any:
        """Return a table as a data frame; Spark's driver holds it."""
        with _answers():
            return self.session.createDataFrame(table)


def _bytes(batch: pa.RecordBatch) -> bytes:
    from pyarrow import ipc

    sink = io.BytesIO()
    with ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()


def _batch(given: pa.BinaryScalar) -> pa.RecordBatch:
    from pyarrow import ipc

    with ipc.open_stream(given.as_buffer()) as stream:
        return stream.read_next_batch()


def _pickled(make: Callable[[], Kernel]) -> bytes:
    from pyspark.cloudpickle import Pickler

    class WithFolders(Pickler):
        """A folder that a kernel names travels with it."""

        def reducer_override(self, given: Any) -> Any:
            if isinstance(given, Path) and given.is_dir():
                paths = (path for path in given.rglob("*") if path.is_file())
                return _unpacked, ({str(p.relative_to(given)): p.read_bytes() for p in paths},)
            return super().reducer_override(given)

    sink = io.BytesIO()
    WithFolders(sink).dump(make)
    return sink.getvalue()


def _unpacked(files: dict[str, bytes]) -> Path:
    from pyspark import SparkFiles

    folder = Path(tempfile.mkdtemp(dir=SparkFiles.getRootDirectory()))
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@cache
def _kernel(name: str) -> Kernel:
    """Make a kernel, once in each worker."""
    from pyspark import SparkFiles, cloudpickle

    gc.set_threshold(*THRESHOLDS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    made: Kernel = cloudpickle.loads(Path(SparkFiles.get(name)).read_bytes())()
    return made


def _work(kernel: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for sent in batches:
        for number, batch in zip(sent["number"], sent["batch"], strict=True):
            done = _bytes(_kernel(kernel)(_batch(batch)))
            yield pa.record_batch({"number": [number.as_py()], "batch": [done]})

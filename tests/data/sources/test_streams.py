import gzip

import pyarrow as pa
import pytest

from tuneline.data.sources import streams
from tuneline.data.sources.streams import BrokenStream, count_lines, head_of, lines

TEXT = b"".join(b'{"number": %d, "text": "%x"}\n' % (n, n * 7919) for n in range(20_000))


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def read(path):
    """The lines and, when the file breaks, why."""
    found = []
    try:
        for line, _ in lines(path):
            found.append(line)
    except BrokenStream as error:
        return found, error
    return found, None


# Some tools write a file as many members or frames, parallel zstd with a frame to skip first.
@pytest.mark.parametrize(
    "packed",
    [
        TEXT,
        TEXT[:-1],
        gzip.compress(TEXT),
        gzip.compress(TEXT[:70_001]) + gzip.compress(TEXT[70_001:]),
        zstd(TEXT),
        zstd(TEXT[:70_001]) + zstd(TEXT[70_001:]),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstd(TEXT),
    ],
)
def test_every_packing_gives_the_same_lines(tmp_path, packed):
    path = tmp_path / "rows"
    path.write_bytes(packed)
    assert read(path) == (TEXT.splitlines(), None)
    assert count_lines(path) == 20_000
    assert head_of(path, 12) == TEXT[:12]


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (gzip.compress(TEXT)[:-40_000], "gzip stream ends early"),
        (gzip.compress(TEXT)[:-8] + b"\0" * 8, "gzip stream is damaged"),
        (gzip.compress(TEXT) + b"rubbish", "gzip stream is damaged"),
        (zstd(TEXT)[:-40_000], "zstd stream is damaged"),
        (zstd(TEXT) + b"rubbish", "zstd stream is damaged"),
    ],
)
def test_a_damaged_stream_gives_what_can_be_read(tmp_path, packed, why):
    path = tmp_path / "rows"
    path.write_bytes(packed)
    found, error = read(path)
    assert why in str(error)
    assert found == TEXT.splitlines()[: len(found)]
    assert len(found) > 10_000
    assert (b"\n".join(found) + b"\n" + error.partial) == TEXT[
        : len(b"\n".join(found)) + 1 + len(error.partial)
    ]
    assert count_lines(path) == len(found) + 1


def test_a_line_without_end_is_cut_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 100_000)
    path = tmp_path / "rows"
    path.write_bytes(b"a\n" + b"x" * 300_000 + b"\nb\n")
    assert [(line[:1], len(line), size) for line, size in lines(path)] == [
        (b"a", 1, 1),
        (b"x", 100_000, 300_000),
        (b"b", 1, 1),
    ]
    assert count_lines(path) == 3

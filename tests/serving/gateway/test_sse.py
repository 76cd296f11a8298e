import pytest

from tuneline.serving.gateway.protocol import SseParser, event

STREAM = (
    b": keep-alive\n\ndata: one\n\nevent: x\ndata:two\nid: 7\n\n"
    b'data: {"a":\ndata: 1}\r\n\r\ndata: three \n\ndata: cut'
)
EVENTS = [b"one", b"two", b'{"a":\n1}', b"three "]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_where_the_stream_is_cut(size):
    parser = SseParser()
    found = []
    for start in range(0, len(STREAM), size):
        found += parser.feed(STREAM[start : start + size])
    assert found == EVENTS


def test_what_is_written_is_read_again():
    assert SseParser().feed(event(b'{"x": "y"}')) == [b'{"x": "y"}']

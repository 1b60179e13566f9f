from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword_client._sse import Decoder, Event


def _decode(stream: bytes, cuts: list[int] | None = None) -> list[Event]:
    decoder = Decoder()
    edges = [0, *sorted(cuts or []), len(stream)]
    pieces = (stream[a:b] for a, b in itertools.pairwise(edges))
    return [event for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"event: token\ndata: 1\n\n", [Event("token", "1")]),
        (b"event: token\r\ndata: 1\r\n\r\n", [Event("token", "1")]),
        (b"event: token\rdata: 1\r\r", [Event("token", "1")]),
        (b"data: one\ndata:  two\ndata:three\n\n", [Event("message", "one\n two\nthree")]),
        (b": a comment\nid: 7\nretry: 9\nwhat: ever\ndata: 1\n\n", [Event("message", "1")]),
        (b"data\n\n", [Event("message", "")]),
        (b"event: lonely\n\ndata: 1\n\n", [Event("message", "1")]),
        (b"\xef\xbb\xbfdata: 1\n\ndata: \xef\xbb\xbf2\n\n", None),
        (b"data: never finished\n", []),
        (
            b"data: caf\xc3\xa9 \xe2\x80\xa8 \x0b \x85\n\n",
            [Event("message", "café \u2028 \x0b \ufffd")],
        ),
    ],
)
def test_a_stream_is_read_as_the_specification_says(
    stream: bytes, expected: list[Event] | None
) -> None:
    if expected is None:  # only the first byte order mark goes
        expected = [Event("message", "1"), Event("message", "\ufeff2")]

    assert _decode(stream) == expected


_LINES = st.sampled_from(
    [
        "event: token",
        "event:x",
        "data: é",
        "data:",
        "data: {}",
        ":c",
        "id: 1",
        "",
        "",
        "\ufeffdata: b",
    ]
)
_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
_STREAMS = st.lists(st.tuples(_LINES, _ENDS).map("".join), max_size=30).map(
    lambda lines: "".join(lines).encode()
)


@given(_STREAMS, st.data())
def test_any_chunking_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))

    assert _decode(stream, cuts) == _decode(stream)
    assert _decode(stream, list(range(len(stream)))) == _decode(stream)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_raise(stream: bytes) -> None:
    assert all(isinstance(event, Event) for event in _decode(stream))

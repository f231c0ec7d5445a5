"""The chunked coding by itself: whatever comes, wherever it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.chunked import MAX_LINE, MAX_TRAILER, BadChunk, ChunkedDecoder

END = b"0\r\n\r\n"


def decoded(data, cuts=()):
    """The content of a body that comes in these pieces, and what is behind it."""
    decoder, content, at = ChunkedDecoder(), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        pieces, taken = decoder.feed(data[at:cut])
        content += b"".join(pieces)
        at += taken
        assert decoder.done or at == cut
        if decoder.done:
            return content, data[at:]
    return content, None    # its end has not come


def chunked(contents, extension=b"", trailers=b""):
    lines = (b"%x%b\r\n%b\r\n" % (len(content), extension, content) for content in contents if content)
    return b"".join(lines) + b"000" + extension + b"\r\n" + trailers + b"\r\n"


EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b;\\" c"', b";a;b=c" * 40])
TRAILERS = st.sampled_from([b"", b"X: y\r\n", b"X: y\r\n" * 100])


@given(st.lists(st.binary(max_size=40)), EXTENSIONS, TRAILERS, st.binary(max_size=20), st.data())
def test_what_was_cut_into_chunks_comes_out_wherever_the_network_cuts(contents, extension, trailers, behind, data):
    body = chunked(contents, extension, trailers) + behind
    cuts = data.draw(st.lists(st.integers(0, len(body))))
    assert decoded(body, cuts) == (b"".join(contents), behind)
    assert decoded(body, range(len(body))) == (b"".join(contents), behind)


@pytest.mark.parametrize("line", [
    b"\r\n1\r\nx\r\n", b"+1\r\nx\r\n", b"-1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_0\r\n", b" 1\r\nx\r\n", b"1 \r\nx\r\n",
    b"\r\n", b"1\t;a\r\nx\r\n", b"1\nx\n", b"1\rx\r", b"1\n\r\nx\r\n", b"g\r\n", b"\xb2\r\n", b"1,\r\n", b"1;\r\nx\r\n",
    b"1;a=\r\nx\r\n", b'1;a="\r\nx\r\n', b"1;a\0\r\nx\r\n", b"1;a\nb\r\nx\r\n", b"8000000000000000\r\n",
    b"f" * 40 + b"\r\n",
    b"0" * (MAX_LINE + 1), b"1;" + b"e" * MAX_LINE, b"1\r\nxx\r\n", b"1\r\nx\n", b"1\r\nx1\r\nx\r\n",
    b"0\r\nX: y\n\nZ: z\r\n\r\n", b"0\r\nX: \r y\r\n\r\n", b"0\r\nX: \0\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 3000,
    b"0\r\n" + b"X" * MAX_TRAILER,
])
def test_what_is_not_the_coding_is_refused_wherever_it_is_cut(line):
    for before in (b"", b"1\r\nx\r\n"):
        data = before + line
        for cuts in ((), range(len(data)), [len(before)]):
            with pytest.raises(BadChunk):
                decoded(data + END, cuts)


def test_a_size_that_cannot_become_one_is_refused_before_its_line_ends():
    for begun in (b"x", b"1 ", b"\n", b"1\n", b"-"):
        with pytest.raises(BadChunk):
            decoded(begun)


@given(st.binary(), st.data())
def test_any_bytes_are_decoded_or_refused(data, draw):
    try:
        whole = decoded(data)
    except BadChunk:
        return
    cuts = draw.draw(st.lists(st.integers(0, len(data))))
    assert decoded(data, cuts) == whole

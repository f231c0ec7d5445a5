"""The multipart cutter: bytes in, parts out, whatever the pieces they come in."""

import itertools
import mmap
import re
import time
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from server.errors import BadRequest
from server.multipart import FormCutter, Part, PartEnd, UploadForm

B = "B-1"
D = b"\r\n--B-1"     # what ends a part, if nothing but padding and CRLF follows
FILE = b'Content-Disposition: form-data; name="file"; filename="m.pt"'


def cut(body, *cuts, boundary=B):
    """[(part, content)] of a form that arrives in pieces which end at `cuts`.

    It is the same for contents that stay where they have been received.
    """
    pieces = [body[a:b] for a, b in itertools.pairwise((0, *cuts, len(body)))]
    content_type = f"multipart/form-data; boundary={boundary}"
    try:
        fed = parts_of(FormCutter(content_type), FormCutter.feed, pieces)
    except BadRequest:
        with pytest.raises(BadRequest):
            parts_of(FormCutter(content_type), landed, pieces)
        raise
    assert parts_of(FormCutter(content_type), landed, pieces) == fed
    return fed


def landed(cutter, piece):
    """The events of a piece that has been received in a slab."""
    if not cutter.in_content or not piece:
        yield from cutter.feed(piece)
        return
    before = b"--B-1\r\n"     # which are another's, and not to be looked at
    with mmap.mmap(-1, len(before) + len(piece) + len(D)) as slab:
        slab[:] = before + piece + D
        end = cutter.end_of_content(slab, len(before), len(before) + len(piece))
        content, rest = slab[len(before):end], slab[end:len(before) + len(piece)]
    if content:
        yield memoryview(content)
    if rest:
        yield from cutter.feed(rest)


def parts_of(cutter, take, pieces):
    parts, inside = [], False
    for event in itertools.chain((event for piece in pieces for event in take(cutter, piece)), cutter.finish()):
        assert isinstance(event, Part) != inside    # a part begins, has its content, and ends, one after the other
        if isinstance(event, Part):
            parts.append((event, bytearray()))
        elif not isinstance(event, PartEnd):
            assert len(event)       # the draft is promised no empty block
            parts[-1][1].extend(event)
        inside = not isinstance(event, PartEnd)
    assert not inside
    return [(part, bytes(content)) for part, content in parts]


def form(*contents, headers=FILE):
    return b"".join(b"--B-1\r\n" + headers + b"\r\n\r\n" + content + b"\r\n" for content in contents) + b"--B-1--\r\n"


def one_file(content):
    return [(Part("file", "m.pt"), content)]


def part_with(headers):
    [(part, content)] = cut(form(b"x", headers=headers))
    assert content == b"x"
    return part


# ---- pieces

WHOLE = (
    b"a preamble\r\n--B-1 \t\r\n" + FILE + b"\r\n\r\nab\r\n--B-\r\n--B-1x\r\n\r\r\n--B-1--\r\r\n--B-1\n\r"
    b"\r\n--B-1\r\ncontent-disposition:form-data;name=empty\r\n\r\n"
    b"\r\n--B-1\r\nContent-Type: text/plain\r\nContent-Disposition: form-data;\r\n name=folded\r\n\r\n--\r\n"
    b"\r\n--B-1-- \r\nan epilogue\r\n--B-1\r\nthat is ignored"
)
WHOLE_PARTS = [
    (Part("file", "m.pt"), b"ab\r\n--B-\r\n--B-1x\r\n\r\r\n--B-1--\r\r\n--B-1\n\r"),
    (Part("empty", None), b""),
    (Part("folded", None), b"--\r\n"),
]


@pytest.mark.parametrize("at", range(len(WHOLE) + 1))
def test_a_body_cut_in_two_anywhere_gives_the_same_parts(at):
    assert cut(WHOLE, at) == WHOLE_PARTS


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 16, 64, 1000])
def test_a_body_cut_in_many_pieces_gives_the_same_parts(step):
    assert cut(WHOLE, *range(step, len(WHOLE), step)) == WHOLE_PARTS


def test_a_body_cut_at_any_two_places_gives_the_same_parts():
    for cuts in itertools.combinations(range(WHOLE.index(b"ab\r\n"), WHOLE.index(b"content-disp")), 2):
        assert cut(WHOLE, *cuts) == WHOLE_PARTS, cuts


@pytest.mark.parametrize("pieces", [[b""], [b"", b"", b""]])
def test_empty_pieces_change_nothing(pieces):
    cutter, events = FormCutter(f"multipart/form-data; boundary={B}"), []
    for piece in [*pieces, form(b"x")[:30], *pieces, form(b"x")[30:], *pieces]:
        events += cutter.feed(piece)
    assert [type(e) for e in [*events, *cutter.finish()]] == [Part, memoryview, PartEnd]


# ---- content that almost is a boundary

ALMOST = [
    *(D[:n] for n in range(1, len(D) + 1)),
    D + b"-", D + b"--", D + b"x", D + b"--x", D + b"- -", D + b"-\r\n", D + b"\n", D + b"\r", D + b"\r\r\n",
    D + b"--\n", D + b" x\r\n", D + b"--\t-\r\n", D + b"\0\r\n", D + b" " * 999 + b"x", D.replace(b"\r", b"") + b"\r\n",
    D.replace(b"\n", b"") + b"\r\n", D.lower() + b"\r\n", b"\r" + D[1:] + b"1\r\n", b"\r\n -" + D[3:] + b"\r\n",
    b"\r\n" * 40, b"\r" * 40, b"\n" * 40, b"\r\n--" * 40, D * 40, (D + b"-") * 40, b"\r\n\r\n--B-1x: y\r\n\r\n",
]


AROUND = [(b"", b""), (b"ab", b""), (b"ab", b"cd"), (b"\r", b"-"), (b"\r\n", b"x\r\n"), (D + b"-", D + b"x"),
          (b"\0" * 300, b"\xff" * 300)]


def is_content(content):
    """Whether no line of it is a boundary, the line ends around it in a form included."""
    return not re.search(D + rb"(--)?[ \t]*\r\n", b"\r\n" + content + b"\r\n")


@pytest.mark.parametrize("content", [content for almost in ALMOST for before, after in AROUND
                                     if is_content(content := before + almost + after)])
def test_what_almost_is_a_boundary_is_content(content):
    body = form(content)
    for step in (len(body), 1, 6, 7, 8):
        assert cut(body, *range(step, len(body), step)) == one_file(content)


@pytest.mark.parametrize("inner", ["C", "B-1x", "B-1-", "B-1--x", "B"])
def test_a_form_inside_a_form_is_content(inner):
    nested = b"".join(b"--%b\r\nContent-Type: text/plain\r\n\r\n%d\r\n" % (inner.encode(), n) for n in range(3))
    nested += b"--%b--\r\n" % inner.encode()
    for kind in (b"", b"multipart/mixed; boundary=" + inner.encode(), b"message/rfc822"):
        body = form(nested, headers=FILE + b"\r\nContent-Type: " + kind)
        assert cut(body) == cut(body, *range(1, len(body))) == one_file(nested)


near = st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"B", b"-1", b" ", b"\t", D, D[:-1], b"x"])
nearly = st.lists(st.one_of(near, st.binary(max_size=4))).map(b"".join)


@given(st.lists(nearly, min_size=1, max_size=4), st.data())
@example([D + b"--", D + b"-"], None)
def test_random_content_in_random_pieces_comes_out_as_it_went_in(contents, data):
    assume(all(map(is_content, contents)))
    body = form(*contents)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12)) if data else range(len(body))
    assert cut(body, *sorted(cuts)) == [(Part("file", "m.pt"), content) for content in contents]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_random_bytes_are_parts_or_a_bad_upload(noise, cuts):
    for body in (noise, form(noise), b"--B-1" + noise + form(b"")):
        try:
            cut(body, *sorted(min(at, len(body)) for at in cuts))
        except BadRequest:
            continue


# ---- the form as a whole

@pytest.mark.parametrize(("body", "parts"), [
    (form(b"x"),                                        one_file(b"x")),
    (form(b"x")[:-2],                                   one_file(b"x")),      # RFC 2046 5.1.1: the last CRLF may miss
    (form(b"x")[:-2] + b" \t",                          one_file(b"x")),
    (form(b"x") + b"\0" * 100_000,                      one_file(b"x")),      # an epilogue
    (form(b"x") + form(b"y"),                           one_file(b"x")),
    (b"\r\n" + form(b"x"),                              one_file(b"x")),
    (b"hello\r\n\r\nhow are you\r\n" + form(b"x"),      one_file(b"x")),
    (b"--B-1x\r\n" + form(b"x"),                        one_file(b"x")),
    (b"--B-1--\r\n",                                    []),
    (form(b"", b""),                                    one_file(b"") * 2),
])
def test_preambles_epilogues_and_missing_line_ends_are_fine(body, parts):
    for step in (len(body), 1 if len(body) < 1000 else 999):
        assert cut(body, *range(step, len(body), step)) == parts


@pytest.mark.parametrize("body", [
    b"", b"\r\n", b"--B-1", b"--B-1\r\n", b"nothing like a form", b"--C\r\n" + form(b"x").replace(B.encode(), b"C"),
    *(form(b"x" * 9)[:-n] for n in range(3, 90, 3)),
    form(b"x").replace(b"\r\n", b"\n"),                 # LF alone: what a text editor sends
    form(b"x").replace(b"\r\n", b"\r"),
    form(b"x").replace(b"--B-1--\r\n", b"--B-1\r\n"),
    form(b"x").replace(b"--B-1--\r\n", b"--B-1-\r\n"),
    form(b"x").replace(b"--B-1--\r\n", b"--B-1--x"),
    b" " + form(b"x")[:20],
    b"p" * 1_000_000 + b"\r\n" + form(b"x"),            # a preamble that is somebody's file
    form(*[b"x"] * 10_000), form(*[b""] * 10_000),
    b"--B-1\r\n" * 10_000 + form(b"x"),
    form(b"x", headers=FILE + b"\r\nX: " + b"y" * 100_000),
    form(b"x", headers=FILE + b"\r\nX: y" * 100_000),
    b"--B-1\r\n" + FILE + b"\r\nX: " + b"y" * 100_000,
    b"--B-1\r\n\r\nno headers" + D + b"--\r\n",
    b"--B-1\r\n" + FILE + b"\r\n" + form(b"x"),            # headers without the empty line, the next part behind
])
def test_what_is_no_whole_form_is_a_bad_upload(body):
    for step in (len(body) or 1, 1 if len(body) < 1000 else 997):
        with pytest.raises(BadRequest):
            cut(body, *range(step, len(body), step))


def test_headers_without_an_end_are_refused_before_they_fill_the_memory():
    cutter = FormCutter(f"multipart/form-data; boundary={B}")
    list(cutter.feed(b"--B-1\r\n" + FILE))
    with pytest.raises(BadRequest, match="headers"):
        for _ in range(64):
            list(cutter.feed(b"y" * 1024))


@pytest.mark.parametrize(("content_type", "boundary"), [
    ("multipart/form-data; boundary=B", b"B"),
    ('Multipart/Form-Data; charset=utf-8; Boundary="B"', b"B"),
    ('multipart/form-data; boundary="a b:c?d=e"', b"a b:c?d=e"),
    ("multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", b"----WebKitFormBoundary7MA4YWxkTrZu0gW"),
    ("multipart/form-data; boundary=" + "x" * 70, b"x" * 70),
    ("multipart/form-data; boundary=" + "-" * 8, b"-" * 8),
])
def test_boundaries_as_clients_write_them(content_type, boundary):
    cutter = FormCutter(content_type)
    body = form(b"x").replace(B.encode(), boundary)
    assert [bytes(e) for e in [*cutter.feed(body), *cutter.finish()] if isinstance(e, memoryview)] == [b"x"]


@pytest.mark.parametrize("content_type", [
    "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "multipart/mixed; boundary=B",
    "multipart/form-data; boundary=", 'multipart/form-data; boundary=""', "multipart/form-data; boundary=" + 71 * "x",
    "multipart/form-data; boundary=\u00e9", "multipart/form-data; boundary=\u20ac",
    'multipart/form-data; boundary="a\tb"', "multipart/form-data; boundary=\x7f", "\0", ";" * 999, "(" * 999,
    "multipart/form-data\r\nX: y; boundary=B", "multipart/form-data; boundary*=utf-16''%ff",
    "multipart/form-data; boundary*=idna''%ff",
])
def test_a_content_type_without_a_usable_boundary_is_a_bad_upload(content_type):
    with pytest.raises(BadRequest):
        FormCutter(content_type)


# ---- the headers of a part

@pytest.mark.parametrize(("parameter", "filename"), [
    (b'filename="m.pt"',                    "m.pt"),
    (b"filename=m.pt",                      "m.pt"),
    (b'FileName = "m.pt"',                  "m.pt"),
    (b'filename="a b;c.pt"',                "a b;c.pt"),
    (b'filename="a\\"b.pt"',                'a"b.pt'),         # curl --form-escape
    (b'filename="a%22b.pt"',                'a"b.pt'),         # curl, browsers
    (b'filename="100%.pt"',                 "100%.pt"),
    ('filename="mod\u00e8le-\u6a21.pt"'.encode(), "mod\u00e8le-\u6a21.pt"),
    (b'filename="mod\xe8le.pt"',            "mod\u00e8le.pt"),  # not UTF-8, so Latin-1
    (b"filename*=UTF-8''mod%C3%A8le.pt",    "mod\u00e8le.pt"),
    (b"filename*=utf-8'en'a%20b.pt",        "a b.pt"),
    (b"filename*0=long-; filename*1=er.pt", "long-er.pt"),
    # RFC 6266 4.3: filename* wins over filename, in either order
    (b"filename=\"plain.pt\"; filename*=UTF-8''mod%C3%A8le.pt",    "mod\u00e8le.pt"),
    (b"filename*=UTF-8''mod%C3%A8le.pt; filename=\"plain.pt\"",    "mod\u00e8le.pt"),
    # .NET sends both, the plain one as an encoded word (RFC 2047)
    (b"filename=\"=?utf-8?B?bW9kw6hsZS5wdA==?=\"; filename*=utf-8''mod%C3%A8le.pt", "mod\u00e8le.pt"),
    (b"filename=\"=?utf-8?B?b3RoZXI=?=\"; filename*=utf-8''mod%C3%A8le.pt",        "mod\u00e8le.pt"),
    (b'filename="=?utf-8?B?bW9kw6hsZS5wdA==?="',                  "mod\u00e8le.pt"),
    (b'filename="=?iso-8859-1?Q?mod=E8le=2Ept?="',                "mod\u00e8le.pt"),
    (b'filename="=?utf-8?q?a_b=2Ept?="',                          "a b.pt"),
    (b'filename="=?utf-8?B?bW9kww==?= =?utf-8?B?qGxlLnB0?="',     "mod\u00e8le.pt"),  # a character in two words
    (b'filename="=?utf-8?B?!!!?="',                               "=?utf-8?B?!!!?="),
    (b'filename="m=?utf-8?B?YQ==?=.pt"',                          "m=?utf-8?B?YQ==?=.pt"),
    (b'filename="C:\\Models\\m.pt"',        "m.pt"),
    (b'filename="/home/u/m.pt"',            "m.pt"),
    (b'filename="../../etc/passwd"',        "passwd"),
    (b"filename*=UTF-8''..%2F..%2Fpasswd",  "passwd"),
    (b'filename="a\x01\x1b[31m.pt"',        "a[31m.pt"),
    (b'filename=""',                        ""),
    (b"x=y",                                None),
])
def test_file_names_as_clients_write_them(parameter, filename):
    assert part_with(b'Content-Disposition: form-data; name="file"; ' + parameter) == Part("file", filename)


LONG = "\U0001f9e0" * 255        # the longest name that a file system takes, in characters of four bytes
ESCAPED = "UTF-8''" + quote(LONG)
IN_PIECES = "; filename*0*=UTF-8''" + "".join(f"; filename*{n + 1}*={quote(LONG[n * 6:n * 6 + 6])}" for n in range(43))


@pytest.mark.parametrize(("parameters", "filename"), [
    (f"; filename*={ESCAPED}",                              LONG),
    (IN_PIECES,                                             LONG),
    (IN_PIECES.replace("; ", ";\r\n "),                     LONG),
    (f'; filename="{LONG}"; filename*={ESCAPED}',           LONG),
    (f'; filename="{"x" * 4096}"',                          "x" * 255),     # what a file system does not take is cut
    (f'; filename="{"x" * 400}.safetensors"',               "x" * 243 + ".safetensors"),
    (f'; filename="{"x" * 400}.tar.gz"',                    "x" * 248 + ".tar.gz"),
    (f'; filename="{"x" * 251}.tar"',                       "x" * 251 + ".tar"),
    (f'; filename="{"x" * 252}.tar"',                       "x" * 251 + ".tar"),
    (f'; filename="m.{"x" * 400}"',                         "m." + "x" * 253),
    (f'; filename="{"x" * 15_000}"',                        "x" * 255),
    (f'; filename="{";" * 50}"',                            ";" * 50),
    ("; filename=\"C:\\" + "d\\" * 900 + 'm.pt"',          "m.pt"),
])
def test_long_file_names_as_clients_write_them(parameters, filename):
    headers = f'Content-Disposition: form-data; name="file"{parameters}\r\nContent-Type: application/octet-stream'
    assert part_with(headers.encode()) == Part("file", filename)


@pytest.mark.parametrize(("headers", "filename"), [
    (b"Content-Type: text/plain; name=old.pt",                   "old.pt"),
    (b"Content-Type: text/plain; name*=utf-8''old%20one.pt",     "old one.pt"),
    (b"Content-Type: text/plain; charset=utf-8",                 None),
])
def test_a_name_in_the_content_type_is_a_file_name_where_there_is_no_other(headers, filename):
    assert part_with(b"Content-Disposition: form-data; name=file\r\n" + headers) == Part("file", filename)
    assert part_with(FILE + b"\r\n" + headers) == Part("file", "m.pt")


@pytest.mark.parametrize(("headers", "name"), [
    (b"CONTENT-DISPOSITION:form-data;name=note",                                    "note"),
    (b'Content-Disposition: form-data; name="a\\"b"',                               'a"b'),
    (b'Content-Disposition: form-data; name="a%22b"',                               'a"b'),
    ('Content-Disposition: form-data; name="\u00fcber"'.encode(),                   "\u00fcber"),
    (b"Content-Type: text/plain\r\nX-Other: 1\r\nContent-Disposition: form-data; name=n",    "n"),
    (b'Content-Disposition: form-data; name="=?utf-8?B?w7xiZXI=?="',               "\u00fcber"),     # .NET
    (b"Content-Disposition: form-data; name=n\r\nContent-Transfer-Encoding: binary",         "n"),
    (b"Content-Disposition: form-data; name=n\r\nContent-Transfer-Encoding: 8BIT",           "n"),
    (b"Content-Disposition: form-data; name=n\r\nContent-Type: message/rfc822",              "n"),
])
def test_field_names_as_clients_write_them(headers, name):
    assert part_with(headers) == Part(name, None)


def test_a_part_has_as_many_lines_and_parameters_as_the_documentation_says():
    for more, parameters in ((b"\r\nX: y" * 63, b""), (b"", b"; x=y" * 62)):     # FILE has one line and two parameters
        assert part_with(FILE + parameters + more).name == "file"
        with pytest.raises(BadRequest, match="too much"):
            part_with(FILE + parameters + more + (parameters[:5] or more[:6]))


@pytest.mark.parametrize("headers", [
    b"X: y", b"Content-Disposition: attachment; name=file", b"Content-Disposition: form-data", b"Content-Disposition:",
    b'Content-Disposition: form-data; name=""', FILE + b"\r\nContent-Transfer-Encoding: base64",
    FILE + b"\r\ncontent-transfer-encoding:Quoted-Printable", FILE + b"\r\nContent-Transfer-Encoding: x-uuencode",
    FILE + b"\r\nContent-Encoding: gzip", FILE + b"\r\nContent-Range: bytes 5-9/10",
    b"Content-Disposition: form-data; name=n\r\nContent-Type: text/plain; charset=punycode",
    b'Content-Disposition: form-data; name=file; filename="=?nope?B?YQ==?="',
    FILE.replace(b"; f", b";\n f"), FILE + b"\nContent-Transfer-Encoding: base64", FILE + b"\rX: y", FILE + b"\0",
    FILE + b"\r\nno colon\r\nContent-Transfer-Encoding: base64", b"\0" * 100, b"no colon", b"\r\n" + FILE,
])
def test_a_part_that_cannot_be_taken_as_it_is_is_a_bad_upload(headers):
    with pytest.raises(BadRequest):
        part_with(headers)


HOSTILE = [     # what makes the standard library's parser raise other things than its own errors
    b"name*=utf-8'", b"name*=''", b"name*=nope''%ff", b"name*=utf-16''%00", b"name*=idna''%ff", b"name*=rot13''x",
    b"name*=punycode''%ff-%ff", b"name*=hex''zz", b"name*=base64''!", b"name*=zlib''x", b"name*=undefined''x",
    b"name*=a%00b''x", b"name*=\xc2\xb2''x", b"name*\xc2\xb2=x", b"name*0*=x; name*1=y", b"name*1*=x",
    b"name*0=x; name*0=y", b"name*" + b"9" * 5000 + b"=x", b"name*0*=nope''%ff", b"name=x; filename*=utf-7''+AAA",
    b"name=x; filename*=unicode_escape''%5cx", b'name="', b'name="\\', b"name=\\", b"name=(((", b"name=" + b"(" * 9000,
    b"name=x" + b";" * 9000, b";;=;=;*=;*0=", b"name=\xed\xa0\x80", b"name==?utf-8?b?!?=",
    b"name==?nope?q?x?=", b"name=x; filename==?utf-8?q?=0d=0a?=", b"name=x\r\nContent-Type: " + b"(" * 9000,
    b"name=x\r\nContent-Transfer-Encoding: =?utf-8?b?\xff?=", b"name=x\r\n: no name", b"name=x\r\nFrom me",
    b"name=x\r\nContent-Type: message/rfc822\r\nMIME-Version: ((((", b"name=x\r\n\xff: y", b"name=x\x85\x1c\x1ey: z",
    b"name=\xff\r\nContent-Transfer-Encoding: \xff\xfe",
]


@pytest.mark.parametrize("rest", HOSTILE)
def test_hostile_headers_are_a_part_or_a_bad_upload(rest):
    for headers in (b"Content-Disposition: form-data; " + rest, b"Content-Disposition: " + rest, rest):
        try:
            part = part_with(headers)
        except BadRequest:
            continue
        assert isinstance(part.name, str) and part.name
        assert part.filename is None or not re.search(r"[/\\\0-\x1f]", part.filename)


tokens = st.sampled_from([
    b"Content-Disposition: form-data", b"Content-Type: ", b"Content-Transfer-Encoding:", b"; ", b"name", b"filename",
    b"*", b"0", b"1", b"=", b'"', b"\\", b"'", b"utf-8''", b"%ff", b"\r\n", b" ", b"(", b":", b"=?utf-8?b?", b"?=",
    b"\xff", b"\xc3\xa9", b"\0", b"/", b",", b"<", b"\xe2\x80\xa8"])


@given(st.lists(st.one_of(tokens, st.binary(max_size=3)), max_size=30).map(b"".join), st.booleans())
def test_random_headers_are_a_part_or_a_bad_upload(noise, disposed):
    try:
        cut(form(b"x", headers=(b"Content-Disposition: form-data; name" if disposed else b"") + noise))
    except BadRequest:
        return


@given(st.one_of(st.text(max_size=60), st.text("multipart/form-data; boundary=*0'\"\\%\r\n\xff()", max_size=60)))
def test_random_content_types_are_a_cutter_or_a_bad_upload(noise):
    for content_type in (noise, "multipart/form-data;" + noise, "multipart/form-data; boundary=" + noise):
        try:
            FormCutter(content_type)
        except BadRequest:
            continue


# ---- the charset of fields

ENCODED = "\u043f\u0440\u043e\u0434".encode("cp1251")     # 'prod', in Cyrillic
TEXT = b"Content-Type: text/plain; charset="


def field_of(*parts):
    """The value of the field n in a form of (headers, content), a file behind them."""
    body = b"".join(form(content, headers=b"Content-Disposition: form-data; " + headers)[:-len(b"--B-1--\r\n")]
                    for headers, content in parts) + form(b"x")
    upload = UploadForm(f"multipart/form-data; boundary={B}")
    assert b"".join([*upload.feed(body), *upload.finish()]) == b"x"
    (name, value), = upload.fields
    assert name == "n"
    return value


@pytest.mark.parametrize(("parts", "value"), [
    ([(b"name=n\r\n" + TEXT + b"windows-1251", ENCODED)],                         "\u043f\u0440\u043e\u0434"),
    ([(b"name=n\r\n" + TEXT + b'"iso-8859-1"', b"\xfcber")],                       "\u00fcber"),
    ([(b"name=n\r\n" + TEXT + b"UTF-16", "\u00fcber".encode("utf-16"))],           "\u00fcber"),
    ([(b"name=n\r\n" + TEXT + b"utf-16le", "\u00fcber".encode("utf-16le"))],       "\u00fcber"),
    ([(b"name=n\r\n" + TEXT + b"Shift_JIS", "\u6a21".encode("shift_jis"))],        "\u6a21"),
    ([(b"name=n\r\n" + TEXT + b"utf-8", "\u00fcber".encode())],                    "\u00fcber"),
    ([(b"name=n\r\nContent-Type: text/plain", "\u00fcber".encode())],               "\u00fcber"),
    ([(b"name=_charset_", b"windows-1251"), (b"name=n", ENCODED)],                  "\u043f\u0440\u043e\u0434"),
    ([(b"name=n", ENCODED), (b"name=_charset_", b"windows-1251")],                  "\u043f\u0440\u043e\u0434"),
    ([(b"name=_charset_", b"windows-1251"), (b"name=n\r\n" + TEXT + b"latin1", b"\xfc")], "\u00fc"),
    ([(b"name=_charset_", b"UTF-8"), (b"name=_charset_", b"utf8"), (b"name=n", b"x")], "x"),
])
def test_a_field_is_decoded_as_its_client_declares(parts, value):
    assert field_of(*parts) == value


@pytest.mark.parametrize("parts", [
    [(b"name=n", ENCODED)],
    [(b"name=n\r\n" + TEXT + b"utf-8", ENCODED)],
    [(b"name=n\r\n" + TEXT + b"us-ascii", ENCODED)],
    *([(b"name=n\r\n" + TEXT + unknown, b"x")] for unknown in (b"nope", b"idna", b"rot13", b"hex", b"utf-7", b"zlib")),
    [(b"name=_charset_", b"nope"), (b"name=n", b"x")],
    [(b"name=_charset_", b""), (b"name=n", b"x")],
    [(b"name=_charset_", b"utf-8"), (b"name=_charset_", b"latin1"), (b"name=n", b"x")],
])
def test_text_that_is_not_what_it_is_declared_to_be_is_a_bad_upload(parts):
    with pytest.raises(BadRequest):
        field_of(*parts)


@pytest.mark.parametrize("part", [(b"name=_charset_", b"nope"), (b"name=n\r\n" + TEXT + b"nope", b"x")])
def test_an_unknown_charset_is_refused_before_the_model_has_come(part):
    upload = UploadForm(f"multipart/form-data; boundary={B}")
    with pytest.raises(BadRequest, match="charset"):
        field = form(part[1], headers=b"Content-Disposition: form-data; " + part[0])[:-len(b"--B-1--\r\n")]
        list(upload.feed(field + form(b"x" * 300)[:-100]))


def test_names_are_in_the_charset_of_the_form_where_they_are_not_utf_8():
    body = form(b"utf-8", headers=b"Content-Disposition: form-data; name=_charset_").replace(b"utf-8", b"windows-1251")
    body = body[:-len(b"--B-1--\r\n")] + form(b"x", headers=b'Content-Disposition: form-data; name=file; filename="'
                                              + ENCODED + b'"')
    upload = UploadForm(f"multipart/form-data; boundary={B}")
    assert b"".join([*upload.feed(body), *upload.finish()]) == b"x"
    assert upload.filename == "\u043f\u0440\u043e\u0434"


# ---- what it costs

def fields(number, headers=b"", content=b"v"):
    """A form of so many fields, which differ in their names alone."""
    part = b'--B-1\r\nContent-Disposition: form-data; name="%d"' + headers.replace(b"%", b"%%") + b"\r\n\r\n"
    return b"".join(part % n + content + b"\r\n" for n in range(number)) + form(b"x")


def filled(headers):
    """As many fields with these headers as there may be in 1 MiB."""
    return fields(min(255, (1 << 20) // (len(headers) + 80)), headers)


def cost(body, content_type=f"multipart/form-data; boundary={B}", step=1 << 20):
    """(seconds of the processor, what it was refused with) of a form in pieces of so many bytes; the best of three."""
    best, pieces = 1e9, [body[at:at + step] for at in range(0, len(body), step)]
    for _ in range(3):
        refusal, begun = "", time.process_time()
        try:
            upload = UploadForm(content_type)
            for piece in pieces:
                for _ in upload.feed(piece):
                    pass
            list(upload.finish())
        except BadRequest as error:
            refusal = str(error)
        best = min(best, time.process_time() - begun)
    return best, refusal


@pytest.fixture(scope="module")
def honest():
    """Seconds for a form of 1 MiB in 250 fields."""
    taken, refusal = cost(fields(250, content=b"v" * 4096))
    assert not refusal
    return taken


SEMICOLONS = b"; a=" + b'"' + b";" * 16_000
COSTLY = {      # case: (form, whether it is refused)
    "parameters without names":     (filled(b";" * 16_000), True),
    "parameters of short parts":    (filled(b";" * 4_000), True),
    "parameters just few enough":   (filled(b";x=" + b'"' * 16_000 + b";" * 62), True),
    "parameters in a quoted text":  (filled(SEMICOLONS), True),
    "quoted texts without an end":  (filled(b';"' * 8_000), True),
    "different parameters":         (filled(b"".join(b";p%d=x" % n for n in range(1_900))), True),
    "parameters of other headers":  (filled(b"\r\nContent-Type: a/b" + b";" * 16_000), True),
    "pieces of a name":             (filled(b"".join(b"; filename*%d=x" % n for n in range(900))), True),
    "escapes":                      (filled(b"; filename*=utf-8''" + b"%41" * 5_000), True),
    "a charset that is a puzzle":   (filled(b"; filename*=punycode''" + b"a" * 15_000), True),
    "lines":                        (filled(b"\r\nX: y" * 2_600), True),
    "folded lines":                 (filled(b"\r\n y" * 4_000), True),
    "comments":                     (filled(b"(" * 16_000), False),
    "backslashes":                  (filled(b'; x="' + b"\\" * 16_000), False),
    "as many headers as may be":    (filled(b"\r\nX: y" * 62), False),
    "almost boundaries":            (form((D + b"x") * 130_000), False),
    "padded boundaries":            (form((D + b" " * 66) * 14_000), False),
    "almost boundaries in fields":  (fields(125, content=(D + b"x") * 1_000), False),
    "line ends":                    (form(b"\r\n" * 500_000), False),
    "an epilogue of boundaries":    (form(b"x") + D * 150_000, False),
}


@pytest.mark.parametrize("step", [1 << 20, 4096])
@pytest.mark.parametrize("case", COSTLY)
def test_no_form_of_a_mebibyte_costs_much_more_than_an_honest_one(honest, case, step):
    body, is_refused = COSTLY[case]
    assert len(body) < 1.1 * (1 << 20)
    taken, refusal = cost(body, step=step)
    assert bool(refusal) == is_refused, refusal
    assert not refusal or "send" in refusal     # which tells what to do
    assert taken < 25 * honest + 0.01


@pytest.mark.parametrize("body", [
    filled(b"\r\nX: " + b"y" * 16_000), filled(b"y" * 300), form((D + b" " * 60 + b"x") * 1000), form(D * 10_000)])
def test_a_form_in_drops_costs_what_its_drops_cost(body):
    drops = body[: 1 << 17]
    one, _ = cost(form(b"x" * len(drops)), step=1)
    assert cost(drops, step=1)[0] < 3 * one + 0.01


@pytest.mark.parametrize("rest", [";" * 63_000, ";x=\"" + ";" * 60_000, ";x=" + "x" * 2_000, "".join(
    f"; boundary*{n}=x" for n in range(3_000))])
def test_a_content_type_that_is_too_long_is_refused_before_it_is_read(honest, rest):
    taken, refusal = cost(form(b"x"), f"multipart/form-data; boundary={B}{rest}")
    assert "send multipart/form-data" in refusal
    assert taken < honest

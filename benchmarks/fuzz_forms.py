"""Coverage-guided fuzzing of the form cutter (pip install atheris): python benchmarks/fuzz_forms.py -max_total_time=60

For any body, cut anywhere, the events must be those of the body in one piece, the only exception must be BadRequest,
and the contents must be parts of what was sent.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports():
    from server.errors import BadRequest
    from server.multipart import FormCutter, Part, PartEnd

SEED = (b'--cut\r\nContent-Disposition: form-data; name="version"\r\n\r\n1\r\n--cut\r\n'
        b'Content-Disposition: form-data; name="file"; filename*=UTF-8\'\'%e2%82%ac\r\n'
        b"Content-Transfer-Encoding: binary\r\n\r\nabc\r\n--cu\r\n--cut--\r\n")


def cut(body: bytes, sizes: bytes) -> tuple[list[object], str]:
    """Cuts a body that arrives in blocks of these sizes; returns the parts with their contents, and the outcome."""
    parts: list[object] = []
    content, cutter, at = b"", FormCutter("multipart/form-data; boundary=cut"), 0
    blocks = []
    for size in sizes:
        blocks.append(body[at:at + size])
        at += size
    try:
        for block in (*blocks, body[at:], None):
            for event in cutter.finish() if block is None else cutter.feed(block):
                if isinstance(event, Part):
                    parts.append(event)
                    content = b""
                elif isinstance(event, PartEnd):
                    assert content in body, "the cutter made up a content"
                    parts.append(content)
                else:
                    assert len(event) > 0, "an empty block"
                    content += event
    except BadRequest as error:
        return parts, str(error)
    return parts, "whole"


def test_one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    sizes = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 8))
    body = provider.ConsumeBytes(provider.remaining_bytes())
    at_once, in_pieces = cut(body, b""), cut(body, sizes)
    # what was refused before its end may have been refused one part later, which nobody sees: nothing is stored
    assert (at_once == in_pieces) or "whole" not in (at_once[1], in_pieces[1]), (body, sizes, at_once, in_pieces)


if __name__ == "__main__":
    corpus = Path("corpus")
    corpus.mkdir(exist_ok=True)
    (corpus / "seed").write_bytes(SEED + b"\0\0\0\0\0")
    atheris.Setup([*sys.argv, str(corpus)], test_one_input)
    atheris.Fuzz()

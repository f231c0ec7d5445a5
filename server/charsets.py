"""What a client declares about its text: the charset of a field, encoded words. Bytes in, text out."""

import base64
import binascii
import re
from itertools import groupby

from server.errors import BadRequest

# What browsers (encoding.spec.whatwg.org) and .NET send: their name without punctuation, and Python's. Python itself
# knows more, some of which are not charsets; it remembers each name that it was asked for, and punycode takes quadratic
# time.
CHARSETS = {
    "utf8": "utf-8", "usascii": "ascii", "ascii": "ascii", "latin1": "iso8859-1", "latin9": "iso8859-15",
    **{f"iso8859{part}": f"iso8859-{part}" for part in range(1, 17) if part != 12},
    **{f"{name}{page}": f"cp{page}" for name in ("windows", "cp") for page in (874, *range(1250, 1259))},
    "ibm866": "cp866", "cp866": "cp866", "koi8r": "koi8-r", "koi8u": "koi8-u", "macintosh": "mac-roman",
    "gb2312": "gbk", "gbk": "gbk", "gb18030": "gb18030", "big5": "big5", "eucjp": "euc_jp", "shiftjis": "cp932",
    "sjis": "cp932", "windows31j": "cp932", "iso2022jp": "iso2022_jp", "euckr": "cp949", "ksc56011987": "cp949",
    **{f"utf{bits}{order}": f"utf-{bits}{order and '-'}{order}" for bits in (16, 32) for order in ("", "le", "be")},
}
ENCODED_WORD = re.compile(r"=\?([!->@-~]{1,40})\?([BbQq])\?([!->@-~]*)\?=")     # RFC 2047 2
WIDE = ("utf-16", "utf-32")     # headers cannot be written in these


def charset_of(declared: str) -> str:
    """Python's name of a charset that a client declares; raises BadRequest for one that is not known here."""
    known = CHARSETS.get(re.sub("[^a-z0-9]", "", declared[:100].lower()))
    if known is None:
        raise BadRequest(f"the form has text in the charset {declared[:50]!r}, which is not known here: send UTF-8")
    return known


def decoded(text: bytes, charset: str, what: str) -> str:
    """Decodes a text; raises BadRequest, which calls it `what`, if it is not in this charset."""
    try:
        return text.decode(charset)
    except UnicodeError as error:
        raise BadRequest(f"{what} is not {charset.upper()}: send it as UTF-8, or with its charset in its "
                         "Content-Type") from error


def header_text(block: bytes, charset: str | None) -> str:
    """The headers of a part: UTF-8, otherwise in the charset of the form, otherwise Latin-1, which never fails."""
    for candidate in ("utf-8", charset or "latin-1"):
        if not candidate.startswith(WIDE):
            try:
                return block.decode(candidate)
            except UnicodeError:
                continue
    return block.decode("latin-1")


def without_encoded_words(text: str) -> str:
    """The text of a value that consists of encoded words (RFC 2047), as .NET sends it; any other value as it is.

    Raises BadRequest for a charset that is not known.
    """
    words = [ENCODED_WORD.fullmatch(word) for word in text.split()]
    if not words or None in words:
        return text
    try:
        pairs = [(charset_of(word[1].partition("*")[0]), bytes_of(word[2], word[3])) for word in words if word]
        # a character may begin in one word and end in the next
        return "".join(b"".join(piece for _, piece in group).decode(charset)
                       for charset, group in groupby(pairs, lambda pair: pair[0]))
    except (binascii.Error, UnicodeError):
        return text


def bytes_of(encoding: str, text: str) -> bytes:
    if encoding in "Bb":
        return base64.b64decode(text, validate=True)
    return binascii.a2b_qp(text, header=True)

"""Validators, preconditions, ranges and media types (RFC 9110): pure functions of header values and sizes."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from repository.model import Model
from server.errors import BadRequest, PreconditionFailed, RangeNotSatisfiable

Header = Callable[[str], str | None]    # a request's header by name
ENTITY_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')     # RFC 9110 8.8.3
ENTITY_TAGS = re.compile(rf"[ \t,]*(?:{ENTITY_TAG.pattern}[ \t]*(?:,[ \t,]*|\Z))+")     # 5.6.1: one at least
BYTE_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)     # RFC 9110 14.1.2, one range of it
TOKEN = r"[\w!#$%&'*+.^`|~-]+"
MEDIA_RANGE = re.compile(rf"({TOKEN}/{TOKEN})((?:[ \t]*;[ \t]*{TOKEN}=(?:{TOKEN}|\"[^\"]*\"))*)", re.ASCII)
QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")   # RFC 9110 12.4.2
PRECONDITIONS = ("If-Match", "If-None-Match", "If-Unmodified-Since")    # on which a change may depend
SECOND = 10**9      # ns, the resolution of an HTTP date
MAX_DIGITS = 18     # of a position: 10**18 bytes is beyond every file, int() of 5,000 digits raises


# ---- validators


def etag_of(model: Model) -> str:
    """The digest of the bytes, if it is known; otherwise weak, made of what the file system knows of the file."""
    if model.sha256 and not model.corrupt:
        return f'"{model.sha256}"'
    return f'W/"{model.size:x}-{model.mtime_ns:x}-{model.inode:x}"'


def etag_of_info(model: Model) -> str:
    """The ETag of the info of a model."""
    return f'"info-{model.fingerprint}"'


def last_modified(model: Model, now_ns: int) -> datetime | None:
    """When a model was modified, rounded up to the second; None while that would not be a reliable validator.

    RFC 9110 8.8.2.1: it must not lie in the future. 8.8.2.2: in the second of its upload, a model may be replaced
    again. So of the models that have a name one after the other, no two have the same date.
    """
    if not 0 <= model.mtime_ns <= now_ns - SECOND:
        return None
    return datetime.fromtimestamp(-(-model.mtime_ns // SECOND), UTC)


def matches(header: str, etag: str | None, weak: bool) -> bool:
    """Whether a list of entity tags, or *, matches this one (None: nothing is there). RFC 9110 8.8.3.2, 13.1.

    A malformed list matches nothing.
    """
    if header.strip() == "*":
        return etag is not None
    if etag is None or (not weak and etag.startswith("W/")) or not ENTITY_TAGS.fullmatch(header):
        return False
    opaque = etag.removeprefix("W/")
    return any(tag == opaque and (weak or not prefix) for prefix, tag in ENTITY_TAG.findall(header))


def date_of(header: str | None) -> datetime | None:
    """An HTTP date; None for anything else, which is ignored (RFC 9110 13.1.3)."""
    if header is None:
        return None
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def has_condition(header: Header) -> bool:
    """Whether a change depends on what is there; an empty If-Match counts, too, and is never fulfilled."""
    return any(header(name) is not None for name in PRECONDITIONS)


def check_write(header: Header, *etags: str) -> None:
    """Raises PreconditionFailed when a change of what has these entity tags (none: it is missing) is not wanted.

    An If-None-Match that cannot be understood would forbid nothing: it raises BadRequest.
    """
    wanted, unwanted = header("If-Match"), header("If-None-Match")
    current = etags or (None,)
    if unwanted is not None and unwanted.strip() != "*" and not ENTITY_TAGS.fullmatch(unwanted):
        raise BadRequest(f"If-None-Match is {unwanted!r:.200}: it takes * or entity tags, which are in quotes")
    if wanted is not None and not any(matches(wanted, etag, weak=False) for etag in current):
        have = "something else" if etags else "nothing"     # not its digest: a token without `read` may write here
        raise PreconditionFailed(f"If-Match asks for {wanted[:200]} and there is {have}: look again, then decide")
    if unwanted is not None and any(matches(unwanted, etag, weak=True) for etag in current):
        raise PreconditionFailed("it exists already, and If-None-Match forbids replacing it")


def check_change(header: Header, model: Model | None, *more: str) -> None:
    """check_write() for a model (None: it is missing), which has a date, and may have `more` entity tags."""
    check_write(header, *((etag_of(model), *more) if model else ()))
    limit = None if header("If-Match") is not None else date_of(header("If-Unmodified-Since"))   # RFC 9110 13.2.2
    if model and limit and model.mtime_ns > limit.timestamp() * SECOND:
        raise PreconditionFailed("it was modified after the date of If-Unmodified-Since: look again, then decide")


def read_status(header: Header, etag: str, modified: datetime | None) -> int:
    """200, 304 or 412 for a GET or HEAD, in the order of RFC 9110 13.2.2; without `modified`, dates are ignored.

    RFC 9110 13.1.3 answers 304 for any later date in If-Modified-Since, too. Here it must be the exact one: an older
    model comes back when a newer one is deleted, or a backup restored.
    """
    wanted, unwanted = header("If-Match"), header("If-None-Match")
    if wanted is not None:
        if not matches(wanted, etag, weak=False):
            return 412
    elif modified and (limit := date_of(header("If-Unmodified-Since"))) and modified > limit:
        return 412
    if unwanted is not None:
        return 304 if matches(unwanted, etag, weak=True) else 200
    if modified and modified == date_of(header("If-Modified-Since")):
        return 304
    return 200


def but_if_match(header: Header, etag: str | None) -> Header:
    """The headers of a request, without its If-Match if that matches this entity tag."""
    if (wanted := header("If-Match")) is None or not matches(wanted, etag, weak=False):
        return header
    return lambda name: None if name == "If-Match" else header(name)


def tells_date(header: Header, modified: datetime | None) -> bool:
    """Whether an answer may have Last-Modified: not if the client has a later date.

    wget -N compares the dates itself when it gets 200, and keeps its file if that has the same size.
    """
    since = date_of(header("If-Modified-Since"))
    return modified is not None and not (since and since > modified)


# ---- ranges


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The half-open range of `size` bytes that a Range header asks for; None to send all. Raises RangeNotSatisfiable.

    RFC 9110 14.1.2: an over-long end is cut at the end, an over-long suffix means everything, bad syntax is ignored;
    14.2: several ranges may be ignored too.
    """
    found = BYTE_RANGE.fullmatch(header.strip())
    if not found or found[1] == found[2] == "":
        return None
    first, last = (int(digits[-MAX_DIGITS:]) if not digits[:-MAX_DIGITS].strip("0") else 10**MAX_DIGITS
                   for digits in (found[1] or "0", found[2] or "0"))
    if not found[1]:
        if last == 0:
            raise RangeNotSatisfiable(size)
        return (max(0, size - last), size) if size else None
    if found[2] and last < first:
        return None
    if first >= size:
        raise RangeNotSatisfiable(size)
    return first, min(last + 1, size) if found[2] else size


def range_holds(header: Header, etag: str, modified: datetime | None) -> bool:
    """Whether If-Range, if there is one, matches what is there. RFC 9110 13.1.5: strong comparison, exact date."""
    condition = header("If-Range")
    if condition is None:
        return True
    if condition.lstrip().startswith(('"', "W/")):
        return condition.strip() == etag and not etag.startswith("W/")
    return modified is not None and date_of(condition) == modified


# ---- media types


def asks_for(media: str, accept: str) -> bool:
    """Whether an Accept header names this type, and no other one with a higher weight; RFC 9110 12.5.1.

    Wildcards do not count: curl, wget and most libraries send */*. A header with a malformed part is ignored, like that
    of Java's HttpURLConnection, `text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2`, which no browser sends.
    """
    named = dict[str, float]()
    for part in filter(None, map(str.strip, accept.split(","))):     # RFC 9110 5.6.1: empty elements are ignored
        found = MEDIA_RANGE.fullmatch(part)
        weight = re.search(r";[ \t]*q=([^;\s]*)", found[2], re.IGNORECASE) if found else None
        if not found or (weight and not QUALITY.fullmatch(weight[1])):
            return False
        named[found[1].lower()] = float(weight[1]) if weight else 1.0
    return named.get(media, 0.0) > 0 and named[media] == max(named.values())

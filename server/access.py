"""Access control: the file of tokens, the caller of a request, and what a caller may do. No sockets, no models."""

import base64
import codecs
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from repository import metadata
from repository.errors import InvalidName
from repository.filesystem import stamp_of
from repository.model import NAME, NAME_FIELDS, Names, Stamp, check_name
from server.errors import HttpError

log = logging.getLogger("model_server.access")
VERBS = ("read", "create", "update", "delete")
ANONYMOUS = "anonymous"     # the name of callers without a token; no token can have it
TOKEN_PREFIX = "amr_"       # so that people and scanners recognise a token that they find in a file
TOKEN_BYTES = 32            # random bytes: too many to be guessed from a plain SHA-256
MAX_TOKENS_FILE = 1 << 20   # bytes: some ten thousand tokens, with each of which every request is compared
MAX_LOGGED_GRANTS = 20      # in the log line at startup
CREDENTIALS = re.compile("(bearer|basic) +([!-~]+)", re.IGNORECASE)    # RFC 9110 11.4


class Refused(HttpError):
    """The caller lacks the permission `verb` for what has these `names`."""

    def __init__(self, detail: str, verb: str, names: Names) -> None:
        super().__init__(detail)
        self.verb, self.names = verb, names


class Unauthorized(Refused):
    """The caller has no token, or an unknown one."""

    status = 401
    # both: Bearer tokens are sent unasked, and curl and wget answer only a challenge for Basic
    headers = (("WWW-Authenticate", 'Bearer realm="models"'), ("WWW-Authenticate", 'Basic realm="models"'))


class Forbidden(Refused):
    """The caller's token lacks the permission."""

    status = 403


@dataclass(frozen=True)
class Grant:
    """Allows `verbs` for everything at or below `place`: (), (project,) or (project, app)."""

    verbs: frozenset[str]
    place: Names = ()

    def __str__(self) -> str:
        return f"{','.join(verb for verb in VERBS if verb in self.verbs)} {'/'.join(self.place) or '*'}"


@dataclass(frozen=True)
class Caller:
    """The sender of a request: the name of their token, and what it allows."""

    name: str = ANONYMOUS
    grants: tuple[Grant, ...] = ()

    @property
    def has_token(self) -> bool:
        """Whether the caller sent a token."""
        return self.name != ANONYMOUS

    def may(self, verb: str, names: Names) -> bool:
        """Whether `verb` is allowed for everything at or below these names."""
        return any(verb in grant.verbs and names[: len(grant.place)] == grant.place for grant in self.grants)

    def places(self, verb: str, names: Names) -> list[Names]:
        """The places at or below these names where `verb` is allowed, in order; none is inside another."""
        if self.may(verb, names):
            return [names]
        granted = {g.place for g in self.grants if verb in g.verbs and g.place[: len(names)] == names}
        return sorted(place for place in granted if place[:-1] not in granted)

    def check(self, verb: str, names: Names, *, partly: bool = False) -> None:
        """Raises Refused unless `verb` is allowed for all below these names or, if `partly`, for some of it."""
        if self.places(verb, names) if partly else self.may(verb, names):
            return
        where = "/".join(names) or ("anything" if partly else "everything")
        if not self.has_token:
            raise Unauthorized(f"a token is needed to {verb} {where}: send it as the password, with any user name, or "
                               "as Authorization: Bearer", verb, names)
        raise Forbidden(f"the token {self.name} has no permission to {verb} {where}: use one that has it", verb, names)


GRANTS_OF_ANONYMOUS = {"all": (Grant(frozenset(VERBS)),), "read": (Grant(frozenset({"read"})),), "none": ()}
EVERYBODY = Caller(grants=GRANTS_OF_ANONYMOUS["all"])


# ---- the file of tokens


def parse_tokens(text: str) -> dict[str, Caller]:
    """The callers in a file of tokens, by the SHA-256 of their token in hex. Each line is name:sha256:verbs:prefix.

    A token on several lines is granted what each of them says; one name can have several tokens. Raises ValueError with
    the number of the bad line, but without its content.
    """
    callers: dict[str, Caller] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            digest, new = parse_line(line)
            caller = callers.setdefault(digest, Caller(new.name))
            if caller.name != new.name:
                raise ValueError("another line has this token under another name")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        callers[digest] = replace(caller, grants=caller.grants + new.grants)
    return callers


def read_tokens(path: Path) -> bytes:
    """The contents of the file of tokens. Raises OSError, and ValueError if it is too long or not a regular file.

    Reading a fifo without a writer would block forever, and a device can be endless.
    """
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        text = file.read(MAX_TOKENS_FILE + 1)
    if len(text) > MAX_TOKENS_FILE:
        raise ValueError(f"it is longer than {MAX_TOKENS_FILE} bytes")
    return text


def text_of(written: bytes) -> str:
    """The text of a file of tokens, without the mark with which some editors begin it; raises ValueError for UTF-16."""
    if written.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written in UTF-16: save it as UTF-8")
    return written.removeprefix(codecs.BOM_UTF8).decode(errors="replace")


def parse_line(line: str) -> tuple[str, Caller]:
    """The SHA-256 and the caller in one line; raises ValueError."""
    fields = line.split(":")
    if len(fields) != 4:
        raise ValueError("it is not name:sha256:verbs:prefix")
    name, digest, verbs, prefix = fields
    if not NAME.fullmatch(name) or name == ANONYMOUS:
        raise ValueError(f"the name must be 1 to 128 of A-Z a-z 0-9 . _ + - and not {ANONYMOUS}")
    if not metadata.SHA256.fullmatch(digest):
        raise ValueError("the second field must be the SHA-256 of the token, 64 hex digits")
    if not set(verbs.split(",")) <= set(VERBS):
        raise ValueError(f"the verbs must be of {','.join(VERBS)}, with commas between them")
    return digest, Caller(name, (Grant(frozenset(verbs.split(",")), place_of(prefix)),))


def place_of(prefix: str) -> Names:
    """The names in the prefix of a line, () for `*`; raises ValueError."""
    if prefix == "*":
        return ()
    names = tuple(prefix.split("/"))
    try:
        for name, name_field in zip(names, NAME_FIELDS[:2], strict=len(names) > 2):
            check_name(name_field, name)
    except (InvalidName, ValueError):
        raise ValueError("the prefix must be a project, project/app, or * for everything") from None
    return names


def new_token(name: str, verbs: str, prefix: str) -> tuple[str, str]:
    """A new token, and its line for the file of tokens; raises ValueError."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    line = f"{name}:{hashlib.sha256(token.encode()).hexdigest()}:{verbs}:{prefix}"
    parse_line(line)
    return token, line


# ---- who sent a request


def token_in(authorization: str) -> bytes | None:
    """The token in an Authorization header: that of Bearer, or the password of Basic; None if it is malformed."""
    credentials = CREDENTIALS.fullmatch(authorization.strip())
    if not credentials:
        return None
    if credentials[1].lower() == "bearer":
        return credentials[2].encode()
    try:
        return base64.b64decode(credentials[2], validate=True).partition(b":")[2]     # RFC 7617 2
    except ValueError:
        return None


class Guard:
    """Finds the caller of a request. Reads the file of tokens when it changes; keeps the old tokens if it is bad.

    `anonymous` is all, read or none. Raises ValueError if the file is bad at startup, or nobody could do anything.
    """

    def __init__(self, path: Path | None, anonymous: str) -> None:
        self._path, self._setting = path, anonymous
        self._anonymous = Caller(grants=GRANTS_OF_ANONYMOUS[anonymous])
        self._lock = threading.Lock()
        self._complaint = ""    # why the file could not be read the last time
        self._stamp = self._current_stamp()
        self._callers = self._read()
        if not self._callers and anonymous == "none":
            raise ValueError("nobody may do anything: MODEL_ANONYMOUS is none, and no line of MODEL_TOKENS_FILE "
                             f"({path or 'not set'}) has a token")

    def __str__(self) -> str:
        """A summary of who may do what, for the log."""
        grants = [f"{caller.name} {grant}" for caller in self._callers.values() for grant in caller.grants]
        more = [f"{len(grants) - MAX_LOGGED_GRANTS} more"] if len(grants) > MAX_LOGGED_GRANTS else []
        return ", ".join([f"anonymous {self._setting}", *grants[:MAX_LOGGED_GRANTS], *more])

    def caller(self, authorization: str | None, verb: str, names: Names) -> Caller:
        """The caller who sent this Authorization header; raises Unauthorized, which keeps the verb and names."""
        self._keep_up()
        if authorization is None:
            return self._anonymous
        token = token_in(authorization)
        if token is None:
            raise Unauthorized("the Authorization header cannot be read: send Bearer and the token, or Basic with the "
                               "token as the password", verb, names)
        sent, holder = hashlib.sha256(token).hexdigest(), None
        for digest, caller in self._callers.items():    # always all of them, so that the time taken reveals nothing
            if hmac.compare_digest(digest, sent):
                holder = caller
        if holder is None:
            raise Unauthorized("this token is unknown: it was mistyped, or has been withdrawn", verb, names)
        # a token never takes away what is permitted without it
        return replace(holder, grants=holder.grants + self._anonymous.grants) if self._anonymous.grants else holder

    def _keep_up(self) -> None:
        """Reads the file again if it has changed."""
        if self._current_stamp() == self._stamp:
            return
        with self._lock:
            stamp = self._current_stamp()
            if stamp == self._stamp:
                return      # another thread has read it
            self._stamp = stamp
            try:
                self._callers, self._complaint = self._read(), ""
                log.info("the tokens have changed: %s", self)
            except ValueError as error:
                if str(error) != self._complaint:   # once: a fifo or a device changes with each byte
                    log.error("the tokens stay as they were: %s", error)
                self._complaint = str(error)

    def _current_stamp(self) -> Stamp | None:
        try:
            return stamp_of(os.stat(self._path)) if self._path else None
        except OSError:
            return None     # reading the file will raise the error

    def _read(self) -> dict[str, Caller]:
        """The callers in the file; raises ValueError with its path, and with what to do."""
        try:
            return parse_tokens(text_of(read_tokens(self._path)) if self._path else "")
        except OSError as error:
            advice = ("it contains no secrets, so let that user read it" if isinstance(error, PermissionError) else
                      "set it to a file with lines of 'python model_server.py token'")
            raise ValueError(f"MODEL_TOKENS_FILE {self._path} cannot be read as uid {os.geteuid()} "
                             f"({error.strerror}): {advice}") from error
        except ValueError as error:
            raise ValueError(f"MODEL_TOKENS_FILE {self._path}, {error}") from None


def anonymous_of(path: Path | None, anonymous: str | None) -> str:
    """What callers without a token may do under these settings: all, read or none."""
    return anonymous or ("none" if path else "all")


def guard_of(path: Path | None, anonymous: str | None) -> Guard | None:
    """The guard for these settings; None if everybody may do everything. Raises ValueError."""
    anonymous = anonymous_of(path, anonymous)
    return None if path is None and anonymous == "all" else Guard(path, anonymous)

"""Who may do what: the file of tokens, who sent a request, and what they may do. No sockets, no models."""

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
from repository.model import NAME, NAME_FIELDS, check_name
from server.errors import HttpError

log = logging.getLogger("model_server.access")
Names = tuple[str, ...]
VERBS = ("read", "create", "update", "delete")
ANONYMOUS = "anonymous"     # who sends no token; no token may be called this
TOKEN_PREFIX = "amr_"       # so that who finds one in a file, a person or a scanner, knows what it is
TOKEN_BYTES = 32            # that many random ones cannot be guessed, so a plain SHA-256 keeps them secret
MAX_TOKENS_FILE = 1 << 20   # bytes: some ten thousand tokens, and each request is compared with all of them
MAX_SHOWN = 20              # of the tokens that the line at start tells of
CREDENTIALS = re.compile("(bearer|basic) +([!-~]+)", re.IGNORECASE)    # RFC 9110 11.4


class Refused(HttpError):
    """The caller may not do `verb` to what has these `names`."""

    def __init__(self, detail: str, verb: str, names: Names) -> None:
        super().__init__(detail)
        self.verb, self.names = verb, names


class Unauthorized(Refused):
    """It is not known who asks."""

    status = 401
    # both: who has a token for Bearer sends it unasked, curl and wget answer to Basic alone
    headers = (("WWW-Authenticate", 'Bearer realm="models"'), ("WWW-Authenticate", 'Basic realm="models"'))


class Forbidden(Refused):
    """It is known who asks, and they lack the right."""

    status = 403


@dataclass(frozen=True)
class Grant:
    """`verbs` are allowed for all that is at or below `place`: (), (project,) or (project, app)."""

    verbs: frozenset[str]
    place: Names = ()

    def __str__(self) -> str:
        return f"{','.join(verb for verb in VERBS if verb in self.verbs)} {'/'.join(self.place) or '*'}"


@dataclass(frozen=True)
class Caller:
    """Who sent a request, by the name of their token."""

    name: str = ANONYMOUS
    grants: tuple[Grant, ...] = ()

    @property
    def known(self) -> bool:
        return self.name != ANONYMOUS

    def may(self, verb: str, names: Names) -> bool:
        """Whether `verb` is allowed for all that is at or below these names."""
        return any(verb in grant.verbs and names[: len(grant.place)] == grant.place for grant in self.grants)

    def places(self, verb: str, names: Names) -> list[Names]:
        """Where at or below these names `verb` is allowed: in the order of a list, none within another."""
        if self.may(verb, names):
            return [names]
        found = {g.place for g in self.grants if verb in g.verbs and g.place[: len(names)] == names}
        return sorted(place for place in found if place[:-1] not in found)

    def check(self, verb: str, names: Names, *, partly: bool = False) -> None:
        """Raises Refused unless `verb` is allowed there; `partly` is content with some of what is below."""
        if self.places(verb, names) if partly else self.may(verb, names):
            return
        where = "/".join(names) or ("anything" if partly else "everything")
        if not self.known:
            raise Unauthorized(f"to {verb} {where} takes a token: send it as the password, with any user name, or as "
                               "Authorization: Bearer", verb, names)
        raise Forbidden(f"the token {self.name} has no right to {verb} {where}: use one that has", verb, names)


GRANTS_OF_ANONYMOUS = {"all": (Grant(frozenset(VERBS)),), "read": (Grant(frozenset({"read"})),), "none": ()}
EVERYBODY = Caller(grants=GRANTS_OF_ANONYMOUS["all"])


# ---- the file of tokens


def parse_tokens(text: str) -> dict[str, Caller]:
    """The callers that a file of tokens tells of, by the SHA-256 of their token; raises ValueError, with no content.

    Each line is name:sha256:verbs:prefix. A token on several lines may do what each of them says, and a name may have
    several tokens.
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
    """What is in the file of tokens. Raises OSError, and ValueError when it is not a regular file or too long.

    A fifo without a writer would keep its reader for ever, and a device may have no end.
    """
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        text = file.read(MAX_TOKENS_FILE + 1)
    if len(text) > MAX_TOKENS_FILE:
        raise ValueError(f"it is longer than {MAX_TOKENS_FILE} bytes")
    return text


def text_of(written: bytes) -> str:
    """The text of a file of tokens, which editors of Windows begin with a mark; raises ValueError for UTF-16."""
    if written.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written in UTF-16: save it as UTF-8")
    return written.removeprefix(codecs.BOM_UTF8).decode(errors="replace")


def parse_line(line: str) -> tuple[str, Caller]:
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
    """A token that nobody had before, and its line for the file of tokens; raises ValueError."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    line = f"{name}:{hashlib.sha256(token.encode()).hexdigest()}:{verbs}:{prefix}"
    parse_line(line)
    return token, line


# ---- who sent a request


def token_in(authorization: str) -> bytes | None:
    """The token in an Authorization header: that of Bearer, the password of Basic; None when it cannot be read."""
    found = CREDENTIALS.fullmatch(authorization.strip())
    if not found:
        return None
    if found[1].lower() == "bearer":
        return found[2].encode()
    try:
        return base64.b64decode(found[2], validate=True).partition(b":")[2]     # RFC 7617 2
    except ValueError:
        return None


class Guard:
    """Tells who sent a request. Reads the file of tokens again when it changes, and keeps to the old one if it is bad.

    `anonymous` is all, read or none. Raises ValueError when it cannot begin.
    """

    def __init__(self, path: Path | None, anonymous: str) -> None:
        self._path, self._setting = path, anonymous
        self._anonymous = Caller(grants=GRANTS_OF_ANONYMOUS[anonymous])
        self._lock = threading.Lock()
        self._complaint = ""    # why the file could not be read the last time
        self._stamp = self._look()
        self._callers = self._read()
        if not self._callers and anonymous == "none":
            raise ValueError("nobody may do anything: MODEL_ANONYMOUS is none, and no line of MODEL_TOKENS_FILE "
                             f"({path or 'not set'}) has a token")

    def __str__(self) -> str:
        """Who may do what, in short."""
        told = [f"{caller.name} {grant}" for caller in self._callers.values() for grant in caller.grants]
        more = [f"{len(told) - MAX_SHOWN} more"] if len(told) > MAX_SHOWN else []
        return ", ".join([f"anonymous {self._setting}", *told[:MAX_SHOWN], *more])

    def caller(self, authorization: str | None, verb: str, names: Names) -> Caller:
        """Who sent this header and wants to do that; raises Unauthorized for what is no token of ours."""
        self._keep_up()
        if authorization is None:
            return self._anonymous
        token = token_in(authorization)
        if token is None:
            raise Unauthorized("the Authorization header cannot be read: send Bearer and the token, or Basic with the "
                               "token as the password", verb, names)
        digest, found = hashlib.sha256(token).hexdigest(), None
        for known, caller in self._callers.items():     # all of them, so that the time it takes tells nothing
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Unauthorized("the token is not known here: it is mistyped, or was taken back", verb, names)
        # a token takes away nothing that its holder may do without it
        return replace(found, grants=found.grants + self._anonymous.grants) if self._anonymous.grants else found

    def _keep_up(self) -> None:
        if self._look() == self._stamp:
            return
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return      # another thread was here
            self._stamp = stamp
            try:
                self._callers, self._complaint = self._read(), ""
                log.info("the tokens have changed: %s", self)
            except ValueError as error:
                if str(error) != self._complaint:   # a fifo or a device changes with each byte that passes it
                    log.error("the tokens stay as they were: %s", error)
                self._complaint = str(error)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path) if self._path else None
        except OSError:
            return None     # reading it will tell why
        return status and (status.st_ino, status.st_size, status.st_mtime_ns)

    def _read(self) -> dict[str, Caller]:
        try:
            return parse_tokens(text_of(read_tokens(self._path)) if self._path else "")
        except OSError as error:
            raise ValueError(f"MODEL_TOKENS_FILE {self._path} cannot be read as uid {os.geteuid()} "
                             f"({error.strerror}): it holds no secrets, so let that user read it") from error
        except ValueError as error:
            raise ValueError(f"MODEL_TOKENS_FILE {self._path}, {error}") from None


def guard_of(path: Path | None, anonymous: str | None) -> Guard | None:
    """The guard that these settings ask for; None when everybody may do everything. Raises ValueError."""
    anonymous = anonymous or ("none" if path else "all")
    return None if path is None and anonymous == "all" else Guard(path, anonymous)

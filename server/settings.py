"""Everything that can be set, read from environment variables in one place."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path

from server.forwarded import Network

VERSION = "1.0.0"     # of the server: CHANGELOG.md and the Dockerfile have it too, and a test compares them
SIZE = re.compile(r"([0-9]{1,18})([KMGT]?)", re.IGNORECASE)
DURATION = re.compile(r"([0-9]{1,6})([smhd]?)", re.IGNORECASE)
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
NAME_OF_HOST = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]+\])(:[0-9]{0,5})?")   # RFC 3986 3.2.2, 3.2.3
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
NAMES = ("MODEL_STORAGE_PATH", "SERVER_HOST", "SERVER_PORT", "SERVER_THREADS", "MODEL_MAX_SIZE", "MODEL_OVERWRITE",
         "MODEL_UPLOAD_AGE", "MODEL_TOKENS_FILE", "MODEL_ANONYMOUS", "MODEL_VERIFY_RATE", "MODEL_ALLOWED_FORMATS",
         "MODEL_PICKLE", "MODEL_ALLOWED_ORIGINS", "MODEL_ALLOWED_HOSTS", "SERVER_IDLE_SECONDS", "SERVER_GRACE_SECONDS",
         "TRUSTED_PROXY", "URL_PREFIX")
ALIKE = 0.85    # difflib's ratio: a letter or two may differ, but SERVER_PORT_80_TCP of Kubernetes is not meant


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, from environment variables; `max_size` is in bytes, None for no limit."""

    storage_path: Path | None = None    # None: /app/models as in the container, otherwise ./models
    host: str = ""              # empty: all addresses of the machine, of both families
    port: int = 8000
    threads: int = 8
    idle_seconds: int = 120     # of silence after which a connection is closed, and for the head of a request
    grace_seconds: int = 10     # for running requests after SIGTERM; docker stop waits 10
    max_size: int | None = None
    upload_age: int = 24 * 3600     # seconds without a byte after which an unfinished upload is removed
    verify_rate: int = 100 << 20    # bytes a second: a fifth of a core, and most disks have as many left
    trusted_proxy: tuple[Network, ...] = ()     # from which X-Forwarded-For, -Proto and -Host are believed
    url_prefix: str = ""        # the path below which a proxy has this server
    overwrite: bool = True
    tokens_file: Path | None = None
    anonymous: str | None = None    # all, read or none; None: none where there is a tokens file, else all
    allowed_formats: frozenset[str] = frozenset()   # empty: any
    allowed_origins: frozenset[str] = frozenset()   # of web pages that may use this server, beside its own
    allowed_hosts: frozenset[str] = frozenset()     # by which clients may address this server; empty: any
    pickle: str = "allow"       # or known, deny: see inspection.room

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Raises ValueError with a line that says what is wrong."""
        path = env.get("MODEL_STORAGE_PATH")
        anonymous, tokens = env.get("MODEL_ANONYMOUS") or None, env.get("MODEL_TOKENS_FILE")
        if anonymous not in (None, "all", "read", "none"):
            raise ValueError(f"MODEL_ANONYMOUS is {anonymous!r}: set it to all, read or none")
        return cls(
            storage_path=Path(path) if path else None,
            host=env.get("SERVER_HOST") or "",
            port=port_of(env),
            threads=whole_number(env, "SERVER_THREADS", 8, 1, 256),
            idle_seconds=whole_number(env, "SERVER_IDLE_SECONDS", 120, 1, 86400),
            grace_seconds=whole_number(env, "SERVER_GRACE_SECONDS", 10, 0, 3600),
            max_size=size_of(env, "MODEL_MAX_SIZE"),
            upload_age=duration(env, "MODEL_UPLOAD_AGE") or cls.upload_age,
            verify_rate=size_of(env, "MODEL_VERIFY_RATE") or cls.verify_rate,
            trusted_proxy=networks_of(env.get("TRUSTED_PROXY", "")),
            url_prefix=prefix_of(env.get("URL_PREFIX", "")),
            overwrite=one_of(env, "MODEL_OVERWRITE", "allow", "deny") == "allow",
            tokens_file=Path(tokens) if tokens else None,
            anonymous=anonymous,
            allowed_formats=words_of(env.get("MODEL_ALLOWED_FORMATS", "")),
            allowed_origins=frozenset(map(plain_origin, matching(
                env, "MODEL_ALLOWED_ORIGINS", ORIGIN, "origins like https://example.org"))),
            allowed_hosts=matching(env, "MODEL_ALLOWED_HOSTS", NAME_OF_HOST,
                                   "host names like models.example.org or [::1]"),
            pickle=one_of(env, "MODEL_PICKLE", "allow", "known", "deny"),
        )


def misspelt(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables that are not settings but look like one, such as MODEL_TOKEN_FILE, each with that setting."""
    return [(name, alike[0]) for name in env if name not in NAMES
            and (alike := get_close_matches(name, NAMES, 1, ALIKE)) and not env.get(alike[0])]


def one_of(env: Mapping[str, str], name: str, *values: str) -> str:
    """The first of `values` when it is not set."""
    value = env.get(name) or values[0]
    if value not in values:
        raise ValueError(f"{name} is {value!r}: set it to {', '.join(values[:-1])} or {values[-1]}")
    return value


def words_of(text: str) -> frozenset[str]:
    """The words between commas; the room that uses them checks them."""
    return frozenset(word.strip() for word in text.split(",")) if text else frozenset()


def matching(env: Mapping[str, str], name: str, pattern: re.Pattern[str], kind: str) -> frozenset[str]:
    """The words between commas, in lower case; raises ValueError for one that is not of this pattern."""
    words = words_of(env.get(name, "").lower())
    for word in words:
        if not pattern.fullmatch(word):
            raise ValueError(f"{name} has {word!r} in it: set it to {kind}, with commas between them")
    return words


def plain_origin(origin: str) -> str:
    """An origin as browsers write it: in lower case, without the port that its scheme has anyway (RFC 6454 6.2)."""
    origin = origin.strip().lower()
    return origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], ""))


def whole_number(env: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = env.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise ValueError(f"{name} is {text!r}: set it to a whole number from {least} to {most}")
    return int(text)


def size_of(env: Mapping[str, str], name: str) -> int | None:
    """Bytes of 1000, 500M or 20G, in powers of 1024; None for nothing. Raises ValueError."""
    if not (text := env.get(name, "")):
        return None
    found = SIZE.fullmatch(text)
    if not found or int(found[1]) == 0:
        raise ValueError(f"{name} is {text!r}: set it to bytes, or to a number with K, M, G or T")
    return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")


def duration(env: Mapping[str, str], name: str) -> int | None:
    """Seconds of 90, 30m, 24h or 7d; None for nothing. Raises ValueError."""
    if not (text := env.get(name, "")):
        return None
    found = DURATION.fullmatch(text)
    if not found or int(found[1]) == 0:
        raise ValueError(f"{name} is {text!r}: set it to seconds, or to a number with m, h or d")
    return int(found[1]) * SECONDS[found[2].lower()]


def networks_of(text: str) -> tuple[Network, ...]:
    """The addresses and networks between commas."""
    try:
        return tuple(ip_network(word.strip()) for word in text.split(",")) if text else ()
    except ValueError as error:
        raise ValueError(f"TRUSTED_PROXY is {text!r}: set it to the IP address of the proxy, or to several addresses "
                         f"and networks, like 10.42.0.0/16, 127.0.0.1 ({error})") from None


def port_of(env: Mapping[str, str]) -> int:
    if (text := env.get("SERVER_PORT", "")).startswith("tcp://"):
        raise ValueError(f"SERVER_PORT is {text!r}: Kubernetes puts that into every container for a Service named "
                         "'server'; set enableServiceLinks: false for the pod, or SERVER_PORT to a port")
    return whole_number(env, "SERVER_PORT", 8000, 0, 65535)


def prefix_of(text: str) -> str:
    if not PREFIX.fullmatch(text):
        raise ValueError(f"URL_PREFIX is {text!r}: set it to a path like /models-eu")
    return text.rstrip("/")

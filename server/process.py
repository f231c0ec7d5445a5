"""The process: its memory, its descriptors, and where its storage is."""

import ctypes
import logging
import os
import resource
import shlex
import sys
from pathlib import Path
from typing import Any

from repository.errors import Obstructed, StorageFull, StoreError
from storage import Storage

log = logging.getLogger("model_server")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8     # constants of malloc.h
CONNECTIONS = 4096          # open at once
EACH = 4                    # descriptors of a connection: those of an upload that can be continued
OTHERS = 64                 # for all else, such as storing what has come, which eight threads do at once


def tune() -> None:
    """Sets up threads and memory; the values were measured with uploads of 512 MiB."""
    # seconds; a thread with a block to write must not wait 5 ms for one that parses a request
    sys.setswitchinterval(0.0005)
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:     # glibc: use the memory of one block for the next, and few arenas
        for option, value in ((M_TRIM_THRESHOLD, 16 << 20), (M_MMAP_THRESHOLD, 32 << 20), (M_ARENA_MAX, 2)):
            mallopt(option, value)


def open_storage(path: Path | None) -> Storage:
    """The storage at `path`; without one, at /app/models or else ./models. SystemExit says what to do if it fails."""
    if path is None:
        path = Path("/app/models")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.info("no container, no /app/models (%s): the models go to ./models", error.strerror)
            path = Path("models")
    try:
        return Storage(path.absolute())
    except (Obstructed, StorageFull) as error:
        raise SystemExit(f"model_server: {error}") from error
    except StoreError as error:
        uid, gid, quoted = os.getuid(), os.getgid(), shlex.quote(str(path))
        raise SystemExit(f"model_server: cannot write to {path} as uid {uid}, gid {gid} ({error.__cause__}). " + (
            f"To correct this: mkdir -p {quoted} && chown -R {uid}:{gid} {quoted}; that user must be able to enter the "
            "directories above it, too" if isinstance(error.__cause__, PermissionError) else
            "MODEL_STORAGE_PATH has to be a directory that can be written, or the path of a new one")) from error


def raise_descriptor_limit() -> int:
    """Raises the limit of descriptors as far as needed and permitted; returns how many connections it is enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = EACH * CONNECTIONS + OTHERS
    wanted = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    connections = max(OTHERS // EACH, (wanted - OTHERS) // EACH)     # with so few files, all else has to do with less
    if wanted < needed:
        log.warning("only %d connections at once, as this process may open no more than %d files: raise that limit to "
                    "%d (ulimit -Hn, LimitNOFILE=, --ulimit nofile=)", connections, wanted, needed)
    return connections

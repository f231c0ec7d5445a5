"""Settings of the process: memory, descriptors, where the storage is."""

import ctypes
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Any

from repository.errors import Obstructed, StorageFull, StoreError
from storage import Storage

log = logging.getLogger("model_server")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8     # malloc.h


def tune() -> None:
    """Settings of the process, measured with uploads of 512 MiB."""
    sys.setswitchinterval(0.0005)   # seconds; who has a block to write must not wait 5 ms for who parses a head
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:     # glibc: keep the memory of one block for the next, in few arenas
        for option, value in ((M_TRIM_THRESHOLD, 16 << 20), (M_MMAP_THRESHOLD, 32 << 20), (M_ARENA_MAX, 2)):
            mallopt(option, value)


def trim() -> None:
    """Gives back the memory between blocks, which malloc would keep: it grew by a MiB with each GiB of an upload."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):     # glibc too
        malloc_trim(0)


CONNECTIONS = 4096          # open at once; each upload adds a descriptor, hence a quarter of those we may have


def open_storage(path: Path | None) -> Storage:
    """The storage at `path`, or where a container has it, or in ./models; raises SystemExit with what mends it."""
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
        uid, gid = os.getuid(), os.getgid()
        raise SystemExit(f"model_server: cannot write to {path} as uid {uid}, gid {gid} ({error.__cause__}). "
                         f"Mend it with: chown -R {uid}:{gid} {path}") from error


def raise_descriptor_limit() -> int:
    """How many connections may be open, after asking for as many descriptors as that may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 4 * CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return min(CONNECTIONS, wanted // 4)

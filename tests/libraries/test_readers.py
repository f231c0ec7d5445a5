"""Whatever is done to a packed pickle: where joblib, numpy or torch would come to it, it is refused.

Nothing is loaded: their unpicklers refuse at the first import.
"""

import io
import pickle
import re
import resource
from pathlib import Path

import joblib
import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.samples import CHANGES, EVAL, OS_SYSTEM, PACKED, mutated

from inspection import formats as inspection

pytestmark = pytest.mark.filterwarnings("ignore")


MEMORY = 200 << 20  # bytes more than there are: joblib doubles what is behind a zlib stream, without end


@pytest.fixture
def little_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


class Reached(BaseException):
    """That they come to a pickle; no Exception, of which they make others."""


def find_class(self, module, name):
    raise Reached if re.fullmatch(r"[\w.]+", module) and re.fullmatch(r"[\w.]+", name) else ImportError


class Refusing(pickle.Unpickler):
    find_class = find_class


class RefusingModule:
    """What numpy has in the place of pickle here, and torch.load takes as pickle_module."""

    Unpickler, UnpicklingError, __name__ = Refusing, pickle.UnpicklingError, "refusing"

    @staticmethod
    def load(file, **options):
        return Refusing(file, **options).load()


@pytest.fixture
def readers(monkeypatch, tmp_path, little_memory):
    monkeypatch.setattr(joblib.numpy_pickle.NumpyUnpickler, "find_class", find_class)
    monkeypatch.setattr(joblib.numpy_pickle_compat.ZipNumpyUnpickler, "find_class", find_class)
    for module in (numpy.lib._npyio_impl, numpy.lib._format_impl):
        monkeypatch.setattr(module, "pickle", RefusingModule)
    path = tmp_path / "m"

    def load_npz(data):
        loaded = numpy.load(io.BytesIO(data), allow_pickle=True)
        if isinstance(loaded, numpy.lib.npyio.NpzFile):
            for name in loaded.files:
                loaded[name]

    def load_joblib(data):
        path.write_bytes(data)
        joblib.load(path)

    def load_torch(data):
        torch.load(io.BytesIO(data), weights_only=False, pickle_module=RefusingModule)

    return load_npz, load_joblib, load_torch


def saved(save, value, **options):
    file = io.BytesIO()
    save(value, file, **options)
    return file.getvalue()


ARRAYS = [numpy.arange(20.0), {"a": numpy.zeros((2, 3), "f4")}, re.compile("x")]
FILES = {
    "joblib": saved(joblib.dump, ARRAYS), "torch": saved(torch.save, {"w": torch.ones(3), "x": re.compile("x")}),
    "torch of old": saved(torch.save, {"w": torch.ones(3)}, _use_new_zipfile_serialization=False),
    **{f"joblib with {method}": saved(joblib.dump, ARRAYS, compress=(method, 3))
       for method in ("zlib", "gzip", "bz2", "lzma", "xz")},
    **{name: pack(EVAL) for name, pack in PACKED.items() if "large" not in name},
    **{f"{name} of protocol 2": pack(b"\x80\x02" + OS_SYSTEM) for name, pack in PACKED.items() if "large" not in name},
}


@settings(max_examples=200, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FILES)), CHANGES)
def test_whenever_a_library_comes_to_a_pickle_it_is_refused(readers, name, changes):
    data = mutated(FILES[name], changes)
    for reader in readers:
        try:
            reader(data)
        except Reached:
            with pytest.raises(inspection.PickleRefused):
                inspection.check(inspection.inspect(io.BytesIO(data), len(data)), (), "deny")
            return
        except Exception:   # noqa: BLE001, S110  whatever they make of what is broken
            pass

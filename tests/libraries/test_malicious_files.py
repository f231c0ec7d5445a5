"""Files that do something when they are loaded, rebuilt from what the test suites of picklescan and modelscan describe.

None of them is ever loaded here.
"""

import asyncio
import bdb
import builtins
import functools
import io
import os
import pickle
import pydoc
import runpy
import socket
import struct
import subprocess
import sys
import timeit
import venv
import webbrowser
import zipfile
import zlib

import joblib
import numpy
import pytest
import torch
from support.samples import legacy_torch, stack_global, text

from inspection import formats as inspection


def inspect(data):
    return inspection.inspect(io.BytesIO(data), len(data))


class Calls:
    """Pickles as a call of a function, which unpickling makes."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


CALLS = {   # what is called: how its import is named in protocol 4
    "os.system": (os.system, "posix.system"),
    "eval": (eval, "builtins.eval"),
    "exec": (exec, "builtins.exec"),
    "compile": (compile, "builtins.compile"),
    "__import__": (__import__, "builtins.__import__"),
    "open": (open, "io.open"),
    "breakpoint": (breakpoint, "builtins.breakpoint"),
    "subprocess.run": (subprocess.run, "subprocess.run"),
    "subprocess.Popen": (subprocess.Popen, "subprocess.Popen"),
    "socket": (socket.create_connection, "socket.create_connection"),
    "webbrowser": (webbrowser.open, "webbrowser.open"),
    "runpy": (runpy.run_path, "runpy.run_path"),
    "bdb": (bdb.Bdb, "bdb.Bdb"),
    "pydoc": (pydoc.pipepager, "pydoc.pipepager"),
    "timeit": (timeit.timeit, "timeit.timeit"),
    "venv": (venv.create, "venv.create"),
    "asyncio": (asyncio.run, "asyncio.runners.run"),
    "functools.partial": (functools.partial, "functools.partial"),
    "pickle in pickle": (pickle.loads, "_pickle.loads"),
    "torch.load in pickle": (torch.load, "torch.serialization.load"),
    "sys.exit": (sys.exit, "sys.exit"),
    "a method of a class": (bdb.Bdb.run, "bdb.Bdb.run"),
}


def refused_by_known(data, *names):
    seen = inspect(data)
    with pytest.raises(inspection.PickleRefused) as refusal:
        inspection.check(seen, (), "known")
    with pytest.raises(inspection.PickleRefused):
        inspection.check(seen, (), "deny")
    assert all(name in str(refusal.value) for name in names), refusal.value
    return seen


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_found_in_every_protocol(name, protocol):
    function, imported = CALLS[name]
    data = pickle.dumps([{"weights": [1.0] * 10}, Calls(function, "x")], protocol)
    found = refused_by_known(data).details["imports_found"]
    if protocol > 3:
        assert found == [imported]
    else:   # modules have the names that they had in Python 2, and a name in a class is a getattr
        assert [each.rpartition(".")[2] for each in found] in ([imported.rpartition(".")[2]], ["getattr", "Bdb"])


NESTED = [
    ("getattr of an import", stack_global("builtins", "getattr") + stack_global("builtins", "__import__")
     + text("os") + b"\x85R" + text("system") + b"\x86R" + text("id") + b"\x85R.",
     ["builtins.getattr", "builtins.__import__"]),
    ("getattr by name", stack_global("operator", "attrgetter") + text("system") + b"\x85R"
     + stack_global("importlib", "import_module") + text("os") + b"\x85R\x85R.",
     ["operator.attrgetter", "importlib.import_module"]),
    ("the module table overridden", stack_global("sys", "modules") + text("sys") + b"2s0"
     + stack_global("sys", "get") + text("os") + b"\x85R.", ["sys.modules", "sys.get"]),
    ("a name put together", stack_global("operator", "concat") + text("sys") + text("tem") + b"\x86R\x940"
     + text("os") + b"h\x00\x93" + text("id") + b"\x85R.", ["operator.concat", "os.?"]),
    ("a setstate", stack_global("types", "FunctionType") + b")\x81}" + text("__code__") + text("x") + b"sb.",
     ["types.FunctionType"]),
    ("an instance of old", b"(S'id'\nios\nsystem\n.", ["os.system"]),
    ("an object of old", b"(cos\nsystem\nS'id'\no.", ["os.system"]),
    ("an import in a lambda's place", b"c__builtin__\neval\n(S'1'\ntR.", ["__builtin__.eval"]),
    ("bytes that are no text", b"\x80\x02X\x02\x00\x00\x00\xff\xfe0cos\nsystem\n(U\x02idtR.", ["os.system"]),
    ("a broken end", b"\x80\x04" + stack_global("os", "system") + text("id") + b"\x85R\xff\xff\xff", ["os.system"]),
    ("a frame without end", b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + stack_global("os", "system") + b".",
     ["os.system"]),
    ("a second pickle", pickle.dumps([1]) + pickle.dumps(Calls(os.system, "id")), ["posix.system"]),
]


@pytest.mark.parametrize(("data", "names"), [case[1:] for case in NESTED], ids=[case[0] for case in NESTED])
def test_what_is_hidden_behind_something_else_is_found(data, names):
    assert [name for name in names if name not in refused_by_known(data, *names).details["imports_found"]] == []


EVIL = pickle.dumps(Calls(eval, "print('ran')"), 4)


def zipped(name, data, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, data)
    return bytearray(file.getvalue())


def flagged(bits):
    data = zipped("archive/data.pkl", EVIL)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place] |= bits
    return data


def damaged(signature, place):
    data = zipped("archive/data.pkl", EVIL)
    data[data.index(signature) + place] ^= 0xFF
    return data


ZIPS = {
    "data.pkl": zipped("data.pkl", EVIL), "another name": zipped("notes.txt", EVIL),
    "deflated": zipped("archive/data.pkl", EVIL, zipfile.ZIP_DEFLATED),
    "encrypted, by its flag": flagged(1), "patched, by its flag": flagged(0x20), "strongly encrypted": flagged(0x40),
    "a wrong CRC": damaged(b"PK\x03\x04", 14), "a wrong CRC in the directory": damaged(b"PK\x01\x02", 16),
    "another name in the member": damaged(b"PK\x03\x04", 31), "a wrong size in the member": damaged(b"PK\x03\x04", 18),
    "a wrong size in the directory": damaged(b"PK\x01\x02", 24), "a wrong version": damaged(b"PK\x01\x02", 6),
    "a wrong number of disks": damaged(b"PK\x05\x06", 4),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_a_strict_reader_gives_up_on_is_read(name):
    assert "builtins.eval" in refused_by_known(bytes(ZIPS[name]), "builtins.eval").details["imports_found"]


def test_a_zip_without_its_directory_is_refused():
    refused_by_known(bytes(ZIPS["data.pkl"].replace(b"PK\x01\x02", b"PK\x01\x03")))


def test_a_torch_file_with_one_more_pickle_in_it_is_found(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt", "a") as archive:
        archive.writestr("m/extra/helper", EVIL)
    assert inspect((tmp_path / "m.pt").read_bytes()).format == "pytorch"
    refused_by_known((tmp_path / "m.pt").read_bytes(), "builtins.eval")


def test_a_torch_file_that_holds_a_call_is_found(tmp_path):
    for new in (True, False):
        torch.save({"w": torch.zeros(3), "x": Calls(exec, "1")}, tmp_path / "m", _use_new_zipfile_serialization=new)
        assert "__builtin__.exec" in refused_by_known((tmp_path / "m").read_bytes()).details["imports_found"]


def test_a_wrong_magic_number_hides_nothing():
    for magic in (0, 0x1950A86A20F9469CFC6D):
        refused_by_known(legacy_torch(EVIL, magic), "builtins.eval")
    refused_by_known(EVIL + legacy_torch(pickle.dumps({})), "builtins.eval")
    refused_by_known(b"\x80\x02" + stack_global("builtins", "eval") + b"\x94R" + legacy_torch(b""), "builtins.eval")


def test_an_array_of_objects_of_numpys_is_found():
    for array in (numpy.array([Calls(eval, "1")], dtype=object), numpy.array([[Calls(eval, "1"), 1]], dtype=object)):
        file = io.BytesIO()
        numpy.save(file, array)
        refused_by_known(file.getvalue(), "builtins.eval")
        file = io.BytesIO()
        numpy.savez_compressed(file, x=numpy.zeros(3), y=array)
        refused_by_known(file.getvalue(), "builtins.eval")


@pytest.mark.parametrize("compression", [0, "zlib", "gzip", "bz2", "xz", "lzma"])
def test_a_joblib_file_that_holds_a_call_behind_its_arrays_is_found(tmp_path, compression):
    value = [numpy.arange(10_000), numpy.zeros((3, 3)), Calls(builtins.exec, "1")]
    joblib.dump(value, tmp_path / "m", compress=(compression, 3) if compression else 0)
    seen = refused_by_known((tmp_path / "m").read_bytes(), "builtins.exec")
    assert seen.format == "joblib" and "complete" not in seen.details


@pytest.mark.parametrize("data", [
    b"7z\xbc\xaf\x27\x1c" + bytes(100), b"\x28\xb5\x2f\xfd" + bytes(100), b"\x04\x22\x4d\x18" + bytes(100),
    b"Rar!\x1a\x07\x00" + bytes(100), zlib.compress(bytes(ZIPS["data.pkl"])), bytes(ZIPS["data.pkl"])[:-20],
], ids=["7z", "zstd", "lz4", "rar", "a zip in zlib", "half a zip"])
def test_what_cannot_be_looked_into_is_refused(data):
    refused_by_known(data, "cannot be looked into")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + bytes(50), b"c\x8f\xff\n" + bytes(50), b"", b"import os\n"],
                         ids=["a picture", "an import that is no text", "nothing", "a script"])
def test_what_is_no_pickle_whatever_it_is_called_is_taken(data):
    inspection.check(inspect(data), (), "deny")

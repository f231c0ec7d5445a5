"""Pickles where only some readers find them: behind damage, in old formats, behind arrays, before and behind others."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import re
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inspected import imports, inspect
from support.samples import (
    CHANGES,
    EVAL,
    OS_SYSTEM,
    P4,
    PACKED,
    SAMPLES,
    gzipped,
    mutated,
    npy,
    stack_global,
    text,
    zipped,
)

from inspection import formats as inspection

# ---- what readers take and others call damaged


WHOLE = {name for name in PACKED if not re.search(
    "tar|zip behind|array behind|with lzma|before a zip|wrong check|no meaning|in a zip|xz with a large", name)}
WHOLE |= {"joblib of before 0.9.3 in a zip", "lzma in a zip", "lzma of other properties in a zip"}


@pytest.mark.parametrize("name", PACKED)
def test_a_pickle_is_found_or_refused_however_it_is_packed(name):
    found, complete = imports(PACKED[name](EVAL))
    assert found == ["builtins.eval"] or not complete
    assert complete == (name in WHOLE)


@pytest.mark.parametrize("pack", [PACKED["gzip"], PACKED["bzip2"], PACKED["xz"], PACKED["lzma"], PACKED["zlib"]],
                         ids=["gzip", "bzip2", "xz", "lzma", "zlib"])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: zipped({"m": data})], ids=["a file", "in a zip"])
@pytest.mark.parametrize("damage", [lambda data: data + b"garbage", lambda data: data[:-3],
                                    lambda data: data[:-6] + b"xxxxxx"], ids=["more behind", "cut off", "wrong check"])
def test_what_came_out_before_the_damage_is_looked_at(pack, wrap, damage):
    blocks = b"".join(b"C\xff" + bytes([n]) * 255 + b"0" for n in range(255))
    assert imports(wrap(damage(pack(EVAL[:-1] + blocks + b".")))) == (["builtins.eval"], False)


@pytest.mark.parametrize("size", [200, 9_000, 70_000])
def test_all_is_looked_at_that_comes_out_before_the_damage_byte_by_byte(size):
    noise = bytes(random.Random(size).choices(range(64), k=size + 200))
    packed = zlib.compress(P4 + b"B" + struct.pack("<I", size) + noise[200:] + b"0" + EVAL[2:-1] + noise[:200], 9)
    assert imports(packed[:-80] + b"\xff" * 80) == (["builtins.eval"], False)


@pytest.mark.parametrize("fields", [b"xx", b"\3\0abcname\0comment\0xx", b"\3\0abc" + b"n" * 70_000 + b"\0\0xx"],
                         ids=["alone", "behind others", "behind a long name"])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: zipped({"m": data})], ids=["a file", "in a zip"])
def test_behind_a_wrong_check_of_a_gzips_header_is_a_pickle_as_gzip_open_has_it(fields, wrap):
    packed = gzipped(EVAL, 2 if fields == b"xx" else 0x1E, fields)
    assert gzip.decompress(packed) == EVAL
    assert imports(wrap(packed)) == (["builtins.eval"], False)


def test_a_right_check_of_a_gzips_header_is_no_damage():
    head = gzipped(EVAL, 0x1E, b"\3\0abcname\0comment\0")[:10] + b"\3\0abcname\0comment\0"
    check = struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    assert imports(gzipped(EVAL, 0x1E, head[10:] + check)) == (["builtins.eval"], True)


@pytest.mark.parametrize("pack", [PACKED["gzip"], PACKED["xz"], PACKED["joblib of before 0.9.3"]],
                         ids=["gzip", "xz", "joblib"])
@pytest.mark.parametrize("wrap", [gzip.compress, lambda data: zipped({"m": data}, zipfile.ZIP_DEFLATED)],
                         ids=["gzip", "a deflated zip"])
def test_what_is_packed_twice_is_found_and_incomplete(pack, wrap):
    assert imports(wrap(pack(EVAL))) == (["builtins.eval"], False)


@pytest.mark.parametrize(("pack", "length"), [
    (bz2.compress, 30 << 20), (lambda data: lzma.compress(data, preset=0), 60 << 20)], ids=["bzip2", "xz"])
def test_what_is_slow_to_unpack_is_unpacked_less_far(pack, length):
    assert imports(pack(P4 + b"\x96" + struct.pack("<Q", length) + bytes(length) + EVAL[2:])) == ([], False)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_a_fault_of_the_disk_in_what_is_packed_is_no_damage(pack):
    class Failing(io.BytesIO):
        def read(self, *_):
            if self.tell() > 30_000:
                raise OSError(5, "Input/output error")
            return super().read(*_)

    data = pack(b"\x80\4B" + struct.pack("<I", 100_000) + random.Random(1).randbytes(100_000) + b".")
    with pytest.raises(OSError, match="Input/output"):
        inspection.inspect(Failing(data), len(data))


class Reached(Exception):
    pass


class Refusing(pickle.Unpickler):
    """Says that a reader has come to a pickle, and loads nothing of it."""

    def find_class(self, module, name):
        raise Reached if re.fullmatch(r"[\w.]+", module) and re.fullmatch(r"[\w.]+", name) else ImportError


def load(stream):
    Refusing(stream).load()


def load_npy(stream):
    numpy_reads_no_other = stream.read(8)
    assert numpy_reads_no_other in (b"\x93NUMPY\1\0", b"\x93NUMPY\2\0", b"\x93NUMPY\3\0")
    length = int.from_bytes(stream.read(2 if numpy_reads_no_other[6] == 1 else 4), "little")
    header = stream.read(length)
    assert b"O" in header and len(header) == length
    load(stream)


def load_zip(stream):
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            for unpack in (load, load_gzip, load_lzma, load_npy):
                with suppress(OSError, EOFError, *BROKEN_PICKLE):
                    unpack(archive.open(member))


def load_tar(stream):
    with tarfile.open(fileobj=stream) as archive:
        for member in archive:
            load(archive.extractfile(member))


def load_gzip(stream):
    with gzip.GzipFile(fileobj=stream) as unpacked:
        load(unpacked)


def load_lzma(stream):
    with lzma.LZMAFile(stream) as unpacked:
        load(unpacked)


def load_zfile(stream):
    head = stream.read(21)
    assert head.startswith(b"ZF")
    load(io.BytesIO(zlib.decompress(stream.read().removeprefix(b" "))))


BROKEN_PICKLE = (Exception,)    # C's unpickler and the archives' readers raise whatever there is
READERS = (load, load_gzip, lambda stream: load(bz2.BZ2File(stream)), load_lzma, load_zip, load_tar, load_npy,
           load_zfile, lambda stream: load(io.BytesIO(zlib.decompress(stream.read()))))
BINARY = [EVAL, b"\x80\x02" + OS_SYSTEM, P4 + b"".join(b"C\x40" + random.Random(n).randbytes(64) + b"0"
                                                       for n in range(200)) + EVAL[2:]]


def comes_to_a_pickle(reader, data):
    try:
        reader(io.BytesIO(data))
    except Reached:
        return True
    except BROKEN_PICKLE:
        pass
    return False


@settings(max_examples=200, derandomize=True)
@given(st.sampled_from([name for name in PACKED if "large" not in name]), st.sampled_from(BINARY), CHANGES)
def test_whenever_a_reader_comes_to_a_pickle_it_is_refused(name, payload, changes):
    data = mutated(PACKED[name](payload), changes)
    if any(comes_to_a_pickle(reader, data) for reader in READERS):
        with pytest.raises(inspection.PickleRefused):
            inspection.check(inspect(data), (), "deny")


# ---- behind numpy's arrays


@pytest.mark.parametrize(("kind", "size"), [
    ("'<M8[25s]'", 8), ("'|V3'", 3), ("[('a', '<f4'), ('f8', '<U3', (2, 3)), ('', '|V2')]", 78),
    ("[('a', [('b', '|u1')])]", None), ("('<f8', (2,))", None), ("'f'", None)],
    ids=["times", "raw bytes", "records", "records in records", "arrays in it", "short"])
def test_what_is_behind_an_array_of_no_objects_makes_it_incomplete(kind, size):
    array = npy(kind, bytes(2 * (size or 1)))
    assert imports(array) == (None, bool(size))
    for behind in npy("'|O'", EVAL), EVAL, b"\0":
        assert not imports(array + behind)[1] and not imports(zipped({"a.npy": array + behind}))[1]


# ---- joblib's arrays


U1 = {"shape": b"K\x01\x85", "dtype": stack_global("numpy", "dtype") + text("u1") + b"\x89\x88\x87R"}
HIDDEN = b"\x0d0" + EVAL[2:-1] + b"0N."     # an array of a byte, and an import that 13 bytes of padding would hide
OLD = ["joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype", "builtins.eval"]
STATE = b"(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


WRAPPER = ("joblib.numpy_pickle", "NumpyArrayWrapper")


def wrapped(fields, rest, wrapper=stack_global(*WRAPPER), make=b")\x81"):     # noqa: B008  bytes
    items = b"".join((key if isinstance(key, bytes) else text(key)) + value for key, value in fields)
    return P4 + wrapper + make + b"}(" + items + b"ub" + rest


UNSIZED = {
    "an itemsize from the state of the dtype": wrapped([*U1.items(), ("dtype", stack_global("numpy", "dtype") + text(
        "V1") + b"\x89\x88\x87R" + STATE.replace(b"J\xff\xff\xff\xff", b"N", 1))], HIDDEN),
    "a dtype within the dtype": wrapped([("shape", U1["shape"]), ("dtype", U1["dtype"] + STATE.replace(
        b"NNN", b"K\x01NN"))], HIDDEN),
    "a dtype that says it has objects":
        wrapped([("shape", U1["shape"]), ("dtype", U1["dtype"] + STATE.replace(b"K\x00t", b"K\x01t"))], HIDDEN[2:]),
    "a dtype with two states": wrapped([("shape", U1["shape"]), ("dtype", U1["dtype"] + STATE * 2)], HIDDEN),
    "a key beyond those that are kept": wrapped(
        [*U1.items(), *((f"k{n}", b"N") for n in range(70)), ("numpy_array_alignment_bytes", b"K\x10")], HIDDEN),
    "a key that is not known": wrapped([*U1.items(), (b"S'\\x73hape'\n", b"K\x02\x85")], HIDDEN),
    "an alignment that is not known": wrapped([*U1.items(), ("numpy_array_alignment_bytes", b"\x88")], HIDDEN),
    "a shape that is a list": wrapped([("shape", b"](K\x01e"), ("dtype", U1["dtype"])], HIDDEN),
    "arguments for the wrapper": wrapped(U1.items(), HIDDEN, make=b"K\x01\x85\x81"),
    "made by something else": wrapped(
        U1.items(), HIDDEN, stack_global("copyreg", "__newobj__") + stack_global(*WRAPPER), b"\x85R"),
    "a state given twice": wrapped(U1.items(), b"\x0d0h\x00}(" + text("shape") + b"K\x02\x85ubxxN.",
                                   make=b")\x81\x94"),
}


@pytest.mark.parametrize("name", UNSIZED)
def test_where_the_size_of_an_array_is_not_certain_it_is_incomplete(name):
    assert imports(UNSIZED[name])[1] is False


@pytest.mark.parametrize("module", ["joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle",
                                    "joblib._store_backends.numpy_pickle"])
def test_of_arrays_without_padding_the_next_opcode_is_found(module):
    data = wrapped(U1.items(), HIDDEN, stack_global(module, "NumpyArrayWrapper"))
    assert imports(data) == ([f"{module}.NumpyArrayWrapper", "numpy.dtype", "builtins.eval"], True)
    assert inspect(data).format == ("pickle" if "backends" in module else "joblib")
    none = wrapped([*U1.items(), ("numpy_array_alignment_bytes", b"N")], HIDDEN)
    assert imports(none) == (OLD, True)


OPCODES = b"0" + EVAL[2:-1] + b"."     # as the bytes of an array
AN_ARRAY = wrapped([("shape", b"K" + bytes([len(OPCODES)]) + b"\x85"), ("dtype", U1["dtype"])], OPCODES + b"0N.")


@pytest.mark.parametrize("data", [
    AN_ARRAY, pickle.dumps(1) + AN_ARRAY, npy("'|O'", AN_ARRAY),
    b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + AN_ARRAY + pickle.dumps([], 2)],
    ids=["alone", "behind another pickle", "in an npy", "in a file of the old torch"])
def test_an_array_whose_bytes_are_opcodes_for_pickle_is_incomplete(data):
    assert imports(data) == (OLD[:2], False)


SWALLOWED = (EVAL[2:-1] + b"0").ljust(46, b"N").replace(b"NN", b"N0") + b"K\0"      # by an opcode that is in the array
GIVEN = (stack_global("builtins", "getattr") + stack_global("importlib", "import_module")
         + text("joblib.numpy_pickle") + b"\x85R" + text("NumpyArrayWrapper") + b"\x86R")


@pytest.mark.parametrize("data", [
    wrapped([("shape", b"K\x05\x85"), ("dtype", U1["dtype"])],
            b"B" + struct.pack("<I", len(SWALLOWED)) + SWALLOWED + b"00N.", GIVEN),
    wrapped([*U1.items(), (b"S\"'shape'\"\n", b"K\x02\x85")], b"\x0dKC0" + SWALLOWED + b"00N."),
], ids=["the wrapper is given by a call", "a key with quotes in its quotes"])
def test_an_array_swallows_no_import(data):
    found, complete = imports(data)
    assert "builtins.eval" in found or not complete


def test_an_instance_of_a_class_that_is_computed_is_read_to_its_end():
    made = stack_global("types", "new_class") + text("Mine") + b"\x85R)\x81}" + text("size") + b"K\x02sb"
    assert imports(P4 + made + EVAL[2:-1] + b"\x86.") == (["types.new_class", "builtins.eval"], True)


# ---- text


TEXTS = ["cat\ndog\nbird\n", "cat\ndog\nbird", "car\nbus\nVan\nbike\n", "cat\ndog\nVan\napple\n", "cat\ndog\nNap\n",
         "cat\ndog\n.gitignore\n", "(a)\n(b)\n", "c\nd\ne\n", "[section]\nkey=1\n", "class,name\n1,2\n",
         "id\nname\nvalue\n", "cat\r\ndog\r\nbird\r\n", "cat\ncaf\u00e9\n\u732b\n", "cos\nsystem\n", "Vase\nPot\n"]


@pytest.mark.parametrize("label", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("wrap", [
    lambda data: data, gzip.compress, lambda data: zipped({"labels.txt": data}),
    lambda data: zipped({"labels.txt": data}, zipfile.ZIP_DEFLATED)], ids=["a file", "gzip", "zip", "deflated"])
def test_text_is_no_pickle(label, wrap):
    assert inspect(wrap(label.encode())).details.keys() <= {"members"}


@pytest.mark.parametrize("data", [
    OS_SYSTEM, OS_SYSTEM[:-1], OS_SYSTEM + b"\nsome text\n", b"cos\nsystem\n.", b"(S'id'\nios\nsystem\n",
    b"cos\nsystem\n(lS'id'\naR", b"cos\nsystem\nVx\nR", b"(cos\nsystem\nS'id'\no", b"cos\nsystem\n(dS'a'\nI1\nsb",
    b"cos\nsystem\n\0"])
def test_a_pickle_in_letters_is_one(data):
    found, _ = imports(data)
    assert found and found[0].endswith(".system")


@pytest.mark.parametrize("data", [
    b"cbuiltins\n__dict__\nVopen\ncos\nsystem\ns.\n", b"cbuiltins\n__dict__\nVopen\ncos\nsystem\ns~",
    b"cos\nenviron\n(VLD_PRELOAD\nV/tmp/x.so\nu.\n", b"csys\npath\nV/tmp\na.\n", b"csys\npath\n(V/tmp\ne.\n",
    b"cos\nsystem\n." + OS_SYSTEM + b"\n",
], ids=["a key", "a key before a fault", "keys", "an item", "items", "in a second pickle"])
def test_a_pickle_in_letters_before_more_text_is_one_when_it_does_something(data):
    found, complete = imports(data + b"some text\n")
    assert found and not complete


@pytest.mark.parametrize("before", [b"I1\n.", b"N.", b"N." * 500, b"I1\n.cos\nsystem\n."], ids=[
    "a number", "None", "many", "an import that is not called"])
@pytest.mark.parametrize("behind", [b"", b"\0junk"], ids=["last", "before something else"])
@pytest.mark.parametrize("data", [EVAL, EVAL[2:], OS_SYSTEM], ids=["protocol 4", "no protocol", "letters"])
def test_a_pickle_is_found_behind_others_that_do_nothing(before, data, behind):
    found, complete = imports(before + data + behind)
    assert found[-1] in ("builtins.eval", "posix.system") and complete == (not behind)


@pytest.mark.parametrize("before", [b"", b"\x80\4"], ids=["no protocol", "protocol 4"])
@pytest.mark.parametrize("place", ["torch.ops\n", "torch\nops."])
@pytest.mark.parametrize("name", ["(x", " ", "\1", "a b"])
def test_a_pickle_is_found_behind_an_import_of_a_name_that_only_some_modules_have(before, place, name):
    found, complete = imports(before + f"c{place}{name}\n0".encode() + EVAL[2:])
    assert found[-1] == "builtins.eval" and complete


# ---- what stands first


@pytest.mark.parametrize("depth", range(2, 5))
def test_a_zip_behind_something_else_is_searched_in_as_few_containers_as_others(depth):
    data = EVAL
    for _ in range(depth):
        data = zipped({"m": b"text" + data if data != EVAL else data})
    assert imports(data) == (["builtins.eval"] if depth < 4 else None, False)


@pytest.mark.parametrize("behind", ["keras", "npz", "pytorch", "zip"])
@pytest.mark.parametrize(("name", "kind"), [("pickle of protocol 0", "pickle"), ("joblib", "joblib"), ("npy", "npy"),
                                            ("gzip", "gzip"), ("bzip2", "bzip2"), ("xz", "xz"), ("text", "unknown"),
                                            ("joblib packed", "joblib"), ("safetensors", "unknown")])
def test_what_stands_first_decides_and_a_zip_behind_it_is_incomplete(make_app, name, kind, behind):
    data = SAMPLES[name][0] + SAMPLES[behind][0]
    found = inspect(data)
    assert (found.format, found.details["complete"]) == (kind, False)
    make_app(allowed_formats=frozenset({behind})).put("/models/p/a/1/m", data, status=415)
    make_app(pickle="deny").put("/models/p/a/1/m", data, status=422)

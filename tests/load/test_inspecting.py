"""What inspection takes of memory and of the processor, whatever a file holds."""

import lzma
import random
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib

import pytest
from support.common import ROOT
from support.inspected import imports, inspect
from support.samples import (
    CENTRAL,
    END,
    LOCAL,
    OS_SYSTEM,
    P4,
    PLAIN,
    field,
    flatbuffer,
    gguf,
    gguf_string,
    hdf5,
    lzma_alone,
    npy,
    onnx,
    safetensors,
    stack_global,
    text,
    zipped,
)

from inspection import reader

EVAL = stack_global("builtins", "eval")


def pointing(member, count, name="{}".format, extra=b""):
    """A zip of so many entries that all lead to one member."""
    local = struct.pack("<4s5H3I2H", LOCAL, 20, 0, 0, 0, 0, 0, len(member), len(member), 0, 0) + member
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", CENTRAL, *(0,) * 9, len(name(n)), len(extra), *(0,) * 5) + name(n).encode() + extra
        for n in range(count))
    end = struct.pack("<4H2IH", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entries), len(local), 0)
    return local + entries + END + end


def test_many_tensors_whose_first_numbers_may_begin_an_lzma_are_no_work():
    assert imports(pointing(struct.pack("<1000q", *range(1000)), 3_000)) == (None, True)


def nested(config, depth):
    return zipped({"metadata.json": b'{"keras_version": "3"}',
                   "config.json": b'{"class_name": ' * depth + config + b"}" * depth}, zipfile.ZIP_DEFLATED)


def repeated(data, count):
    """A gzip of the data, as often, without its end."""
    machine = zlib.compressobj(1, wbits=31)
    return machine.compress(P4 + b"B" + bytes([0, 0, 0, 9])) + machine.flush(zlib.Z_FULL_FLUSH) + (
        machine.compress(data) + machine.flush(zlib.Z_FULL_FLUSH)) * count


def torchscript(member, count):
    return pointing(member, count, name=lambda n: ("/code/data.pkl", "/code/constants.pkl", f"/code/{n}.py")[min(n, 2)])


def configs(text, count):
    return hdf5([("model_config", "{}")]) + (b"\0" + text) * count


def empty_blocks(count):
    """A gzip of blocks of deflate that have no content, but 257 codes of up to 9 bits."""
    lengths = {16: 1, 8: 2, 1: 3, 9: 3}     # of their own codes: to repeat the last length 3 to 6 times, and of lengths
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    head = "0" "01" "00000" "10000" "0111" + "".join(f"{lengths.get(n, 0):03b}"[::-1] for n in order)
    bits = head + "10" + "011" * 42 + "10" * 2 + "111" * 2 + "110" * 2 + "1" * 9
    return b"\x1f\x8b\x08" + bytes(7) + int((bits * 8)[::-1], 2).to_bytes(len(bits), "little") * (count // 8)


def xz_blocks(count):
    """An xz of blocks that have no content, but each another dictionary than the one before."""
    heads = [bytes([2, 0, 0x21, 1, dictionary, 0, 0, 0]) for dictionary in (24, 26)]
    blocks = b"".join(head + struct.pack("<I", zlib.crc32(head)) + bytes(4) for head in heads)
    return lzma.compress(b"", check=lzma.CHECK_NONE)[:12] + blocks * (count // 2)


WIDE = b"(" + (b"\x8a\x80" + b"\x7f" * 128) * 64 + b"t"     # 64 numbers of 1,024 bits
WRAPPER = (P4 + stack_global("joblib.numpy_pickle", "NumpyArrayWrapper") + b"\x94" + stack_global("numpy", "dtype")
           + text("f8") + b"\x89\x88\x87R\x94")
ARRAY = b"h\0)\x81}(" + text("shape") + b"K\1\x85" + text("dtype") + b"h\1ub" + bytes(8)
SHAPE = f"({'9' * 18}{f', {10 ** 17}' * 3_000})"


FIELD_OF_ARRAY = "('a', '<f8')"
LIMIT = 128 << 20   # bytes more than an idle interpreter has
BOMB = P4 + b"\x96" + struct.pack("<Q", 80 << 20) + bytes(80 << 20) + b"."
HOSTILE = {     # name: (what makes it, format)
    "one opcode of 2^62 bytes": (lambda: P4 + b"\x8e" + struct.pack("<Q", (1 << 62) - 1) + bytes(1 << 20), "unknown"),
    "one opcode of 100 MB": (lambda: P4 + b"\x8e" + struct.pack("<Q", 100 << 20) + bytes(100 << 20) + b".", "pickle"),
    "one line of 100 MB": (lambda: b"V" + b"x" * (100 << 20), "unknown"),
    "100,000 opcodes": (lambda: P4 + b"N" * 100_000 + b".", "pickle"),
    "a million opcodes": (lambda: P4 + b"N" * 1_000_000 + b".", "pickle"),
    "a million values remembered": (lambda: P4 + b"N" + b"\x94" * 1_000_000 + b".", "pickle"),
    "a million dicts": (lambda: P4 + b"}" * 1_000_000 + b".", "pickle"),
    "a million tuples in tuples": (lambda: P4 + b")" + b"\x85" * 1_000_000 + b".", "pickle"),
    "200,000 imports": (lambda: b"\x80\x02" + b"".join(b"cos\na%d\n" % n for n in range(200_000)) + b".", "pickle"),
    "500,000 calls that make a tensor of a wide shape": (
        lambda: b"\x80\2ctorch._utils\n_rebuild_tensor\nq\0NK\0" + WIDE + b"\x87q\1" + b"h\0h\1R" * 500_000 + b".",
        "pickle"),
    "a million numbers of 4 bytes": (lambda: P4 + b"J\1\2\3\4" * 1_000_000 + b".", "pickle"),
    "a million numbers in letters": (lambda: b"I1\n" * 1_000_000 + b".", "unknown"),
    "100,000 arrays of joblib's": (lambda: WRAPPER + ARRAY * 100_000 + b".", "joblib"),
    "a bomb": (lambda: zlib.compress(BOMB), "pickle"),
    "a zip of bombs": (lambda: zipped({f"{n}": BOMB for n in range(3)}, zipfile.ZIP_DEFLATED), "zip"),
    "a zip of 60,000 members": (lambda: zipped(dict.fromkeys(map(str, range(60_000)), PLAIN)), "zip"),
    "tuples in tuples behind an array of joblib's": (
        lambda: P4 + stack_global("joblib.numpy_pickle", "NumpyArrayWrapper") + b")" + b"\x85" * 1_500_000, "joblib"),
    "8,000 arrays of a shape that numpy does not have": (
        lambda: pointing(npy("'<f8'", b"", SHAPE), 8_000), "zip"),
    "8,000 members of lzma with a large dictionary": (lambda: pointing(lzma_alone(PLAIN, 1 << 26), 8_000), "zip"),
    "8,000 members of an import whose name is none": (
        lambda: pointing(b"c" + b"a" * 128 + b"\n" + b"a" * 127 + b" \n", 8_000), "zip"),
    "8,000 arrays of many fields": (
        lambda: pointing(npy(f"[{', '.join([FIELD_OF_ARRAY] * 4500)}]", b""), 8_000), "zip"),
    "8,000 members of imports": (lambda: pointing(b"cos\nsystem\n" * 180, 8_000), "zip"),
    "8,000 members of text behind an import": (lambda: pointing(b"cos\nsystem\n" + b"a " * 40_000, 8_000), "zip"),
    "a directory of two million fields": (lambda: pointing(b"x", 125, extra=b"\2\0\0\0" * 16_000), "zip"),
    "deflate that is all codes": (lambda: repeated(random.Random(0).randbytes(1 << 20).hex().encode(), 30), "pickle"),
    "blocks of deflate that are all codes": (lambda: empty_blocks(1_600_000), "gzip"),
    "blocks of xz with other dictionaries": (lambda: xz_blocks(500_000), "xz"),
    "20,000 files of TorchScript": (lambda: torchscript(b"", 20_000), "unknown"),
    "a hundred large files of TorchScript": (lambda: torchscript(b"ops.a " * 170_000, 100), "unknown"),
    "100,000 tensors": (lambda: safetensors(
        b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(100_000)) + b"}"),
        "unknown"),
    "a header of wide characters": (lambda: safetensors('{"a":"😀'.encode() + b"x" * (7 << 20) + b'"}'), "unknown"),
    "a header of short lists": (lambda: safetensors(b'{"a":[' + b"[]," * 160_000 + b"1]}"), "unknown"),
    "a header of 290,000 keys": (lambda: safetensors(
        b'{"__metadata__":{' + b",".join(b'"%d":"a"' % n for n in range(290_000)) + b"}}"), "safetensors"),
    "200,000 tensors of 8 dimensions": (lambda: gguf(counts=(200_000, 0)) + gguf(
        tensors=[("a", (1,) * 8, 0, 0)])[24:] * 200_000, "unknown"),
    "arrays of words in arrays": (lambda: gguf([("a", 9, struct.pack("<IQ", 9, 1 << 40))]) + (
        struct.pack("<IQ", 8, 7) + bytes(56)) * 400_000, "unknown"),
    "keys that are no text": (lambda: gguf(counts=(0, 600)) + (
        struct.pack("<Q", 1 << 16) + b"\xff" * (1 << 16) + bytes(5)) * 600, "unknown"),
    "2^60 keys": (lambda: gguf(counts=(0, 1 << 60)) + bytes(60 << 20), "unknown"),
    "2^60 words": (lambda: gguf([("a", 9, struct.pack("<IQ", 8, 1 << 60))]) + bytes(60 << 20), "unknown"),
    "a million nodes": (lambda: onnx(graph=field(1, b"") * 1_000_000), "onnx"),
    "a million operations": (lambda: field(1, field(2, "A")) * 1_000_000, "unknown"),
    "different operations": (lambda: b"".join(field(1, field(2, f"A{n:0190}")) for n in range(100_000)) + field(4, b""),
                             "graphdef"),
    "operations that are nearly on files": (
        lambda: b"".join(field(1, field(2, f"Flex{n:05}{'File' * 47}.")) for n in range(25_000)) + field(4, b""),
        "graphdef"),
    "a million pieces": (lambda: field(1, b"") * 1_000_000 + field(2, b"") + field(3, b""), "unknown"),
    "inputs with many dimensions": (lambda: onnx(graph=field(11, field(2, field(1, field(
        2, field(1, field(1, 1)) * 100_000)))) * 3), "onnx"),
    "weights in other files": (
        lambda: onnx(graph=field(5, field(13, field(1, "location") + field(2, "a"))) * 400_000), "onnx"),
    "inputs without a type": (
        lambda: field(1, 1) + field(2, field(1, field(1, "x")) * 400_000) + field(500, b""), "coreml"),
    "tables in a vector": (lambda: flatbuffer((0, [("", None)] * 20_000), b"TFL3"), "tflite"),
    "configs without end": (lambda: hdf5([("model_config", "{}")]) + b'\0{"class_name"' * 6_000_000, "unknown"),
    "one config without end": (lambda: hdf5([("model_config", "{}")]) + b'\0' + b'{"' * 45_000_000, "unknown"),
    "configs that say nothing": (
        lambda: hdf5([("model_config", "{}")]) + b'\0{"class_name":[]}' * 6_000_000, "unknown"),
    "configs that are no JSON": (lambda: configs(b'{"class_name"}', 100_000), "unknown"),
    "configs nested too deeply": (lambda: configs(b'{"class_name":' + b"[" * 900 + b"}", 20_000), "unknown"),
    "configs of long numbers": (lambda: configs(b'{"class_name":[' + (b"9" * 4299 + b",") * 1800 + b"1]}", 4), "keras"),
    "braces and no config": (lambda: configs(b"{", 16_000_000), "unknown"),
    "a module of Keras of many parts": (lambda: zipped({"metadata.json": b'{"keras_version": "3"}', "config.json": (
        '{"class_name":"a","module":"😀' + "." * 8_000_000 + '"}').encode()}), "keras"),
    "zeros and no config": (lambda: configs(b"", 40_000_000), "keras"),
    "names in names": (lambda: nested(b'"' + b"a" * 7_000_000 + b'"', 150), "keras"),
    "a config of a million objects": (lambda: zipped({
        "metadata.json": b'{"keras_version": "3"}', "config.json": b"[" + b"{}," * 400_000 + b"1]"}), "keras"),
    "spaces before a brace": (lambda: b" " * (100 << 20), "unknown"),
    "beginnings of objectives": (lambda: b'{"learner":{' + b'"objective" : {' * 1_000_000, "xgboost"),
    "a net without its end": (lambda: b'<net name="' + b"<net " * 1_000_000, "unknown"),
}
CHILD = """
import io, resource, sys, time
sys.path.insert(0, sys.argv[1])
from inspection import formats as inspection
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + int(sys.argv[3]),) * 2)
class Counted(io.FileIO):
    total = 0
    def read(self, size):
        data = super().read(size)
        Counted.total += len(data)
        return data
with Counted(sys.argv[2]) as file:
    begun = time.thread_time()
    print(inspection.inspect(file, file.seek(0, 2)).format, Counted.total, time.thread_time() - begun)
"""
CPU = 1.5   # seconds, where half a second is promised: other tests have the caches of the processor now


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_answered_in_bounded_memory_and_reads(tmp_path, name):
    make, kind = HOSTILE[name]
    (tmp_path / "file").write_bytes(make())
    done = subprocess.run([sys.executable, "-c", CHILD, str(ROOT), str(tmp_path / "file"), str(LIMIT)],
                          capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    found, read, spent = done.stdout.split()
    assert found == kind and int(read) <= 2 * reader.MAX_BYTES + (1 << 20)     # for pickles, and for the format
    assert float(spent) < CPU


LONG = P4 + b"}(" + b"".join(b"\x8c\x07%07d\x94M\x00\x01" % n for n in range(300_000)) + b"u" + EVAL + b"."


def test_a_pickle_of_a_million_opcodes_is_read_to_its_end():
    assert imports(LONG) == (["builtins.eval"], True)


@pytest.mark.parametrize(("data", "kind"), [     # as the tokenizers of Gemma and of gpt-oss have
    (field(1, field(1, "▁word") + field(2, 1)) * 262_144 + field(2, b"") + field(3, b""), "sentencepiece"),
    (gguf([("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 650_000) + gguf_string("t he") * 650_000)]), "gguf"),
], ids=["sentencepiece", "gguf"])
def test_the_largest_vocabularies_are_read(data, kind):
    assert inspect(data).format == kind


def test_one_large_file_is_looked_at_after_the_other_and_no_small_one_waits_for_them():
    done = []
    with reader.LARGE:
        large = threading.Thread(target=lambda: done.append(imports(LONG)))
        large.start()
        assert imports(OS_SYSTEM) == (["posix.system"], True)
        assert large.is_alive() and done == []
    large.join()
    assert done == [(["builtins.eval"], True)]


def test_a_large_pickle_lets_other_threads_in_again_and_again():
    before, turns = sys.getswitchinterval(), 0
    large = threading.Thread(target=lambda: imports(LONG))
    sys.setswitchinterval(60)   # the interpreter itself makes nobody give way
    try:
        large.start()
        while large.is_alive():
            turns += 1
            time.sleep(0)
    finally:
        sys.setswitchinterval(before)
    assert turns > 50   # there are some 250 slices; without them it is none


MEMORY = """
import io, resource, sys, threading
sys.path.insert(0, sys.argv[1])
from inspection import formats as inspection
from server import process
def rss(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
process.tune()
data = sys.stdin.buffer.read()
def look(): return inspection.inspect(io.BytesIO(data), len(data))
before, threads = rss(), [threading.Thread(target=look) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(rss() - before)
"""


def test_the_memory_of_large_pickles_comes_back():
    grown = subprocess.run([sys.executable, "-c", MEMORY, str(ROOT)], input=LONG, capture_output=True, check=True)
    assert int(grown.stdout) < 24 << 20     # of 40 MB that each takes

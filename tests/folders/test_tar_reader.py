"""The tar cutter: bytes in, files out, whatever the pieces they come in and whichever program made it."""

import bz2
import gzip
import hashlib
import itertools
import lzma
import random
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.needs import need
from support.tars import END, headed, member, tar_of

from folders import tar_reader
from folders.tar_reader import Member, MemberEnd, TarCutter
from server.errors import BadRequest, UnsupportedMediaType

FILES = {"config.json": b"{}", "onnx/model.onnx": bytes(range(256)) * 5, "empty": b"", "b/c/whole": b"x" * 512}
LONG = "/".join(["d" * 90] * 3) + "/" + "f" * 120
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def cut(tar, *cuts):
    """{name: bytes} of a tar that arrives in pieces which end at `cuts`."""
    cutter, files, current = TarCutter(), {}, None
    for a, b in itertools.pairwise((0, *cuts, len(tar))):
        for event in cutter.feed(tar[a:b]):
            if isinstance(event, Member):
                assert current is None and event.name not in files
                current, size = event.name, event.size
                files[current] = bytearray()
            elif isinstance(event, MemberEnd):
                assert len(files[current]) == size
                current = None
            else:
                assert len(event)   # a draft is promised no empty block
                files[current] += event
    cutter.finish()
    assert current is None
    return {name: bytes(content) for name, content in files.items()}


def folder(files=FILES, **options):
    return tar_of(member("./", type=tarfile.DIRTYPE), member("./onnx", type=tarfile.DIRTYPE),
                  *(member(f"./{name}", data) for name, data in files.items()), **options)


def refused(tar, *cuts):
    with pytest.raises(BadRequest) as error:
        cut(tar, *cuts)
    return str(error.value)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The files on a disk, one with a long name."""
    top = tmp_path_factory.mktemp("tree")
    for name, data in {**FILES, LONG: b"long"}.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return top


# ---- pieces and programs


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_tar_cut_in_two_anywhere_gives_the_same_files(form):
    files = {"a/" + "n" * 99: b"some", "empty": b"", "b" * 120 if form != FORMATS["ustar"] else "b": b"y" * 513}
    tar = folder(files, form=form)
    tar = tar[: len(tar.rstrip(b"\0")) // 512 * 512 + 512 + 1024]
    for at in range(0, len(tar) + 1):
        assert cut(tar, at) == files
    for step in (1, 7, 511, 513):
        assert cut(tar, *range(step, len(tar), step)) == files


@given(st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_a_tar_in_pieces_of_any_size_gives_the_same_files(chance):
    tar = folder({f"{n}/{chance.randrange(99)}": chance.randbytes(chance.choice((0, 1, 511, 512, 5000)))
                  for n in range(5)})
    expected = cut(tar)
    assert cut(tar, *sorted(chance.randrange(len(tar)) for _ in range(40))) == expected
    assert len(expected) == 5


@pytest.mark.parametrize("line", [
    *(f"tar c --format={form} ." for form in ("gnu", "pax", "posix")),
    "tar c *", "tar c --sort=name -b 1 .", "tar c --owner=0 --group=0 --numeric-owner -H pax --xattrs .",
    "tar c -b 2048 .", "tar c --full-time .", "tar c -V label --exclude=none . --format=pax",
    *(f"bsdtar c --format={form} -f - ." for form in ("gnutar", "pax")),
    "busybox tar c .",
])
def test_the_tars_of_real_programs_are_read(tree, line):
    if (program := line.split()[0]) != "tar":
        need(program)
    tar = subprocess.run(line, shell=True, cwd=tree, capture_output=True, check=True).stdout
    assert cut(tar) == {**FILES, LONG: b"long"}


@pytest.mark.needs("git")
def test_the_tar_of_git_archive_is_read(tree):
    git = f"git -c init.defaultBranch=m -C {tree}"
    subprocess.run(f"{git} init -q && {git} add -A && {git} -c user.name=a -c user.email=a@b commit -qm. ",
                   shell=True, check=True)
    tar = subprocess.run(f"{git} archive HEAD", shell=True, capture_output=True, check=True).stdout
    assert cut(tar) == {**FILES, LONG: b"long"}
    assert cut(subprocess.run(f"{git} archive --prefix=bert/ HEAD", shell=True, capture_output=True).stdout) == {
        f"bert/{name}": data for name, data in {**FILES, LONG: b"long"}.items()}


def test_what_docker_save_writes_is_read_and_refused_where_it_has_links():
    layer, config = b"of a layer" * 999, b'{"architecture": "amd64"}'
    blobs = {f"blobs/sha256/{hashlib.sha256(data).hexdigest()}": data for data in (layer, config)}
    images = {**blobs, "index.json": b"{}", "manifest.json": b"[]", "oci-layout": b"{}", "repositories": b"{}"}
    folders = [member(f"{name}/", type=tarfile.DIRTYPE) for name in ("blobs", "blobs/sha256")]
    tar = tar_of(*folders, *(member(name, data, mtime=0) for name, data in images.items()), form=tarfile.USTAR_FORMAT)
    assert cut(tar) == images
    # before Docker 25; a layer that several images have is a link to the first one
    old = [(member(f"{image}/", type=tarfile.DIRTYPE), member(f"{image}/VERSION", b"1.0"), layer) for image, layer in (
        ("0" * 64, member(f"{'0' * 64}/layer.tar", layer)),
        ("1" * 64, member(f"{'1' * 64}/layer.tar", type=tarfile.SYMTYPE, linkname=f"../{'0' * 64}/layer.tar")))]
    assert list(cut(tar_of(*old[0]))) == [f"{'0' * 64}/VERSION", f"{'0' * 64}/layer.tar"]
    assert f"'{'1' * 64}/layer.tar' in the tar is a link" in refused(tar_of(*old[0], *old[1]))


def test_sizes_and_names_of_every_encoding_are_read():
    big = headed("m", size=8 << 30)     # beyond what 11 octal digits tell: base 256
    assert list(TarCutter().feed(big)) == [Member("m", 8 << 30)]
    pax = tar_of(member("header", b"12", pax_headers={"path": "told", "mtime": "1.5", "comment": "ü\n1 x=\n"}))
    assert cut(pax) == {"told": b"12"}
    old = member("v7/", type=b"\0")[0].tobuf(tarfile.USTAR_FORMAT) + headed("v7/f", type=b"\0", size=0) + END
    assert cut(old) == {"v7/f": b""}


def test_what_gnu_tar_keeps_in_the_place_of_a_prefix_is_none():
    info = bytearray(headed("m"))
    info[345:357] = b"14537251032\0"    # when it was read: --incremental
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    assert cut(bytes(info) + END) == {"m": b""}


@pytest.mark.parametrize("zeros", [512, 1024, 10240])
def test_one_block_of_zeros_or_more_ends_a_tar(zeros):
    assert cut(headed("m") + bytes(zeros)) == {"m": b""}


# ---- what is refused


@pytest.mark.parametrize(("name", "fields", "said"), [
    ("l", {"type": tarfile.SYMTYPE, "linkname": "m"}, "'l' in the tar is a link: tar ch"),
    ("l", {"type": tarfile.LNKTYPE, "linkname": "m"}, "'l' in the tar is a link"),
    ("d", {"type": tarfile.CHRTYPE}, "'d' in the tar is a device"),
    ("d", {"type": tarfile.BLKTYPE}, "'d' in the tar is a device"),
    ("f", {"type": tarfile.FIFOTYPE}, "'f' in the tar is a fifo"),
    ("s", {"type": tarfile.GNUTYPE_SPARSE}, "'s' in the tar is a sparse file"),
    ("M", {"type": b"M"}, "'M' in the tar is of type 'M'"),
    ("/etc/passwd", {}, "'/etc/passwd' in the tar is not a plain path"),
    ("/", {}, "'/' in the tar is not a plain path"),
    ("..", {"type": tarfile.DIRTYPE}, "not a plain path"), ("m/", {"type": b"0"}, "not a plain path"),
    ("./", {"type": b"0"}, "not a plain path"),
    ("a//m", {}, "'a//m' in the tar is not a plain path below it: go to the directory and pack what is in it"),
    *((name, {}, "not a plain path") for name in ("../m", "a/../../m", "./../m", "..", "a/./m", ".", "")),
    ("n" * 129, {}, "not a name"), ("a\\b", {}, r"--exclude='a\\b'"), ("m\n", {}, "not a name"),
    ("ü", {}, "not a name"), ("\udcff", {}, "not a name"), ("-rf", {}, "--exclude=-rf"),
    ("my file.bin", {}, "tar c --exclude='my file.bin'"), ("a[1]*", {}, r"--exclude='a\[1\]\*'"),
    ("onnx/._model.onnx", {}, "--exclude='._*' (with COPYFILE_DISABLE=1 before it on macOS)"),
    (".git", {"type": tarfile.DIRTYPE}, ".[A-Za-z0-9_]*"), (".git/config", {}, "--exclude='.[A-Za-z0-9_]*'"),
    ("a/.DS_Store", {}, "--exclude='.[A-Za-z0-9_]*'"),
])
def test_what_a_version_cannot_hold_is_refused_by_its_name(name, fields, said):
    tar = headed("first") + headed(name, **fields) + END
    assert said in refused(tar)
    assert refused(tar, *range(1, len(tar))) == refused(tar)


@pytest.mark.needs("bsdtar")
def test_the_exclusion_that_a_refusal_names_helps(tree, tmp_path):
    subprocess.run(["cp", "-r", f"{tree}/.", tmp_path], check=True)
    for name in (".git/config", "._config.json", "onnx/._model.onnx", ".DS_Store", "my file", "a[1]*"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for program in ("tar c", "bsdtar cf -"):
        excluded = ""
        while len(excluded) < 200:
            tar = subprocess.run(f"{program} {excluded} .", shell=True, cwd=tmp_path, capture_output=True).stdout
            try:
                assert cut(tar) == {**FILES, LONG: b"long"}
                break
            except BadRequest as error:
                excluded += " --exclude=" + str(error).partition("--exclude=")[2].partition(" leaves")[0].partition(
                    " (with")[0]
        else:
            pytest.fail(excluded)


@pytest.mark.parametrize(("names", "said"), [
    (("m", "m"), "'m' comes twice"), (("m", "./m"), "'./m' comes twice"), (("m", "m/"), "'m/' comes twice"),
    (("a/b", "a"), "'a' in the tar is a directory, and a file"), (("a/", "a"), "'a' in the tar is a directory"),
    (("a", "a/b/c"), "'a' in the tar is a file, and 'a/b/c' would be below it"), (("a", "a/b/"), "'a' in the tar is"),
])
def test_one_name_twice_and_a_file_where_a_directory_is_are_refused(names, said):
    tar = b"".join(headed(name, type=tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE) for name in names)
    assert said in refused(tar + END)


@pytest.mark.parametrize("tar", [END, headed("a", type=tarfile.DIRTYPE) + END, bytes(512)])
def test_a_tar_without_a_file_is_refused(tar):
    assert "no file" in refused(tar)


def test_a_tar_that_ends_early_is_refused_wherever_it_was_cut():
    tar = folder(form=tarfile.GNU_FORMAT)
    end = (len(tar.rstrip(b"\0")) + 511) // 512 * 512
    assert cut(tar[: end + 512]) == FILES
    for length in (*range(512, end, 97), end - 1, end, end + 1, end + 511):
        assert "ends early" in refused(tar[:length]), length


@pytest.mark.parametrize("after", [headed("second") + END, b"x" + bytes(511), bytes(511) + b"x"])
def test_what_follows_the_end_is_refused_and_not_lost(after):
    assert "follows the end" in refused(headed("m") + END + after)


def test_a_tar_damaged_on_the_way_is_refused():
    tar = bytearray(folder())
    at = bytes(tar).index(b"./onnx/model.onnx")
    tar[at] ^= 1
    assert f"damaged at byte {at // 512 * 512}" in refused(bytes(tar))


@pytest.mark.parametrize(("records", "said"), [
    (b"x", "damaged"), (b"99 path=a\n", "damaged"), (b"9 path=ab\n", "damaged"), (b"0 path=a\n", "damaged"),
    (b"5 p=\n\0\0", "damaged"), (b"999999999 path=a\n", "damaged"), (b"12 size=1_0\n", "no number"),
    (b"11 size=-1\n", "no number"), (b"22 GNU.sparse.major=1\n", "'m' in the tar is a sparse file"),
    (b"15 path=../ab1\n", "'../ab1' in the tar is not a plain path"),
])
def test_a_pax_header_is_not_taken_for_granted(records, said):
    tar = headed("x", type=tarfile.XHDTYPE, size=len(records)) + records.ljust(512, b"\0") + headed("m") + END
    assert said in refused(tar)


@pytest.mark.parametrize("record", [b"10 path=a\n", b"11 size=10\n"])
def test_a_global_header_cannot_name_or_measure_files(record):
    tar = headed("g", type=tarfile.XGLTYPE, size=len(record)) + record.ljust(512, b"\0") + headed("m") + END
    assert "a global header" in refused(tar)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_are_limited(kind):
    most = tar_reader.MAX_EXTENDED
    for size in (most + 1, 8 << 40, -1, 0):
        assert "extended header" in refused(headed("x", type=kind, size=size))
    assert "attributes of a file that is missing" in refused(headed("x", type=b"L", size=1) + b"m" * 512 + END)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("path", ["a/" * 8 + "m", "/".join(["d" * 120] * 4) + "/" + "n" * 30, "a/" * 20_000 + "m"],
                         ids=["parts", "characters", "both"])
def test_a_path_that_no_model_can_have_is_refused_before_its_directories_are_noted(kind, path):
    cutter = TarCutter()
    with pytest.raises(BadRequest, match="is too long: use up to 8 names"):
        list(cutter.feed(headed(path, type=kind) + END))
    assert cutter.held == 0


def test_a_sparse_file_in_the_tar_of_gnu_tar_is_refused(tmp_path):
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(10 << 20)
    for form in ("gnu", "posix --sparse-version=1.0", "posix --sparse-version=0.0"):
        tar = subprocess.run(f"tar c -S --format={form} holes", shell=True, cwd=tmp_path, capture_output=True).stdout
        assert "is a sparse file: leave out --sparse" in refused(tar)


@pytest.mark.parametrize(("program", "pack"), [
    ("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress),
    ("zstd", lambda tar: b"\x28\xb5\x2f\xfd" + bytes(len(tar) // 9)),
    ("lz4", lambda tar: b"\x04\x22\x4d\x18" + tar), ("lzip", lambda tar: b"LZIP\1" + tar),
    ("gzip", lambda tar: b"\x1f\x9d\x90" + tar),   # compress, which gzip unpacks
])
def test_a_compressed_tar_is_refused_with_the_line_that_unpacks_it(program, pack):
    for packed in (pack(folder()), pack(END)):
        for cuts in ((), range(1, len(packed))):
            with pytest.raises(UnsupportedMediaType, match=f"{program} -dc "):
                cut(packed, *cuts)


@pytest.mark.parametrize("body", [b"", b"x", b"PK\3\4" + bytes(600), random.Random(1).randbytes(5000)])
def test_anything_else_is_told_that_the_path_is_a_version(body):
    assert refused(body) == "this path is a version: add the model's name, or send a tar"


def test_the_number_of_files_and_of_headers_is_limited(monkeypatch):
    monkeypatch.setattr(tar_reader, "MAX_FILES", 3)
    assert len(cut(b"".join(headed(f"f{n}") for n in range(3)) + END)) == 3
    assert "more than 3 files, of which 'f3'" in refused(b"".join(headed(f"f{n}") for n in range(4)) + END)
    monkeypatch.setattr(tar_reader, "MAX_HEADERS", 5)
    assert "5 headers" in refused(b"".join(headed(f"d{n}", type=tarfile.DIRTYPE) for n in range(6)) + END)


def test_zeros_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(tar_reader, "MAX_AFTER_END", 4096)
    assert "zeros follow the end" in refused(headed("m") + bytes(8192))

"""Metadata that is hostile, large or broken: what was answered is what is kept, and what cannot be read is not lost."""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.common import app_of, eventually

from model_server import MAX_DOCUMENT
from repository import metadata
from storage import Storage

BASE = "/models/p/a/1/m"
INFO = BASE + "/info"
NAMES = {"project_id": "p", "app_name": "a", "version": "1", "model_name": "m"}


@pytest.fixture
def model(app):
    app.put(f"{BASE}?description=d&stage=dev", b"data", status=201)
    return app


def file_of(store, name="metadata.json"):
    return store.root / "p/a/1/m" / name


def verified(app):
    app.post("/verify", status=202)
    eventually(lambda: not app.get("/verify").json["running"])
    return app.get("/verify").json


def restarted(store):
    """The same storage as another process sees it, which has read nothing yet."""
    return Storage(store.root)


def info_of(store):
    with restarted(store) as other:
        return app_of(other).get(INFO).body


# ---- one representation


def test_metadata_is_written_a_field_a_line_and_compact_below(model, store):
    model.patch(INFO, json.dumps({"metadata": {"é": [1, {"a": [2.5, None]}], "lines": "a\nb"}}).encode(), status=200)
    lines = file_of(store).read_text().splitlines()
    assert (lines[0], lines[-1]) == ("{", "}")
    assert len(lines) == len(json.loads(file_of(store).read_text())) + 2
    assert f'  "sha256": "{model.get(INFO).json["sha256"]}",' in lines     # as deploy/backup.sh looks for it
    assert '  "metadata": {"stage": "dev", "é": [1, {"a": [2.5, null]}], "lines": "a\\nb"},' in lines


NESTED = "[" + ",".join(["[[[[0]]]]"] * 580) + "]"    # 8 KB, and 300 with an indent at each level


@pytest.mark.parametrize("fields", [
    {f"k{number}": json.loads("[" * 40 + NESTED + "]" * 40) for number in range(20)},
    {f"k{number}": "\1" * 1350 for number in range(metadata.MAX_CUSTOM)},
    {f"{number:03}" + "\1" * 680: "\2" * 680 for number in range(metadata.MAX_CUSTOM)},
    {f"k{number}": "я" * 4090 for number in range(metadata.MAX_CUSTOM)},
    {f"k{number}": "\N{PILE OF POO}" * 2040 for number in range(metadata.MAX_CUSTOM)},
], ids=["nested lists", "control characters", "in names too", "Cyrillic", "beyond the BMP"])
def test_metadata_at_its_limits_is_kept_whole_through_changes_a_verification_and_a_restart(model, store, fields):
    given = json.dumps({"metadata": {"stage": None, **fields}}).encode()
    assert len(given) < MAX_DOCUMENT
    told = model.patch(INFO, given, status=200).json
    assert told["metadata"] == fields
    assert json.loads(info_of(store)) == model.get(INFO).json == told
    told = model.patch(INFO, b'{"framework": "onnx"}', status=200).json
    assert (told["metadata"], told["description"]) == (fields, "d")
    file_of(store, "model").write_bytes(b"dat!")
    assert verified(model)["corrupt_models"] == 1
    seen = json.loads(info_of(store))
    assert (seen["corrupt"], seen["metadata"], seen["sha256"]) == (True, fields, told["sha256"])
    assert model.get("/models/p").json["models"] == [seen]
    assert file_of(store).stat().st_size < 2 * metadata.MAX_CUSTOM * metadata.MAX_FIELD


@pytest.mark.parametrize(("name", "fits", "too_long"), [
    ("description", "x" * metadata.MAX_FIELD, "x" * (metadata.MAX_FIELD + 1)),
    ("framework", "é" * (metadata.MAX_FIELD // 2), "é" * (metadata.MAX_FIELD // 2) + "x"),
    ("k", "x" * (metadata.MAX_FIELD - 1), "x" * metadata.MAX_FIELD),
    ("k" * 1000, "x" * (metadata.MAX_FIELD - 1000), "x" * (metadata.MAX_FIELD - 999)),
    ("k" * (metadata.MAX_FIELD - 1), "x", "xx"),
    ("kkkk", '"' * (metadata.MAX_FIELD // 2 - 2), '"' * (metadata.MAX_FIELD // 2 - 1)),
    ("k\1" "k", "\1" * ((metadata.MAX_FIELD - 8) // 6), "\1" * ((metadata.MAX_FIELD - 8) // 6 + 1)),
], ids=lambda text: f"{text[:3]!r} {len(text)}")
def test_a_field_has_one_limit_whichever_way_it_comes(app, name, fits, too_long):
    def form(value):
        fields = {**NAMES, name: value}
        parts = [f'--cut\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n'
                 for key, text in fields.items()]
        parts.append('--cut\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\ndata\r\n--cut--\r\n')
        return "".join(parts).encode()

    def patch(value):
        said = {name: value}
        return json.dumps(said if name in ("description", "framework") else {"metadata": said}).encode()

    kind = {"Content-Type": "multipart/form-data; boundary=cut"}
    for value, status in ((too_long, 400), (fits, 200)):
        app.put(BASE, b"data", status="2*")
        app.patch(INFO, patch(value), status=status)
        if len(quote(value)) < 60_000:
            app.put(f"{BASE}?{quote(name)}={quote(value)}", b"data", status=status)
        if "\1" not in name:    # which a form's headers cannot have
            app.post("/models/upload", form(value), headers=kind, status=status)


def test_names_that_only_a_charset_of_python_can_make_are_refused(app, store):
    kind = {"Content-Type": "multipart/form-data; boundary=cut"}
    body = ("--cut\r\nContent-Disposition: form-data; name*=unicode_escape''%5Cud800\r\n\r\nx\r\n"
            '--cut\r\nContent-Disposition: form-data; name="file"; filename="m"\r\n\r\ndata\r\n--cut--\r\n')
    query = "&".join(f"{name}={value}" for name, value in NAMES.items())
    app.post(f"/models/upload?{query}", body.encode(), headers=kind, status=400)
    assert not file_of(store).exists()


@pytest.mark.parametrize(("before", "after"), [("1", "true"), ("0", "false"), ("1", "1.0"), ("0.0", "-0.0"),
                                               ("[1]", "[true]"), ('{"a": 1}', '{"a": true}')])
def test_a_change_of_one_json_value_into_another_that_python_calls_equal_is_a_change(model, store, before, after):
    model.patch(INFO, b'{"metadata": {"k": %s}}' % before.encode(), status=200)
    told = model.patch(INFO, b'{"metadata": {"k": %s}}' % after.encode(), status=200)
    for body in (told.body, model.get(INFO).body, info_of(store)):
        assert f'"k": {after}'.encode() in body


# ---- what cannot be read


def broken(document):
    """What may happen to a metadata.json on a disk, by hand, or in an earlier version of the server."""
    text = json.dumps(document, indent=2)
    return {"cut off": text[:-20], "empty": "", "another type": "[]",
            "half a character": text.replace('"d"', '"\\ud800"'),
            "not UTF-8": text.encode().replace(b'"d"', b'"\xff"'), "too long": text + "\t" * metadata.MAX_METADATA,
            "too deep": text.replace('"d"', "[" * 100 + "]" * 100)}


@pytest.mark.parametrize("how", list(broken({})))
def test_a_change_never_replaces_metadata_that_could_not_be_read(model, store, how):
    damaged = broken(json.loads(file_of(store).read_text()))[how]
    damaged = damaged if isinstance(damaged, bytes) else damaged.encode()
    file_of(store).write_bytes(damaged)
    app = app_of(store)
    assert eventually(lambda: app.get(INFO).json["sha256"] is None)
    detail = app.patch(INFO, b'{"framework": "onnx"}', status=409).json["detail"]
    assert "cannot be read" in detail and "upload" in detail
    assert verified(app)["skipped_models"] == 1
    assert file_of(store).read_bytes() == damaged
    assert app.get(BASE).body == b"data"
    app.put(BASE, b"data", status=200)      # which brings it in order
    assert app.patch(INFO, b'{"framework": "onnx"}', status=200).json["framework"] == "onnx"


@pytest.mark.parametrize("how", list(broken({})))
def test_a_corrupt_model_stays_corrupt_when_its_metadata_cannot_be_read(model, store, how):
    file_of(store, "model").write_bytes(b"dat!")
    assert verified(model)["corrupt_models"] == 1
    damaged = broken(json.loads(file_of(store).read_text()))[how]
    file_of(store).write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    for _ in range(2):      # the first question must not take its mark away
        with restarted(store) as other:
            app = app_of(other)
            assert app.get(INFO).json["corrupt"] is True
            assert app.get(BASE, expect_errors=True).status_int >= 400
            assert app.get("/health").json["corrupt_models"] == 1
            assert [entry["corrupt"] for entry in app.get("/models/list?corrupt=true").json["models"]] == [True]
    model.put(BASE, b"data", status=200)
    model.get(BASE, status=200)
    assert "corrupt_models" not in model.get("/health").json


def test_metadata_that_an_earlier_version_indented_is_read_whole_and_kept(model, store):
    document = json.loads(file_of(store).read_text())
    document["metadata"] = {f"k{number}": json.loads("[" * 40 + NESTED + "]" * 40) for number in range(20)}
    file_of(store).write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    assert file_of(store).stat().st_size > 4 << 20
    told = model.patch(INFO, b'{"framework": "onnx"}', status=200).json
    assert (told["metadata"], told["sha256"], told["description"]) == (document["metadata"], document["sha256"], "d")
    assert json.loads(info_of(store)) == told
    assert file_of(store).stat().st_size < 1 << 20


def test_a_metadata_file_that_is_not_there_hides_nothing_and_a_change_makes_one(model, store):
    file_of(store).unlink()
    assert model.patch(INFO, b'{"description": "new"}', status=200).json["sha256"] is None
    assert json.loads(info_of(store))["description"] == "new"


def test_metadata_that_cannot_be_written_leaves_what_is_there(model, store):
    before = file_of(store).read_bytes()
    for body in (b'{"metadata": {"k": 1e400}}', b'{"metadata": {"k": "\\ud800"}}', b'{"metadata": {"k": NaN}}',
                 json.dumps({"metadata": {f"k{number}": 1 for number in range(metadata.MAX_CUSTOM)}}).encode()):
        model.patch(INFO, body, status=400)
    assert file_of(store).read_bytes() == before


# ---- whatever is sent


def merged(target, patch):
    """RFC 7396 2, once more."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        result.pop(name, None) if value is None else result.update({name: merged(result.get(name), value)})
    return result


def canonical(value):
    return json.dumps(value, sort_keys=True)


hostile_text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\0", "\1" * 1400, "\x7f", "\u2028\x85", "\\", '"', "é" * 4096, "x" * 8192, "\N{PILE OF POO}",
                     "\ufeff", "__proto__", "sha256", "corrupt"]))
json_strings = st.one_of(
    hostile_text.map(json.dumps), hostile_text.map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"\\ud800"', '"\\udfff\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\/"', '"a\tb"', '"\\x"']))
json_scalars = st.one_of(
    json_strings, st.integers().map(str), st.floats().map(json.dumps),
    st.sampled_from(["null", "true", "false", "1", "1.0", "0", "-0", "-0.0", "1e400", "-1E400", "1e22", "1E5", "5e-324",
                     "9" * 400, "9" * 4300, "9" * 5000, "0.1", "NaN", "Infinity", "01", ""]))


def objects_of(values):
    pairs = st.lists(st.tuples(json_strings, values), max_size=4)   # the same name twice, too
    return pairs.map(lambda found: "{" + ", ".join(f"{name}: {value}" for name, value in found) + "}")


json_texts = st.one_of(
    st.recursive(json_scalars, lambda below: st.one_of(
        st.lists(below, max_size=4).map(lambda found: "[" + ",".join(found) + "]"), objects_of(below)), max_leaves=12),
    st.builds(lambda depth, kind: (kind[0] * depth) + "0" + kind[1] * depth,
              st.sampled_from([1, 60, 61, 62, 63, 64, 500]), st.sampled_from([("[", "]"), ('{"": ', "}")])),
    st.integers(1, 1500).map(lambda count: "[" + ",".join(["[[[]]]"] * count) + "]"))
patches = st.one_of(
    objects_of(json_texts).map(lambda custom: f'{{"metadata": {custom}}}'),
    st.builds(lambda one, two, three: f'{{"description": {one}, "framework": {two}, "metadata": {{"k": {three}}}}}',
              json_texts, json_strings, json_texts),
    json_texts)
pairs = st.dictionaries(hostile_text, hostile_text, max_size=5)
steps = st.one_of(*(st.tuples(st.just(kind), what)
                    for kind, what in (("put", pairs), ("form", pairs), ("patch", patches))))


def perform(app, kind, what):
    if kind == "put":
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in what.items())
        return app.put(f"{BASE}?{query}", b"data", expect_errors=True)
    if kind == "form":
        head = '--cut\r\nContent-Disposition: form-data; name="'
        body = "".join(f'{head}{name}"\r\n\r\n{value}\r\n' for name, value in (*what.items(), *NAMES.items()))
        body += f'{head}file"; filename="{"".join(what)}"\r\n\r\ndata\r\n--cut--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=cut"}
        return app.post("/models/upload", body.encode("utf-8", "replace"), headers=kind, expect_errors=True)
    return app.patch(INFO, what.encode("utf-8", "replace"), expect_errors=True)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=1, max_size=5))
@example([("patch", '{"metadata": {"k": 1}}'), ("patch", '{"metadata": {"k": true}}')])
@example([("put", {"a": "\1" * 8000}), ("form", {"b": "\2" * 8000, "\3": "x"}), ("patch", '{"metadata": {"c": 1}}')])
def test_what_was_answered_is_what_is_kept_whatever_was_sent(tmp_path_factory, sequence):
    with Storage(tmp_path_factory.mktemp("kept") / "models") as store:
        app = app_of(store)
        app.put(BASE, b"data", status=201)
        expected = app.get(INFO).body
        for kind, what in sequence:
            before, got = json.loads(expected), perform(app, kind, what)
            assert got.status_int < 500, (kind, what, got)
            if got.status_int < 300:
                told = {name: value for name, value in got.json.items() if name not in ("message", "unchanged")}
                if kind == "patch":
                    wanted = merged({name: before[name] for name in ("description", "framework", "metadata")},
                                    json.loads(what.encode("utf-8", "replace")))
                    assert canonical([told["description"], told["framework"], told["metadata"]]) == canonical(
                        [wanted.get("description"), wanted.get("framework"), wanted.get("metadata") or {}])
                expected = (json.dumps(told) + "\n").encode()
            assert app.get(INFO).body == info_of(store) == expected
            assert [json.loads(app.get("/models/list?format=ndjson").body)] == [json.loads(expected)]

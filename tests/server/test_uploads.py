"""Uploads by form and by PUT, under our own server and under WebTest: the same answers both ways."""

import json
import subprocess
from urllib.parse import quote, urlencode

import pytest
from support.common import sha256, staged
from support.site import DATA, FILE, Live, stores_nothing
from urllib3 import encode_multipart_formdata

from repository.model import NAME_FIELDS

# ---- what is answered

def test_the_answer_tells_all_that_is_known(site, names, target):
    fields = {**names, "description": "a tést", "framework": "torch", "stage": "prod", "note": ""}
    answer = site.post([*fields.items(), FILE])
    assert answer.status == 201
    assert {**answer.json, **names} == answer.json
    expected = {"size": len(DATA), "sha256": sha256(DATA), "path": f"{target[8:]}/model", "filename": "orig.pt",
                "description": "a tést", "framework": "torch", "metadata": {"stage": "prod", "note": ""}}
    assert {**answer.json, **expected} == answer.json
    assert answer.json["message"] and answer.json["url"].endswith(target) and answer.json["url"].startswith("http://")
    assert answer.headers["Location"] == answer.json["url"]
    assert answer.headers["ETag"] == f'"{sha256(DATA)}"'
    assert answer.headers["X-Request-Id"] and answer.headers["Content-Type"] == "application/json"
    assert (site.root / answer.json["path"]).read_bytes() == DATA
    info = site.send("GET", target + "/info").json
    assert {**answer.json, **info} == answer.json and info["uploaded_at"]


def test_created_is_201_replaced_is_200_and_the_same_again_is_unchanged(site, target):
    assert site.put(target, b"one").status == 201
    replaced = site.put(target, b"two")
    assert (replaced.status, replaced.json.get("unchanged")) == (200, None)
    before = site.files()
    again = site.put(target, b"two")
    assert (again.status, again.json["unchanged"]) == (200, True)
    assert {k: v for k, v in again.json.items() if k not in ("message", "unchanged")} == {
        k: v for k, v in replaced.json.items() if k != "message"}
    assert site.files() == before       # nothing rewritten
    assert site.put(target + "?stage=prod", b"two").json.get("unchanged") is None
    assert site.send("GET", target + "/info").json["metadata"] == {"stage": "prod"}


# ---- where the fields come from

@pytest.mark.parametrize("size", [0, 1, len(DATA), 3_000_000])
@pytest.mark.parametrize("way", ["fields before", "fields after", "fields around", "query", "both", "same twice"])
def test_names_come_as_fields_or_query_before_or_after_the_file(site, names, way, size):
    data = (DATA * (size // len(DATA) + 1))[:size]
    file, fields = ("file", ("m", data)), list(names.items())
    form, query = {
        "fields before": ([*fields, file], {}),
        "fields after":  ([file, *fields], {}),
        "fields around": ([*fields[:2], file, *fields[2:]], {}),
        "query":         ([file], names),
        "both":          ([fields[0], file, fields[1]], dict(fields[2:])),
        "same twice":    ([*fields, file, *fields], names),
    }[way]
    answer = site.post(form, f"?{urlencode(query)}" if query else "")
    assert (answer.status, answer.json["size"], answer.json["sha256"]) == (201, size, sha256(data))
    assert (site.root / answer.json["path"]).read_bytes() == data


NAMED = {"project_id": "p-form", "app_name": "a", "version": "1", "model_name": "m"}
CUSTOM = [(f"field{n}", str(n)) for n in range(65)]


@pytest.mark.parametrize(("fields", "query", "why"), [
    ([*NAMED.items(), FILE],                                    {"version": "2"},                   "version"),
    ([*NAMED.items(), FILE, ("version", "2")],                  {},                                 "version"),
    ([*NAMED.items(), FILE, ("stage", "a"), ("stage", "b")],    {},                                 "stage"),
    ([*NAMED.items(), FILE],                                    [("stage", "a"), ("stage", "b")],   "stage"),
    ([FILE],                                                    {},                                 "project_id"),
    ([("project_id", "p-form"), FILE],                          {"app_name": "a"},                  "version"),
    ([*NAMED.items(), FILE, FILE],                              {},                                 "file"),
    ([*NAMED.items()],                                          {},                                 "file"),
    ([*NAMED.items(), ("model", ("m", b"x"))],                  {},                                 "file"),
    ([*NAMED.items(), FILE, *CUSTOM],                           {},                                 "64"),
    ([*NAMED.items(), FILE, *CUSTOM[:40]],                      dict(CUSTOM[40:]),                  "64"),
    ([*NAMED.items(), FILE],                                    dict(CUSTOM),                       "64"),
    ([*NAMED.items(), FILE, ("note", "x" * 8193)],              {},                                 "note"),
    ([*NAMED.items(), FILE, ("description", "x" * 8193)],       {},                                 "description"),
    ([("framework", "x" * 8193), FILE],                         NAMED,                              "framework"),
    ([FILE],                                                    NAMED | {"description": "x" * 8193}, "description"),
    ([FILE],                                                    NAMED | {"note": "x" * 8193},       "note"),
    ([*NAMED.items(), FILE, ("note", b"\xff\xfe")],             {},                                 "note"),
    ([*NAMED.items(), FILE, ("file2", ("x", DATA))],            {},                                 "file2"),
    ([*NAMED.items(), FILE, ("file2", ("x", b"small"))],        {},                                 "file2"),
    ([*NAMED.items(), ("file2", ("x", b"small")), FILE],        {},                                 "file2"),
    ([*NAMED.items(), FILE, ("file2", ("", b"small"))],         {},                                 "file2"),
    ([*NAMED.items(), FILE, ("stage", ("stage", "prod"))],      {},                                 "stage"),
])
def test_a_form_that_is_not_one_clear_upload_is_refused(site, fields, query, why):
    answer = stores_nothing(site, lambda: site.post(fields, f"?{urlencode(query)}"), 400)
    assert why in answer.json["detail"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data", "application/json", "",
                                  "multipart/mixed; boundary=x", "multipart/form-data; boundary=other"])
def test_a_post_that_is_no_form_is_refused(site, kind):
    stores_nothing(site, lambda: site.send("POST", "/models/upload?" + urlencode(NAMED), DATA, Content_Type=kind), 400)


def test_64_custom_fields_are_kept_as_they_were_sent(site, names):
    custom = {**dict(CUSTOM[:62]), "quote\"d": "a\r\nb\0", "ünïcode": "\u6a21\U0001f600"}
    answer = site.post([*names.items(), FILE, *((k, (None, v)) for k, v in custom.items())])
    assert (answer.status, answer.json["metadata"]) == (201, custom)


@pytest.mark.parametrize(("fields", "metadata"), [
    ({"metadata": '{"stage": "prod", "accuracy": 0.93}'},       {"stage": "prod", "accuracy": 0.93}),
    ({"metadata": '{"a": [1, {"b": true}], "c": {"d": 1}}'},    {"a": [1, {"b": True}], "c": {"d": 1}}),
    ({"metadata": '{"n": 1, "x": 1.0, "s": "1", "t": true}'},   {"n": 1, "x": 1.0, "s": "1", "t": True}),
    ({"metadata": "{}"},                                        {}),
    ({"metadata": '{"gone": null}'},                            {}),        # as in a PATCH
    ({"stage": "prod", "metadata": '{"accuracy": 0.93}'},       {"stage": "prod", "accuracy": 0.93}),
    ({"stage": "prod", "metadata": '{"stage": "prod"}'},        {"stage": "prod"}),
    ({"metadata": json.dumps({f"k{n}": "x" * 8000 for n in range(64)})}, {f"k{n}": "x" * 8000 for n in range(64)}),
    ({"metadata": '{"metadata": {"k": 1}, "description": 2}'},  {"metadata": {"k": 1}, "description": 2}),
])
def test_custom_metadata_comes_as_one_object_with_its_types(site, names, target, fields, metadata):
    answer = site.post([*names.items(), *fields.items(), FILE])
    assert answer.status == 201 and json.dumps(answer.json["metadata"]) == json.dumps(metadata)
    if len(str(fields)) < 8000:     # of a URL
        assert site.put(target + "?" + urlencode(fields)).status == 200
        info = site.send("GET", target + "/info").json["metadata"]
        assert json.dumps(info, sort_keys=True) == json.dumps(metadata, sort_keys=True)


@pytest.mark.parametrize(("value", "says"), [
    *((value, "JSON object") for value in ("", "prod", '"prod"', "[1]", "null", "1", '{"a": 1', '{"a": NaN}',
                                           '{"a": 1e999}', '{"a": "\\ud800"}')),
    ('{"a":' * 65 + "1" + "}" * 65, "deeper"), ('{"a":' * 5000 + "1" + "}" * 5000, "nested"),
    (json.dumps({f"k{n}": n for n in range(65)}), "64"), (json.dumps({"note": "x" * 8192}), "note"),
    ('{"stage": "test"}', "stage"),
])
def test_a_field_metadata_that_is_no_object_of_fields_is_refused(site, value, says):
    form = [*NAMED.items(), ("stage", "prod"), ("metadata", value), FILE]
    assert says in stores_nothing(site, lambda: site.post(form), 400).json["detail"]
    if len(value) < 8000:
        query = urlencode(NAMED | {"stage": "prod", "metadata": value})
        stores_nothing(site, lambda: site.post([FILE], "?" + query), 400)


def test_only_one_field_metadata_is_kept_in_memory(site):
    long = ("metadata", json.dumps({f"k{n}": "x" * 8000 for n in range(64)}))
    assert "metadata" in stores_nothing(site, lambda: site.post([*NAMED.items(), long, long, FILE]), 400).json["detail"]


def test_a_file_that_was_not_chosen_in_a_browser_is_no_field(site, names):
    answer = site.post([*names.items(), FILE, ("second", ("", b""))])
    assert (answer.status, answer.json["metadata"]) == (201, {})


# ---- PUT

@pytest.mark.parametrize("kind", ["application/octet-stream", "application/x-www-form-urlencoded",
                                  "application/json", "application/zip", "nonsense", "text/plain"])
def test_the_content_type_of_a_put_is_ignored(site, target, kind):
    for data in (DATA, b"", b"--x\r\n\r\n--x--\r\n", b"a=b&c=d"):
        answer = site.put(target, data, Content_Type=kind)
        assert answer.status in (200, 201) and (site.root / answer.json["path"]).read_bytes() == data


def test_requests_puts_a_file_and_chunks(live_server, http, names, target, tmp_path):
    (tmp_path / "m").write_bytes(DATA * 100)
    url, upload = live_server.url + target, live_server.url + "/models/upload"
    with (tmp_path / "m").open("rb") as file:
        assert http.put(url, data=file).json()["sha256"] == sha256(DATA * 100)
    chunked = http.put(url, params={"stage": "prod"}, data=(DATA[n:] for n in range(100)))
    assert (chunked.status_code, chunked.json()["metadata"]) == (200, {"stage": "prod"})
    assert http.get(url).content == b"".join(DATA[n:] for n in range(100))
    assert http.put(url, data=iter([])).json()["size"] == 0
    form, kind = encode_multipart_formdata([*names.items(), ("stage", "prod"), FILE])
    chunked = http.post(upload, data=iter([form[:99], form[99:]]), headers={"Content-Type": kind})
    assert (chunked.status_code, chunked.json()["sha256"]) == (200, sha256(DATA))
    posted = http.post(upload, files={"file": ('näme "1".pt', DATA)}, data={**names, "version": "2"})
    assert (posted.status_code, posted.json()["filename"]) == (201, 'näme "1".pt')


def test_curl_puts_a_file_a_pipe_and_a_form(live_server, names, target, tmp_path):
    (tmp_path / 'my"m.pt').write_bytes(DATA * 100)
    url = live_server.url + target

    def curl(*arguments, **options):
        run = subprocess.run(["curl", "-sf", *arguments], capture_output=True, check=True, cwd=tmp_path, **options)
        return json.loads(run.stdout)

    (tmp_path / "m.pt").write_bytes(DATA * 100)
    assert curl("-T", "m.pt", url.removesuffix("m.pt"))["model_name"] == "m.pt"
    assert curl("-T", "-", url, input=DATA)["sha256"] == sha256(DATA)
    for version, escape in (("8", []), ("9", ["--form-escape"])):
        fields = [x for k, v in {**names, "version": version}.items() for x in ("-F", f"{k}={v}")]
        answer = curl(*escape, *fields, "-F", 'file=@"my\\"m.pt"', live_server.url + "/models/upload")
        assert (answer["filename"], answer["sha256"]) == ('my"m.pt', sha256(DATA * 100))


@pytest.mark.parametrize("query", ["project_id=other", "version=2.0", "stage=a&stage=b", "description=" + "x" * 8193,
                                   "sha256=nonsense", "a=%ff", "&".join(f"f{n}={n}" for n in range(65))])
def test_a_put_with_a_query_that_cannot_be_is_refused(site, target, query):
    stores_nothing(site, lambda: site.put(f"{target}?{query}"), 400)


# ---- conditions

def test_deny_keeps_what_is_there(denying, names, target):
    assert denying.put(target, b"first").status == 201
    for send in (lambda: denying.put(target), lambda: denying.post([*names.items(), FILE]),
                 lambda: denying.post([FILE], "?" + urlencode(names))):
        stores_nothing(denying, send, 409)
    assert (denying.root / target[8:] / "model").read_bytes() == b"first"


OLD, OTHER = f'"{sha256(b"old")}"', f'"{sha256(b"other")}"'


@pytest.mark.parametrize(("exists", "header", "status"), [
    (False, {"If_None_Match": "*"},                 201),
    (True,  {"If_None_Match": "*"},                 412),
    (True,  {"If_None_Match": OLD},                 412),
    (True,  {"If_None_Match": OTHER},               200),
    (True,  {"If_Match": OLD},                      200),
    (True,  {"If_Match": f"{OTHER}, {OLD}"},        200),
    (True,  {"If_Match": "*"},                      200),
    (True,  {"If_Match": OTHER},                    412),
    (True,  {"If_Match": ""},                       412),
    (True,  {"If_Match": f"W/{OLD}"},               412),   # RFC 9110 13.1.1: strong comparison
    *((there, {"If_None_Match": malformed},         400)    # it would forbid nothing
      for there in (True, False) for malformed in ("", sha256(b"old"), OLD[:-1], f"w/{OLD}", f"*, {OLD}")),
    (False, {"If_Match": OLD},                      412),
    (False, {"If_Match": "*"},                      412),
])
def test_conditions_decide_whether_it_is_written(site, names, target, exists, header, status):
    for send in (lambda: site.put(target, **header), lambda: site.post([FILE, *names.items()], **header)):
        if exists:
            site.put(target, b"old")
        if status >= 400:
            stores_nothing(site, send, status)
        else:
            assert send().status == status
            site.send("DELETE", target)


# ---- names

GOOD = ["a", "Z", "0", "_", "_x", "a" * 128, "1.0.0-rc.1+build_5", "A.B-C+D_e", "a..b", "v1.", "nul", "model",
        "metadata.json"]
BAD = ["", ".", "..", ".hidden", ".staging", "-x", "+x", "a b", " a", "a ", "a\n", "\na", "a\r\n", "a\t", "a\0b",
       "/", "/etc", "../x", "a/../b", "..\\x", "a\\b", "\u00e9", "\uff41", "\u0661", "a" * 129, "a%", "%2e%2e", "%2f",
       "a:b", "~", "a*", "a?b", "a#b", "a&b", "a;b", "$x", "a\x7f", "\u2024\u2024", "a\u200b", "\U0001f600"]
EACH_WAY = pytest.mark.parametrize("way", ["path", "query", "form"])


def upload_as(site, way, names):
    if way == "path":
        return site.put("/models/" + "/".join(quote(name, safe="") for name in names.values()), b"x")
    if way == "query":
        return site.post([("file", ("m", b"x"))], "?" + urlencode(names))
    return site.post([*names.items(), ("file", ("m", b"x"))])


@EACH_WAY
@pytest.mark.parametrize("place", NAME_FIELDS)
def test_good_names_are_good_at_every_place(site, names, way, place):
    for good in GOOD:
        answer = upload_as(site, way, {**names, place: good})
        assert answer.status in (200, 201) and answer.json[place] == good, good


@EACH_WAY
@pytest.mark.parametrize("place", NAME_FIELDS)
def test_bad_names_are_refused_at_every_place_and_nothing_appears(site, way, place):
    before = site.files()
    for bad in BAD + ([] if way == "path" or place == "model_name" else ["a/b"]):
        answer = upload_as(site, way, {**NAMED, place: bad})
        assert 400 <= answer.status < 500 and answer.json["detail"], bad
        if way != "path" or (bad and "/" not in bad):
            assert answer.status == 400 and "1 to 128" in answer.json["detail"], bad
        assert staged(site.root) == [], bad
    assert site.files() == before


@EACH_WAY
@pytest.mark.parametrize("reserved", ["list", "upload"])
def test_projects_that_a_route_would_hide_are_refused(site, names, way, reserved):
    stores_nothing(site, lambda: upload_as(site, way, {**names, "project_id": reserved}), 400)
    for place in NAME_FIELDS[1:]:
        assert upload_as(site, way, {**names, place: reserved}).status in (200, 201)


@pytest.mark.parametrize("path", ["p/a/1/%2e%2e", "p/a/1/..", "p/a/../m", "/p/a/1/m", "p//1/m", "p/a/1/m/",
                                  "p/a/1/m//n", "p/a/1", "../models/p/a/1/m", "p/a/1/.%09.", "p/a/1/m%0a", "p/a/1/%00"])
def test_a_path_that_does_not_lead_to_a_model_stores_nothing(site, path):
    before = site.files()
    assert 400 <= site.put("/models/" + path).status < 500
    assert site.files() == before and staged(site.root) == []


@pytest.mark.parametrize("path", ["p/a/1/a%2Fb", "p/a/1/%2f", "p/a/1%2f..%2f..%2fx/m", "p%2fa/1/m", "p/a%2F1/m/"])
def test_an_encoded_slash_is_part_of_a_name_and_so_refused(live_server, path):
    site = Live(live_server, live_server.storage)   # WSGI alone, and so WebTest, cannot tell it from a slash
    stores_nothing(site, lambda: site.put("/models/" + path), 400)


def test_a_percent_encoded_name_is_the_same_name(site, target):
    assert site.put(target.replace("m.pt", "%6d%2Ept")).json["model_name"] == "m.pt"
    assert site.put(target).json["unchanged"] is True
    assert site.put(target + "?project_id=" + target.split("/")[2]).json["unchanged"] is True

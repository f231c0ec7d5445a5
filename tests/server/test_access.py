"""Who may do what: rights by verb and prefix, by which header one is known, what may not be told, the file."""

import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
from support.common import app_of, sha256, staged
from support.credentials import ALL, HASH, basic, bearer, line
from support.shelf import MODELS, names_of

from model_server import ROUTES
from repository.model import NAME_FIELDS
from server.access import Caller, Grant, parse_tokens
from storage import Storage


@pytest.fixture
def guarded(make_app, tokens):
    """guarded(line, ..., anonymous=…): the application with these tokens, holding p/a/1/m and q/a/1/m."""
    def maker(*lines, **settings):
        for path in ("p/a/1/m", "q/a/1/m"):
            make_app().put(f"/models/{path}", b"the model")
        return make_app(tokens_file=tokens(*lines), **settings)
    return maker


# ---- every route, every verb, every kind of caller


def form(data, fields):
    """A form with the file first."""
    parts = [b"name=file; filename=m\r\n\r\n" + data,
             *(f'name="{name}"\r\n\r\n{text}'.encode() for name, text in fields.items())]
    return b"".join(b"--B\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--B--\r\n"


FORM = form(b"bytes", {})
UPLOAD = "/models/upload?project_id=p&app_name=a&version=1&model_name=new"
VERSION = "/models/{project_id}/{app_name}/{version}"
MODEL = VERSION + "/{model_name}"
EACH = [    # method, route, path, body, the verb, the status for who may, for who may elsewhere or lacks the verb
    ("GET",    "/health",                        "/health",                      b"",   None,     200, 200),
    ("GET",    "/metrics",                       "/metrics",                     b"",   "read",   403, 403),
    ("POST",   "/models/upload",                 UPLOAD,                         FORM,  "create", 201, 403),
    ("GET",    "/models/list",                   "/models/list",                 b"",   "read",   200, 200),
    ("GET",    "/models/{project_id}",           "/models/p",                    b"",   "read",   200, 200),
    ("GET",    "/models/{project_id}/{app_name}", "/models/p/a",                 b"",   "read",   200, 200),
    ("GET",    VERSION,                          "/models/p/a/1",                b"",   "read",   200, 200),
    ("GET",    MODEL + "/info",                  "/models/p/a/1/m/info",         b"",   "read",   200, 404),
    ("PATCH",  MODEL + "/info",                  "/models/p/a/1/m/info",         b"{}", "update", 200, 403),
    ("GET",    MODEL + ".sha256",                "/models/p/a/1/m.sha256",       b"",   "read",   200, 404),
    ("GET",    MODEL,                            "/models/p/a/1/m",              b"",   "read",   200, 404),
    ("GET",    MODEL,                            "/models/p/a/latest/m",         b"",   "read",   200, 404),
    ("PUT",    MODEL,                            "/models/p/a/1/n",              b"n",  "create", 201, 403),
    ("DELETE", MODEL,                            "/models/p/a/1/m",              b"",   "delete", 200, 403),
    ("DELETE", "/models/{project_id}",           "/models/p?recursive=true",     b"",   "delete", 200, 403),
    ("DELETE", "/models/{project_id}/{app_name}", "/models/p/a?recursive=true",  b"",   "delete", 200, 403),
    ("DELETE", VERSION,                          "/models/p/a/1?recursive=true", b"",   "delete", 200, 403),
    ("POST",   "/verify",                        "/verify",                      b"",   "read",   403, 403),
    ("POST",   "/verify/{project_id}",           "/verify/p",                    b"",   "read",   202, 404),
    ("POST",   "/verify/{project_id}/{app_name}", "/verify/p/a",                 b"",   "read",   202, 404),
    ("POST",   VERSION.replace("models", "verify"), "/verify/p/a/1",             b"",   "read",   202, 404),
    ("POST",   MODEL.replace("models", "verify"), "/verify/p/a/1/m",             b"",   "read",   202, 404),
    ("GET",    "/verify",                        "/verify",                      b"",   "read",   200, 200),
]


def test_the_table_has_every_route_with_its_verb():
    assert {(method, path, verb) for method, path, _, _, verb, _, _ in EACH} == {
        (route.method, route.path, route.verb) for route in ROUTES}


def ask(app, method, path, body, headers):
    kind = {"Content-Type": "multipart/form-data; boundary=B"} if body is FORM else {}
    return app.request(path, method=method, body=body, headers={**headers, **kind}, expect_errors=True)


@pytest.mark.parametrize(("method", "path", "body", "verb", "right", "wrong"), [
    (method, *rest) for method, _, *rest in EACH])
def test_every_route_asks_for_its_verb_below_the_prefix(guarded, store, method, path, body, verb, right, wrong):
    others = ",".join(other for other in ALL.split(",") if other != verb)
    app = guarded(line("right", verb or "read", "p"), line("elsewhere", ALL, "q"), line("app", ALL, "p/b"),
                  line("shorter", ALL, "pp"), line("lacking", others, "p"))
    before = list(store.keys())
    for name, headers, status in (
        ("none", {}, 401), ("bad", {"Authorization": "Bearer nonsense"}, 401),
        *((name, bearer(name), wrong) for name in ("elsewhere", "app", "shorter", "lacking")),
    ):
        got = ask(app, method, path, body, headers)
        assert got.status_int == (200 if verb is None else status), name
        if got.status_int == 401:
            assert got.headers.getall("WWW-Authenticate") == ['Bearer realm="models"', 'Basic realm="models"']
        elif got.status_int == 403:
            assert verb in got.json["detail"] and "WWW-Authenticate" not in got.headers
        elif verb == "read" and status == 200:
            assert not [model for model in got.json.get("models", []) if model["project_id"] == "p"]
        if method == "GET":
            assert app.head(path, headers=headers, expect_errors=True).status_int == got.status_int
    assert list(store.keys()) == before and staged(store.root) == []
    assert ask(app, method, path, body, bearer("right")).status_int == right


def test_a_verification_is_shown_to_who_may_read_what_is_verified(guarded):
    app = guarded(line("p", "read", "p"), line("q", "read", "q"), line("all", "read", "*"))
    assert app.post("/verify/p/a", headers=bearer("p"), status=202).json["below"] == "p/a"
    for name, seen in (("p", True), ("all", True), ("q", False)):
        got = app.get("/verify", headers=bearer(name), status=200).json
        assert (got.get("below") == "p/a") == seen and ("corrupt" in got) == seen, name
        assert set(got) >= {"running", "waiting"}
    app.get("/verify", status=401)


def test_metrics_take_read_of_everything(guarded):
    app = guarded(line("all", "read", "*"), line("p", ALL, "p"))
    assert "model_repository_models 2" in app.get("/metrics", headers=bearer("all"), status=200)
    assert "read everything" in app.get("/metrics", headers=bearer("p"), status=403).json["detail"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/models/upload", "/models/list", "/models/p",
                                  "/models/p/a/1/m"])
def test_options_405_and_unknown_paths_are_for_everybody(guarded, path):
    app = guarded(line("t", "read", "p"))
    assert app.options(path, status=204).headers["Allow"]
    app.request(path, method="BREW", status=405)
    app.get(f"/none{path}", status=404)


@pytest.mark.parametrize(("verbs", "prefix", "fresh", "existing"), [
    ("create", "p", 201, 403), ("update", "p", 403, 403), ("create,update", "p", 201, 200),
    ("create,update", "*", 201, 200),
    ("create,update", "p/a", 201, 200), ("create,update", "p/b", 403, 403), ("read,delete", "p", 403, 403),
])
@pytest.mark.parametrize("by", ["put", "query", "form"])
def test_replacing_takes_update_beside_create(guarded, store, verbs, prefix, fresh, existing, by):
    app = guarded(line("t", verbs, prefix))
    for name, status in (("new", fresh), ("m", existing)):
        names = {"project_id": "p", "app_name": "a", "version": "1", "model_name": name}
        if by == "put":
            got = app.put(f"/models/p/a/1/{name}", b"other", headers=bearer("t"), expect_errors=True)
        else:   # the names in the query, or behind the file
            query, fields = (urlencode(names), {}) if by == "query" else ("", names)
            got = app.request(f"/models/upload?{query}", method="POST", body=form(b"other", fields), expect_errors=True,
                              headers={**bearer("t"), "Content-Type": "multipart/form-data; boundary=B"})
        assert got.status_int == status, got.json
        if status == 403:
            assert ("update" if "create" in verbs and prefix != "p/b" else "create") in got.json["detail"]
            assert (store.root / "p/a/1" / name).exists() == (name == "m")
    assert staged(store.root) == []


@pytest.mark.parametrize("by", ["put", "query", "form"])
@pytest.mark.parametrize(("before", "path", "right"), [
    (["p/a/1/x"],               "p/a/1/x.sha256",        "p/a/1/x"),            # what `sha256sum -c` would read
    (["p/a/1/x.sha256"],        "p/a/1/x",               "p/a/1/x.sha256"),     # the same, planted before
    (["p/a/1/x.sha256"],        "p/a/1/x.sha256.sha256", "p/a/1/x.sha256"),
    (["p/a/1/x.sha256.sha256"], "p/a/1/x.sha256",        "p/a/1/x.sha256.sha256"),
    (["p/a/1/x"],               "p/a/latest/x",          "p/a/latest/x"),       # what `latest` would mean
    (["p/a/1/x"],               "p/a/latest/x.sha256",   "p/a/latest/x.sha256"),
    ([],                        "p/a/latest/y",          "p/a/latest/y"),       # what it would mean of later uploads
    ([],                        "p/a/1/y.sha256",        None),
    (["p/a/1/x"],               "p/a/2/x.sha256",        None),
    (["p/a/1/x"],               "p/a/1/y.sha256",        None),
    (["p/a/1/x"],               "p/a/1/x.sha256sum",     None),
    (["p/a/1/x"],               "p/a/2/latest",          None),
    (["p/a/1/x"],               "p/a/2/" + "n" * 128,    None),
])
def test_a_name_that_changes_what_another_url_says_takes_update(make_app, tokens, store, before, path, right, by):
    for name in before:
        make_app().put(f"/models/{name}", b"the model", status=201)
    app = make_app(tokens_file=tokens(line("new", "create", "p"), line("both", "create,update", "p/a")))
    names = dict(zip(NAME_FIELDS, path.split("/"), strict=True))

    def send(who, status):
        if by == "put":
            return app.put(f"/models/{path}", b"other", headers=bearer(who), status=status)
        query, fields = (urlencode(names), {}) if by == "query" else ("", names)
        return app.request(f"/models/upload?{query}", method="POST", body=form(b"other", fields), status=status,
                           headers={**bearer(who), "Content-Type": "multipart/form-data; boundary=B"})

    refused = send("new", 403 if right else 201)
    assert right is None or f"no permission to update {right}:" in refused.json["detail"]
    assert (store.root / path).exists() == (right is None) and staged(store.root) == []
    if right:
        send("both", 201)


def test_of_a_model_and_its_shadow_made_at_once_only_one_takes_create_alone(make_app, tokens):
    app = make_app(tokens_file=tokens(line("new", "create", "p")))
    for turn in range(20):
        paths, start = [f"/models/p/a/{turn}/{name}" for name in ("x", "x.sha256")], threading.Barrier(2)

        def send(path, start=start):
            start.wait()
            return app.put(path, b"bytes", headers=bearer("new"), expect_errors=True).status_int

        with ThreadPoolExecutor(2) as clients:
            assert sorted(clients.map(send, paths)) == [201, 403]


@pytest.mark.parametrize(("anonymous", "reads", "writes"), [("all", 200, 201), ("read", 200, 401), ("none", 401, 401)])
def test_what_may_be_done_without_a_token(guarded, anonymous, reads, writes):
    app = guarded(line("ci", "create", "p"), anonymous=anonymous)
    for path in ("/models/list", "/models/p", "/models/p/a/1/m", "/models/q/a/1/m/info", "/metrics"):
        app.get(path, status=reads)
    app.get("/models/p/a/1/none", status=404 if reads == 200 else 401)
    app.put("/models/p/a/2/m", b"x", status=writes)
    app.put("/models/p/a/3/m", b"x", headers=bearer("ci"), status=201)
    # a token takes nothing away, and a wrong one is told so
    app.get("/models/q/a/1/m", headers=bearer("ci"), status=200 if reads == 200 else 404)
    app.put("/models/q/a/3/m", b"x", headers=bearer("ci"), status=201 if writes == 201 else 403)
    app.get("/models/list", headers=bearer("nobody"), status=401)


def test_a_server_that_everybody_may_read_needs_no_tokens(make_app):
    make_app().put("/models/p/a/1/m", b"x")
    app = make_app(anonymous="read")
    app.get("/models/p/a/1/m", status=200)
    app.delete("/models/p/a/1/m", status=401)


def test_without_tokens_nobody_looks_at_a_token(app):
    app.put("/models/p/a/1/m", b"x", headers={"Authorization": "Basic of another server"}, status=201)


# ---- who it is


@pytest.mark.parametrize("given", [
    "Bearer token-of-t", "bearer token-of-t", "BEARER   token-of-t", " Bearer token-of-t ",
    basic(b"any:token-of-t"), basic(b":token-of-t"), basic("jös\u0301é:token-of-t".encode()), basic(b"\xff:token-of-t"),
    basic(b"x:token-of-t").replace("Basic", "bAsIc"),
])
def test_a_token_is_taken_as_bearer_and_as_the_password_of_any_user(guarded, given):
    app = guarded(line("t", "read", "p"))
    assert app.get("/models/p/a/1/m", headers={"Authorization": given}, status=200).body == b"the model"


WRONG = {
    "empty": "", "scheme alone": "Bearer", "no scheme": "token-of-t", "other scheme": "Digest token-of-t",
    "token of nobody": "Bearer token-of-x", "the hash": f"Bearer {sha256(b'token-of-t')}",
    "upper case": "Bearer TOKEN-OF-T", "a prefix": "Bearer token-of-", "longer": "Bearer token-of-t1",
    "two words": "Bearer token-of-t x", "two tokens": "Bearer token-of-t, Bearer token-of-t",
    "a comma": "Bearer token-of-t,", "as the user": basic(b"token-of-t:"), "no colon": basic(b"token-of-t"),
    "colon in it": basic(b"a:b:token-of-t"), "nothing": basic(b""), "NUL": basic(b"a:token-of-t\0"),
    "broken base64": "Basic a", "padding": "Basic =====", "no base64": "Basic !!!!", "url-safe": "Basic YTr_-___",
    "not ASCII": "Basic \xe9\xff", "bearer not ASCII": "Bearer \xe9", "huge": "Bearer " + "x" * 60_000,
    "huge basic": "Basic " + "QUFB" * 15_000, "huge spaces": "Bearer" + " " * 60_000,
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_token_of_ours_is_401(guarded, case):
    app = guarded(line("t", ALL, "*"))
    got = app.get("/models/p/a/1/m", headers={"Authorization": WRONG[case]}, status=401)
    assert got.headers.getall("WWW-Authenticate") and "token-of-t" not in got.text.replace("the token", "")
    app.get("/health", headers={"Authorization": WRONG[case]}, status=200)


@pytest.mark.parametrize("query", ["access_token=token-of-t", "token=token-of-t", "Authorization=Bearer%20token-of-t"])
def test_a_token_in_the_address_is_none(guarded, query):
    guarded(line("t", ALL, "*")).get(f"/models/list?{query}", status=401)


# ---- what may not be told


def seen(got):
    headers = sorted((name, value) for name, value in got.headers.items() if name != "X-Request-Id")
    return got.status_int, headers, got.body


SPIES = [   # method, path, headers: whatever is asked, what is there and what is not look the same
    *((method, "/models/p/a/1/m" + suffix, {}) for method in ("GET", "HEAD") for suffix in ("", ".sha256", "/info")),
    ("GET", "/models/p/a/latest/m", {}), ("GET", "/models/p/a/latest/m/info", {}),
    ("GET", "/models/p/a/1/m?sha256=" + 64 * "0", {}), ("GET", "/models/p/a/1/m", {"Range": "bytes=99-"}),
    ("GET", "/models/p/a/1/m", {"If-None-Match": "*"}), ("GET", "/models/p/a/1/m", {"If-Match": '"x"'}),
    *(("GET", path + query, {}) for path in ("/models/list", "/models/p", "/models/p/a", "/models/p/a/1")
      for query in ("", "?limit=1", "?format=txt", "?format=sha256sums", "?q=m", "?limit=1&q=m",
                    "?limit=1&after=o/a/1/m")),
    *(("PUT", "/models/p/a/1/m", headers) for headers in ({}, {"If-None-Match": "*"}, {"If-Match": "*"})),
    ("POST", UPLOAD.replace("=new", "=m"), {}),
    *((method, path, headers) for headers in ({}, {"If-Match": '"x"'}, {"If-Match": "*"})
      for method, path in (("PATCH", "/models/p/a/1/m/info"), ("DELETE", "/models/p/a/1/m"))),
    *(("DELETE", path + query, {}) for path in ("/models/p", "/models/p/a", "/models/p/a/1")
      for query in ("", "?recursive=true")),
]


@pytest.fixture(scope="module")
def two_worlds(tmp_path_factory):
    """The same tokens, and in the second world p/a/1/m."""
    place = tmp_path_factory.mktemp("worlds")
    (place / "tokens").write_text(line("q", ALL, "q") + line("everything", "read", "*") + line("b", ALL, "p/b"))
    with Storage(place / "without") as without, Storage(place / "with") as having:
        for path in ("p/a/1/m", "p/a/2/m"):
            app_of(having).put(f"/models/{path}", b"the model")
        yield [app_of(store, tokens_file=place / "tokens")
               for store in (without, having)]


@pytest.mark.parametrize(("method", "path", "headers"), SPIES)
@pytest.mark.parametrize("who", ["q", "b", None])
def test_what_may_not_be_read_looks_like_what_is_not_there(two_worlds, method, path, headers, who):
    body = FORM if method == "POST" else b'{"description": "x"}' if method in ("PUT", "PATCH") else b""
    without, having = (seen(ask(app, method, path, body, {**headers, **(bearer(who) if who else {})}))
                       for app in two_worlds)
    assert without == having
    assert without[0] == 401 if who is None else without[0] in (200, 403, 404)


@pytest.mark.parametrize(("method", "path", "headers"), [spy for spy in SPIES if spy[0] in ("GET", "HEAD")])
def test_it_looks_so_to_the_last_byte(two_worlds, method, path, headers):
    without, having = two_worlds
    missing = seen(ask(without, method, path, b"", {**headers, **bearer("everything")}))
    assert seen(ask(having, method, path, b"", {**headers, **bearer("q")})) == missing


@pytest.mark.parametrize(("method", "path", "body"), [
    ("PUT", "/models/p/a/1/m", b"another"), ("POST", UPLOAD.replace("=new", "=m"), FORM), ("PUT", "/models/p/a/1", b""),
    ("PATCH", "/models/p/a/1/m/info", b"{}"), ("DELETE", "/models/p/a/1/m", b""),
    ("PUT", "/models/p/a/@live?version=1", b""), ("DELETE", "/models/p/a/@live", b""),
])
def test_who_may_write_and_not_read_learns_no_digest_by_a_condition(guarded, make_app, store, method, path, body):
    app = guarded(line("writer", "create,update,delete", "*"))
    store.aliases.point("p", "a", "@live", "1", lambda current: None)
    version_tag = make_app().get("/models/p/a/1/m").headers["X-Version-ETag"]
    got = ask(app, method, path, body, {**bearer("writer"), "If-Match": '"x"'})
    assert got.status_int == 412
    secrets = sha256(b"the model"), '"1"', version_tag
    assert not [each for each in secrets if each in got.json["detail"] or each in str(got.headers)]


# ---- lists

PREFIXES = [    # the prefixes of a token, the models of test_lists that it may read
    (["*"], MODELS), (["p1"], MODELS[1:10]), (["p1/a"], MODELS[1:6]), (["p"], []), (["p1-x"], MODELS[10:11]),
    (["P"], MODELS[:1]),
    (["p2/a"], MODELS[12:]), (["p2/_a", "P"], [MODELS[0], MODELS[11]]), (["p1/b", "p1", "p1/a"], MODELS[1:10]),
    (["p1/b", "p1/a"], [*MODELS[1:6], *MODELS[8:10]]), (["p1/a+b", "p1/a-b"], MODELS[6:8]), (["p1", "*"], MODELS),
    (["p1/b", "p2", "none", "none/none"], [*MODELS[8:10], *MODELS[11:]]),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """The application with the models of test_lists, and a token t<i> for each of PREFIXES."""
    place = tmp_path_factory.mktemp("shelf")
    (place / "tokens").write_text("".join(line(f"t{i}", "read", prefix) for i, (prefixes, _) in enumerate(PREFIXES)
                                          for prefix in prefixes) + line("none", "create,update,delete", "*"))
    with Storage(place / "models") as store:
        for names in MODELS:
            app_of(store).put(f"/models/{'/'.join(names)}", b"x")
        yield app_of(store, tokens_file=place / "tokens")


@pytest.mark.parametrize("level", [(), ("p1",), ("p1", "a"), ("p1", "a", "1.0.0"), ("p2",), ("P",)], ids="/".join)
@pytest.mark.parametrize("number", range(len(PREFIXES)), ids=lambda i: " ".join(PREFIXES[i][0]))
def test_lists_pages_and_counts_hold_what_may_be_read(shelf, level, number):
    headers, expected = bearer(f"t{number}"), [m for m in PREFIXES[number][1] if m[: len(level)] == level]
    path, paths = "/models/" + ("/".join(level) or "list"), ["/".join(model) for model in expected]

    def get(query):
        return shelf.get(f"{path}{query}", headers=headers, status=200)

    for query in ("", "?q=", "?format=json"):
        assert [names_of(entry) for entry in get(query).json["models"]] == expected
        assert get(query).json["total_models"] == len(expected)
    assert get("?format=txt").text.split() == paths
    assert [entry.partition("/models/")[2] for entry in get("?format=urls").text.split()] == paths
    for form in ("ndjson", "sha256sums"):
        assert len(get(f"?format={form}").text.splitlines()) == len(paths)
    assert shelf.head(path, headers=headers).headers["Content-Length"] == get("").headers["Content-Length"]
    for query in ("?limit=1", "?limit=2&q="):
        found, after = [], ""
        while after is not None:
            page = get(query + (f"&after={after}" if after else ""))
            assert page.json["total_models"] == len(expected)
            found += [names_of(entry) for entry in page.json["models"]]
            after = page.json.get("next", "").replace("+", "%2B") or None
            assert bool(after) == ("Link" in page.headers)
        assert found == expected


def test_a_token_that_may_not_read_has_empty_lists(shelf):
    assert shelf.get("/models/list", headers=bearer("none"), status=200).json == {"models": [], "total_models": 0}


@pytest.mark.parametrize(("places", "names", "found"), [
    (["p"], ("ab",), []), (["ab"], ("abc",), []), (["p/a"], ("p",), [("p", "a")]), (["p/a"], ("p", "ab"), []),
    (["p/b", "p/a", "p/a"], (), [("p", "a"), ("p", "b")]), (["p/a", "p"], (), [("p",)]), (["*", "p"], ("p",), [("p",)]),
    (["p/a"], ("p", "a", "1", "m"), [("p", "a", "1", "m")]), ([], (), []),
])
def test_places_are_within_what_is_asked_and_none_within_another(places, names, found):
    grants = tuple(Grant(frozenset({"read"}), () if place == "*" else tuple(place.split("/"))) for place in places)
    assert Caller("t", grants).places("read", names) == found
    assert Caller("t", grants).places("create", names) == []


# ---- the file of tokens

BAD = {
    "three fields": f"n:{HASH}:read", "five fields": f"n:{HASH}:read:p:x", "a word": "hush",
    "no name": f":{HASH}:read:p", "name with a space": f"a b:{HASH}:read:p", "anonymous": f"anonymous:{HASH}:read:p",
    "short hash": f"n:{HASH[1:]}:read:p", "upper-case hash": f"n:{HASH.upper()}:read:p",
    "the token itself": "n:amr_hush:read:p", "unknown verb": f"n:{HASH}:read,write:p", "no verb": f"n:{HASH}::p",
    "letters": f"n:{HASH}:rc:p", "a space between": f"n:{HASH}:read, create:p", "no prefix": f"n:{HASH}:read:",
    "three names": f"n:{HASH}:read:p/a/1", "a slash behind": f"n:{HASH}:read:p/", "a star in it": f"n:{HASH}:read:p/*",
    "up": f"n:{HASH}:read:p/..", "a comment behind": f"n:{HASH}:read:p # hush", "reserved": f"n:{HASH}:read:list",
    "the same token, another name": f"n:{HASH}:read:p\nhush:{HASH}:read:p", "binary": "\ufffd\0",
    "form feed": f"#\nn:{HASH}:read:p\f:hush",
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named_by_its_number_and_never_shown(case):
    with pytest.raises(ValueError, match=r"^line \d+: ") as caught:
        parse_tokens(f"# ours\n\n{BAD[case]}\n")
    assert str(caught.value).startswith(f"line {3 + BAD[case].count(chr(10))}: ")
    assert "hush" not in str(caught.value) and HASH[1:] not in str(caught.value)


def test_a_token_may_have_several_lines_and_a_name_several_tokens():
    other = sha256(b"other")
    found = parse_tokens(f"# ours\r\n\r\n  n:{HASH}:read:p  \r\n\tn:{HASH}:create,read:q/a\n\n#n:x\nn:{other}:delete:*")
    assert {digest: [str(grant) for grant in caller.grants] for digest, caller in found.items()} == {
        HASH: ["read p", "read,create q/a"], other: ["delete *"]}
    assert {caller.name for caller in found.values()} == {"n"}


def test_a_file_that_an_editor_of_windows_wrote_works_or_says_why_not(make_app, tokens):
    path = tokens()
    path.write_bytes(b"\xef\xbb\xbf" + line("t", "read", "p").encode())     # UTF-8 with a BOM
    make_app(tokens_file=path).get("/models/p", headers=bearer("t"), status=200)
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = b"" if encoding == "utf-16" else "\ufeff".encode(encoding)
        path.write_bytes(mark + line("t", "read", "p").encode(encoding))
        with pytest.raises(ValueError, match="UTF-16: save it as UTF-8"):
            make_app(tokens_file=path)


def test_the_file_is_read_again_when_it_changes(guarded, tokens, caplog):
    app, path = guarded(line("t", "read", "p")), tokens(line("t", "read", "p"))
    caplog.set_level("INFO")

    def status(name):
        return app.get("/models/p/a/1/m", headers=bearer(name), expect_errors=True).status_int

    with path.open("a") as file:
        file.write("# another\n" + line("new", "read", "p"))
    assert (status("t"), status("new")) == (200, 200)
    path.write_text(line("t", "read", "p") + "hush:x\n" + line("more", "read", "p"))
    assert [status(name) for name in ("t", "new", "more", "new")] == [200, 200, 401, 200]   # the old ones
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and "line 2" in errors[0]
    path.unlink()
    assert [status(name) for name in ("t", "new", "t")] == [200, 200, 200]
    path.write_text(line("new", "read", "q") + line("new", "read", "p/a"))
    assert [status(name) for name in ("t", "new")] == [401, 200]
    path.with_name("next").write_text(line("not", "read", "p"))
    path.with_name("next").rename(path)
    assert [status(name) for name in ("new", "not")] == [401, 200]
    path.write_text("")     # all are taken back
    assert [status(name) for name in ("new", "not")] == [401, 401]
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
    assert "hush" not in caplog.text and "token-of" not in caplog.text and HASH not in caplog.text

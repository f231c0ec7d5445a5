"""The document at /openapi.json: valid, complete, and of one mind with the README, docs/api.md and the server."""

import re
from http import HTTPStatus

import pytest
from openapi_spec_validator import validate
from support.common import ROOT
from support.credentials import ALL, line

from server.about import ERRORS

METHODS = {"get", "head", "put", "post", "patch", "delete", "options"}
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
REFERENCE = (ROOT / "docs/api.md").read_text(encoding="utf-8")


def operations(document):
    """(method, path, operation) of all of them."""
    return [(method.upper(), path, operation) for path, item in document["paths"].items()
            for method, operation in item.items()]


def statuses(document):
    return {int(status) for _, _, operation in operations(document) for status in operation["responses"]}


@pytest.fixture
def document(app):
    return app.get("/openapi.json", status=200).json


@pytest.mark.parametrize("settings", [
    {}, {"anonymous": "read", "url_prefix": "/repository", "allowed_origins": frozenset({"https://ml.example.org"})},
], ids=str)
def test_it_is_valid(make_app, settings):
    validate(make_app(**settings).get("/openapi.json").json)


def test_every_route_tells_what_it_takes_and_answers(app):
    silent = [f"{route.method} {route.path}" for route in app.app.routes if route.about is None]
    assert silent == [], "describe them: the core's in server/descriptions.py, a room's with Route(…, about=…)"


def test_it_has_every_route_and_what_is_answered_beside_it(app, document):
    for route in app.app.routes:
        operation = document["paths"][route.path][route.method.lower()]
        names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
        assert names == route.fields
    for path, item in document["paths"].items():
        assert item.keys() <= METHODS and ("head" in item) == ("get" in item), path
        concrete = re.sub(r"{\w+}", "name", path)
        if "options" in item:
            allowed = app.options(concrete, status=204).headers["Allow"].split(", ")
            assert {method.upper() for method in item} == set(allowed), path


@pytest.mark.parametrize(("template", "path"), [
    ("/verify/{project_id}/{app_name}/{version}", "/verify/p/a/@live"),
    ("/verify/{project_id}/{app_name}/{version}/{model_name}", "/verify/p/a/@live/m"),
    ("/models/{project_id}/{app_name}/{version}/{model_name}/upload", "/models/p/a/@live/m/upload"),
])
def test_where_an_alias_cannot_stand_the_methods_of_its_path_are_404_as_told(app, document, template, path):
    app.options(path, status=404)
    assert "404" in document["paths"][template]["options"]["responses"]


@pytest.mark.parametrize(("status", "header"), [("206", "Range"), ("304", "If-None-Match"), ("412", "If-Match")])
def test_what_is_answered_to_a_header_is_told_with_the_header(document, status, header):
    silent = [path for method, path, operation in operations(document)
              if status in operation["responses"] and method in ("GET", "HEAD")
              and header not in {parameter["name"] for parameter in operation["parameters"]}]
    assert silent == []


@pytest.mark.parametrize(("value", "is_taken"), [
    ("*", True), ('"a"', True), ('W/"a", "b"', True), ("", False), ("a", False), ('"a', False), ('"a" "b"', False),
])
def test_a_condition_of_a_change_is_taken_in_the_form_that_is_told(app, document, value, is_taken):
    path = "/models/{project_id}/{app_name}/{version}/{model_name}"
    [told] = [each["schema"]["pattern"] for each in document["paths"][path]["put"]["parameters"]
              if each["name"] == "If-None-Match"]
    assert bool(re.search(told, value)) == is_taken
    app.put("/models/p/a/1/m", b"x", headers={"If-None-Match": value}, status=201 if is_taken else 400)


def test_operations_have_names_of_their_own(document):
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names) and all(re.fullmatch("[a-z_]+", name) for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_of_a_route_is_its_summary(document, page):
    rows = re.findall(r"^\| `([A-Z]+)` \| `(/\S+)` \| (.+) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {(method, path): re.sub(r"\[(.+?)\]\(\S+\)", r"\1", text) for method, path, text in rows}
    told = {(method, path): operation["summary"] for method, path, operation in operations(document)}
    assert {row: told.get(row) for row in wanted} == wanted


def test_the_errors_are_those_of_the_reference_in_its_words():
    rows = dict(re.findall(r"^\| (\d{3}) \| (.+?)(?:\. See \[.*)? \|$", REFERENCE, re.MULTILINE))
    assert rows == {str(status): answer.text for status, answer in ERRORS.items()}


def test_the_reference_and_the_document_name_the_same_statuses(make_app, tokens):
    document = make_app(tokens_file=tokens(line("t", ALL, "*"))).get("/openapi.json").json
    text = re.sub(r"```.*?```", "", REFERENCE, flags=re.DOTALL)
    named = {int(number) for number in re.findall(r"(?<![\w.,-])([2-5]\d\d)(?![\w-]|[.,]\d)", text)} & {*HTTPStatus}
    assert named == statuses(document) | {405}      # the answer to methods that are not in it


def test_what_is_told_of_a_model_is_all_of_its_info(app, document):
    info = app.put("/models/p/a/1/m", b"x", status=201).json
    model = document["components"]["schemas"]["Model"]
    assert set(model["required"]) == model["properties"].keys() == info.keys() - {"message"}


def test_nobody_needs_a_token_for_it_and_it_says_who_does(make_app, tokens):
    file = tokens(line("t", ALL, "*"))
    for anonymous, free in (("none", set()), ("read", {"read"}), ("all", {"read", "create", "update", "delete"})):
        app = make_app(tokens_file=file, anonymous=anonymous)
        document = app.get("/openapi.json", status=200).json
        assert document["components"]["securitySchemes"].keys() == {"bearer", "basic"}
        for route in app.app.routes:
            operation = document["paths"][route.path][route.method.lower()]
            wanted = operation.get("security", [{}])
            assert ({"bearer": []} in wanted) == (route.verb is not None), route
            assert ({} in wanted) == (route.verb is None or route.verb in free), route
            assert ("401" in operation["responses"]) == (route.verb is not None), route


def test_without_tokens_it_says_nothing_of_them(document):
    assert "securitySchemes" not in document["components"]
    assert not any("security" in operation for _, _, operation in operations(document))
    assert 401 not in statuses(document)


def test_it_names_the_prefix_and_what_other_origins_get(make_app):
    app = make_app(url_prefix="/repository", allowed_origins=frozenset({"https://ml.example.org"}))
    answer = app.get("/openapi.json", headers={"Origin": "https://ml.example.org"})
    assert answer.json["servers"] == [{"url": "/repository"}]
    told = answer.json["paths"]["/models/list"]["get"]["responses"]["200"]["headers"]
    assert {name for name in answer.headers if name.startswith(("Access", "Vary"))} <= told.keys()


def test_it_is_asked_for_again_at_no_cost(app):
    first = app.get("/openapi.json", status=200)
    assert (first.content_type, first.headers["Cache-Control"]) == ("application/json", "no-cache")
    again = app.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]}, status=304)
    assert (again.body, again.headers["ETag"]) == (b"", first.headers["ETag"])
    assert app.head("/openapi.json", status=200).headers["Content-Length"] == str(len(first.body))
    assert app.options("/openapi.json", status=204).headers["Allow"] == "GET, HEAD, OPTIONS"
    app.get("/openapi.json", headers={"If-Match": '"another"'}, status=412)


def test_a_test_that_gets_what_no_route_tells_fails(app):
    """What every other test under WebTest relies on."""
    route = next(route for route in app.app.routes if route.path == "/models/list")
    object.__setattr__(route, "about", route.about.joined(route.about))
    app.get("/models/list")
    object.__setattr__(route, "about", type(route.about)("list", "", {204: route.about.answers[200]}))
    with pytest.raises(AssertionError, match=r"answers 200, .* GET /models/list .* server/descriptions\.py"):
        app.get("/models/list")

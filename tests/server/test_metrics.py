"""GET /metrics, read back with the official parser, and the dashboard that is made of it."""

import json
import re
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.common import ROOT

from repository.tree_index import FRESH

PREFIX = "model_repository_"
DASHBOARD = json.loads((ROOT / "deploy/grafana.json").read_text(encoding="utf-8"))
QUERIES = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]


def scrape(app):
    page = app.get("/metrics", status=200)
    assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(page.text):
        assert family.documentation and family.type != "unknown", family
        for sample in family.samples:
            found[sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))] = sample.value
    return found


def labels(**given):
    return tuple(sorted(given.items()))


def test_a_fresh_server_has_nothing_to_tell(app):
    page = scrape(app)
    assert page["models", ()] == page["stored_bytes", ()] == page["uploads_in_flight", ()] == 0
    assert page["free_bytes", ()] > 0 and page["process_resident_memory_bytes", ()] > 1_000_000
    assert page["process_open_fds", ()] > 2 and page["process_cpu_seconds_total", ()] > 0


def test_requests_and_bytes_are_counted_by_route_and_status(app):
    app.put("/models/p/a/1/m", b"x" * 1000, status=201)
    app.put("/models/p/a/1/m", b"x" * 1000, status=200)
    app.get("/models/p/a/1/m", status=200)
    app.get("/models/p/a/2/m", status=404)
    app.get("/nowhere/at/all", status=404)
    app.request("/health", method="BREW", status=405)
    page, route = scrape(app), "/models/{project_id}/{app_name}/{version}/{model_name}"
    assert page["requests_total", labels(route=route, method="PUT", status="201")] == 1
    assert page["requests_total", labels(route=route, method="GET", status="404")] == 1
    assert page["requests_total", labels(route="none", method="GET", status="404")] == 1
    assert page["requests_total", labels(route="none", method="other", status="405")] == 1
    assert page["received_bytes_total", ()] == 2000 and page["sent_bytes_total", ()] > 1000
    assert (page["models", ()], page["stored_bytes", ()]) == (1, 1000)
    assert page["request_seconds_count", labels(route=route)] == 4
    assert page["request_seconds_bucket", labels(route=route, le="+Inf")] == 4
    steps = [value for (name, _), value in page.items() if name == "request_seconds_bucket"]
    assert steps and all(value >= 0 for value in steps)


def test_a_replacement_and_a_delete_change_what_is_stored(app):
    app.put("/models/p/a/1/m", b"x" * 1000)
    app.put("/models/p/a/1/n", b"x" * 10)
    assert (scrape(app)["models", ()], scrape(app)["stored_bytes", ()]) == (2, 1010)
    app.put("/models/p/a/1/m", b"y" * 7)
    assert scrape(app)["stored_bytes", ()] == 17
    app.delete("/models/p/a/1/n")
    assert (scrape(app)["models", ()], scrape(app)["stored_bytes", ()]) == (1, 7)


@pytest.mark.parametrize(("path", "headers", "reason"), [
    ("/models/p/a/.1/m", {}, "InvalidName"),
    ("/models/p/a/1/big", {}, "TooLarge"),
    ("/models/p/a/1/m", {"If-Match": '"none"'}, "PreconditionFailed"),
    ("/models/p/a/1/m", {"X-Checksum-Sha256": "0" * 64}, "DigestMismatch"),
])
def test_refused_uploads_are_counted_by_reason(make_app, path, headers, reason):
    app = make_app(max_size=100)
    app.put(path, b"x" * (101 if "big" in path else 9), headers=headers, expect_errors=True)
    page = scrape(app)
    assert page["uploads_refused_total", labels(reason=reason)] == 1
    assert page["uploads_in_flight", ()] == 0


def test_reads_that_fail_are_no_refused_uploads(app):
    app.get("/models/p/a/1/m", status=404)
    assert not [name for name, _ in scrape(app) if name == "uploads_refused_total"]


def test_an_upload_on_its_way_is_in_flight(live_server, http):
    with live_server.connect() as wire:
        wire.send("PUT /models/flight/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", b"x" * 50)
        while "\nmodel_repository_uploads_in_flight 1\n" not in http.get(live_server.url + "/metrics").text:
            pass
        wire.send(b"x" * 50)
        assert wire.response()[0] == 201


@pytest.mark.needs("strace", "a process that may be traced")
def test_a_scrape_looks_at_no_model(start, http, tmp_path):
    """But for the first: 200 directories of 200 models are there, and no call of 20 scrapes names one of them."""
    server, trace = start(), tmp_path / "trace"
    for number in range(200):
        http.put(f"{server.url}/models/proj{number % 9}/app/{number}/m", data=b"x").raise_for_status()
    assert "\nmodel_repository_models 200\n" in http.get(f"{server.url}/metrics").text
    time.sleep(FRESH)   # for less than that a list would not look either
    with subprocess.Popen(["strace", "-f", "-y", "-qq", "-o", trace, "-e", "trace=%file,%desc",
                           "-p", str(server.process.pid)]) as tracer:
        while not trace.exists() or "probe-" not in trace.read_text():
            http.get(f"{server.url}/health")
        for _ in range(20):
            assert http.get(f"{server.url}/metrics").status_code == 200
        tracer.terminate()
    calls = trace.read_text()
    assert calls.count("/proc/self/statm") == 20    # the trace is one of scrapes
    assert not re.findall(r".*(?:proj\d|/models/(?!\.staging)).*", calls)


# ---- the dashboard


def test_every_metric_and_label_of_the_dashboard_is_one_that_a_server_exports(live_server, http):
    url = f"{live_server.url}/models/dashboard/a/1/m"
    http.put(url, data=b"x")
    http.put(url, data=b"x", headers={"If-None-Match": "*"})    # a refused one
    labels = {}
    for family in text_string_to_metric_families(http.get(f"{live_server.url}/metrics").text):
        for it in family.samples:
            labels.setdefault(it.name, {"instance"}).update(it.labels)
    used = set()
    for query in QUERIES:
        names = re.findall(rf"\b(?:{PREFIX}|process_)\w+", query["expr"])
        assert names and set(names) <= labels.keys(), query["expr"]
        used.update(names)
        said = [*re.findall(r"\b(?:by|on) \(([^)]*)\)", query["expr"]), *re.findall(r"(\w+)=", query["expr"]),
                *re.findall(r"{{(\w+)}}", query["legendFormat"])]
        assert {name.strip() for text in said for name in text.split(",")} <= labels[names[0]], query
    assert {name for name in labels if name.startswith(PREFIX)} - used == {
        f"{PREFIX}request_seconds_{part}" for part in ("count", "sum")}     # each is of use to somebody


def test_the_dashboard_has_panels_that_ask_the_source_that_was_chosen():
    assert len(DASHBOARD["panels"]) == len({panel["id"] for panel in DASHBOARD["panels"]}) > 10
    assert all(panel["title"] and panel["targets"] for panel in DASHBOARD["panels"])
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    asking = [*QUERIES, *DASHBOARD["panels"], variables["instance"]]
    assert {it["datasource"]["uid"] for it in asking} == {"${datasource}"}
    grids = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    places = [(it["x"] + x, it["y"] + y) for it in grids for x in range(it["w"]) for y in range(it["h"])]
    assert len(places) == len(set(places)) and max(x for x, _ in places) < 24   # none upon another

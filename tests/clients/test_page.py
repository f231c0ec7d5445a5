"""The page in a real browser: each thing that it does, as a person does it."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.browser import Tab
from support.common import ROOT, eventually
from support.live import running
from support.needs import read_only_but
from support.proxy import proxy
from support.sample_models import ENCODER, TEXT, team
from support.tars import tar_with

pytest_plugins = ["support.browser"]
pytestmark = pytest.mark.needs("chromium")
PIECE = 256 << 10     # the first that the page sends of a file
needs_resumption = pytest.mark.skipif(not (ROOT / "resumption").is_dir(), reason="that room has been taken away")
MODEL = "/models/search/reviews-encoder/1.2.0#model.safetensors"
VIEWS = ["/", "/models/search", "/models/search/reviews-encoder", "/models/search/reviews-encoder/1.2.0", MODEL,
         "/models/search/ranker/2024-11-01#ranker.pkl", "/models/list?q=encoder", "/models/nothing"]


def put(server, path, data=b"model", **fields):
    answer = requests.put(f"{server.url}/models/{path}", data=data, params=fields)
    assert answer.ok, answer.text
    return answer.json()


def info(server, path):
    return requests.get(f"{server.url}/models/{path}/info").json()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A server with models that no test changes."""
    with running(tmp_path_factory.mktemp("shop") / "models") as server:
        for path, data, fields in team():
            put(server, path, data, **fields)
        alias = f"{server.url}/models/search/reviews-encoder/@production"
        assert requests.put(alias, params={"version": "1.2.0"}).ok
        yield server


# ---- looking


def test_from_the_projects_down_to_a_model_and_back(shop, tab):
    t = tab(shop)
    assert t.rows() == ["fraud", "search", "speech", "vision"]
    assert t.text("#summary") == "26 models in 4 projects"
    t.shot("projects")
    t.go("search").go("reviews-encoder")
    assert t.rows() == ["1.10.0-rc.1", "1.2.0", "1.1.0", "1.0.0"]   # as people count, the newest first
    assert t.page.locator("tr", has_text="1.2.0").locator(".tag").first.inner_text() == "@production"
    t.shot("versions")
    t.go("1.2.0")
    assert t.rows() == ["config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"]
    assert TEXT in t.text("tbody")
    t.shot("files")
    address = t.page.url
    t.go("model.safetensors")
    assert t.text("#title") == "model.safetensors"
    t.shot("model")
    t.page.go_back()
    t.settled()
    assert t.page.url == address and requests.get(address).json()["total_models"] == 4   # what curl lists there
    t.page.reload()
    t.settled()
    assert len(t.rows()) == 4
    t.page.get_by_role("link", name="All projects").click()
    assert t.settled().rows() == ["fraud", "search", "speech", "vision"]
    t.open("/models/search/reviews-encoder/@production")
    assert t.text("#summary") == "4 files of version 1.2.0"


def test_a_model_is_told_with_all_that_is_known_of_it(shop, tab):
    t = tab(shop, MODEL)
    for text in (hashlib.sha256(ENCODER).hexdigest(), f"{len(ENCODER):,} bytes", "196,160", "F32: 3", "apache-2.0",
                 TEXT, "production", "pytorch", "not yet"):
        assert text in t.text("#view"), text
    t.open("/models/search/ranker/2024-11-01#ranker.pkl")
    assert "builtins.eval" in t.text(".warnings")
    t.shot("warnings")
    t.open("/models/search/reviews-encoder/1.2.0#onnx/model.onnx")
    assert t.text("#title") == "onnx/model.onnx"


def test_searching_and_filtering_as_lists_do(shop, tab):
    t = tab(shop, "/models/search")
    t.page.get_by_role("searchbox").fill("TUNED")
    t.page.keyboard.press("Enter")
    t.wait_for("#summary", "4 models found")
    t.shot("search")
    t.page.reload()     # it is in the address
    assert t.settled().text("#summary") == "4 models found"
    t.page.get_by_text("Filters").click()
    t.page.get_by_label("Metadata").fill("stage=candidate")
    t.shot("filters")
    t.button("Apply").click()
    t.wait_for("#summary", "1 model found")
    assert t.rows() == ["model.safetensors"] and "1.10.0-rc.1" in t.text("tbody")
    listed = requests.get(t.page.url).json()["models"]
    assert [model["version"] for model in listed] == ["1.10.0-rc.1"]
    t.page.get_by_text("Filters").click()
    t.button("Clear").click()
    t.wait_for("#summary", "18 models in 2 applications")
    t.open("/models/list?q=no-such-thing")
    assert "Nothing found" in t.text("#view")


@pytest.mark.parametrize(("label", "value", "query"), [
    ("Framework", "pytorch", "framework=pytorch"), ("Format", "safetensors", "model_format=safetensors"),
    ("Metadata", "stage=production", "metadata.stage=production"), ("State", "false", "corrupt=false"),
])
def test_a_filter_is_that_of_lists(shop, tab, label, value, query):
    t = tab(shop)
    t.page.get_by_text("Filters").click()
    field = t.page.locator("#filters").get_by_label(label)
    (field.select_option if label == "State" else field.fill)(value)
    t.button("Apply").click()
    listed = requests.get(f"{shop.url}/models/list?{query}").json()
    t.wait_for("#summary", re.compile(rf"^{listed['total_models']} models? found"))
    assert t.page.url == f"{shop.url}/models/list?{query}" and len(t.rows()) == len(listed["models"]) > 0
    t.page.reload()
    assert t.settled().page.locator("#filters").get_by_label(label).input_value() == value


def test_a_filter_that_is_wrong_is_shown_with_what_is_wrong(shop, tab):
    t = tab(shop)
    t.page.get_by_text("Filters").click()
    t.page.get_by_label("Metadata").fill("stage")
    t.page.get_by_text("Filters").click()
    t.page.get_by_role("searchbox").press("Enter")
    t.until("document.activeElement.name === 'metadata'")
    assert t.page.get_by_label("Metadata").is_visible()


def lines_of(t):
    titles, texts = (t.page.locator(f".lines {kind}").all_inner_texts() for kind in (".bar", "code"))
    return {title.split("\n")[0]: text for title, text in zip(titles, texts, strict=True)}


@pytest.mark.needs("huggingface_hub")
def test_the_line_for_clients_of_the_hub_does_too(shop, tab, tmp_path):
    line = lines_of(tab(shop, MODEL))["Hugging Face Hub"]
    settings = {"HF_HOME": str(tmp_path / "cache"), "PATH": f"{Path(sys.prefix) / 'hub/bin'}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", f"{line} --local-dir {tmp_path}"], env={**os.environ, **settings}, check=True,
                   capture_output=True, timeout=120)
    assert (tmp_path / "model.safetensors").read_bytes() == ENCODER


@pytest.mark.parametrize("project", ["a+b", "a--b", "a..b", "ends-", "ends.", "models", "n" * 97])
def test_where_clients_of_the_hub_refuse_the_names_there_is_no_line_for_them(server, tab, project):
    put(server, f"{project}/a/1/m")
    assert {"curl", "wget", "Python", "Check it"} == lines_of(tab(server, f"/models/{project}/a/1#m")).keys()


def test_the_lines_to_copy_do_what_they_say(shop, tab, tmp_path):
    t = tab(shop, MODEL)
    lines = lines_of(t)
    for title in ("curl", "wget", "Python"):
        place = tmp_path / title
        place.mkdir()
        command = [sys.executable, "-c", lines[title]] if title == "Python" else ["bash", "-c", lines[title]]
        subprocess.run(command, cwd=place, check=True, capture_output=True, timeout=60)
        assert (place / "model.safetensors").read_bytes() == ENCODER
        checked = subprocess.run(["bash", "-c", lines["Check it"]], cwd=place, capture_output=True, text=True,
                                 timeout=60)
        assert checked.stdout == "model.safetensors: OK\n"
    t.button("Copy the line for wget").click()
    t.page.get_by_role("searchbox").focus()
    t.page.keyboard.press("Control+V")
    assert t.page.get_by_role("searchbox").input_value() == lines["wget"]


def test_a_download_is_the_model(shop, tab, tmp_path):
    t = tab(shop, MODEL)
    with t.page.expect_download() as download:
        t.page.get_by_role("link", name="Download", exact=True).click()
    assert download.value.suggested_filename == "model.safetensors"
    assert Path(download.value.path()).read_bytes() == ENCODER


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1920])
def test_it_is_for_everybody(shop, tab, scheme, width):
    """No violation that axe finds, nothing wider than the window, and nothing moves while it is loaded."""
    from axe_playwright_python.sync_playwright import Axe
    t = tab(shop, None, color_scheme=scheme, viewport={"width": width, "height": 800})
    t.page.add_init_script("""window.shifts = [];
        new PerformanceObserver(list => window.shifts.push(...list.getEntries().map(entry => entry.value)))
            .observe({type: "layout-shift", buffered: true});""")
    found = {}
    for number, path in enumerate(VIEWS):
        t.open(path)
        found[path] = [violation["id"] for violation in Axe().run(t.page).response["violations"]]
        assert t.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert sum(t.page.evaluate("window.shifts")) < 0.01, path
        t.shot(f"view-{number}-{scheme}-{width}")
    t.open(MODEL)
    for name, opening in (("token", "Token"), ("upload", "Upload"), ("delete", "Delete…"), ("edit", "Edit")):
        t.button(opening).click()
        found[name] = [violation["id"] for violation in Axe().run(t.page).response["violations"]]
        t.shot(f"dialog-{name}-{scheme}-{width}")
        t.page.keyboard.press("Escape")
    assert not any(found.values()), found


def test_a_keyboard_is_enough(shop, tab):
    t = tab(shop)
    focused = "document.activeElement.textContent.trim() || document.activeElement.name"
    t.page.keyboard.press("Tab")
    assert t.page.evaluate(focused) == "Skip to the models"
    t.page.keyboard.press("Enter")
    t.page.keyboard.press("Tab")
    seen = []
    while "search" not in seen:
        seen.append(t.page.evaluate(focused))
        t.page.keyboard.press("Tab")
    assert seen == ["fraud", "search"]
    t.page.keyboard.press("Shift+Tab")
    t.page.keyboard.press("Enter")
    t.until("document.activeElement.id === 'title'")     # a reader hears where it is now
    assert t.text("#title") == "search"
    t.button("Token").focus()
    t.page.keyboard.press("Enter")
    assert t.page.evaluate("document.activeElement.name") == "token"
    t.page.keyboard.press("Escape")
    assert t.page.evaluate("document.activeElement.dataset.do") == "token"      # and is back where it was


# ---- changing


@pytest.fixture
def server(start):
    server = start()
    put(server, "p/a/1/m", b"model", description="old", stage="test", keep="it")
    return server


def test_metadata_are_edited(server, tab):
    t = tab(server, "/models/p/a/1#m")
    t.button("Edit").click()
    t.page.locator("#dialog").get_by_label("Description").fill("new\ntext")
    t.page.locator("#dialog").get_by_label("Framework").fill("onnx")
    t.page.locator("#dialog").get_by_label("Metadata").fill("{")
    t.button("Save").click()
    assert "not JSON" in t.text("#problem")
    t.page.locator("#dialog").get_by_label("Metadata").fill('{"keep": "it", "accuracy": 0.5}')
    t.button("Save").click()
    t.wait_for("dd", "0.5")
    found = info(server, "p/a/1/m")
    assert (found["description"], found["framework"], found["metadata"]) == (
        "new\ntext", "onnx", {"keep": "it", "accuracy": 0.5})


def test_of_metadata_only_what_was_edited_changes(server, tab):
    """A browser knows no whole numbers beyond 2**53, and 1.0 is 1 for it."""
    metadata = {"year": 2026, "rate": 0.00001, "seed": 2**64, "loss": 1.0, "constructor": 1,
                "data": {"train": 1, "test": [2]}}
    requests.patch(f"{server.url}/models/p/a/1/m/info", json={"metadata": {**metadata, "keep": None, "stage": None}})
    t = tab(server, "/models/p/a/1#m")
    assert {"2026", "0.00001"} <= {*t.page.locator("dd").all_inner_texts()}
    t.button("Edit").click()
    field = t.page.locator("#dialog").get_by_label("Metadata")
    edited = json.loads(field.input_value())
    del edited["constructor"], edited["data"]["train"]
    field.fill(json.dumps({**edited, "new": {"a": 1}}))
    t.button("Save").click()
    t.wait_for("dt", "new")
    del metadata["constructor"]
    found = info(server, "p/a/1/m")
    assert json.dumps(found["metadata"], sort_keys=True) == json.dumps(
        {**metadata, "data": {"test": [2]}, "new": {"a": 1}}, sort_keys=True)
    assert found["description"] == "old"


def test_what_was_not_edited_stays_as_it_is(server, tab):
    """A field of a page knows one end of lines alone, or none."""
    texts = {"description": "one\r\ntwo\rthree", "framework": "pytorch\n2.6"}
    requests.patch(f"{server.url}/models/p/a/1/m/info", json=texts).raise_for_status()
    t = tab(server, "/models/p/a/1#m")
    t.button("Edit").click()
    t.page.locator("#dialog").get_by_label("Metadata").fill('{"edited": true}')
    t.button("Save").click()
    t.wait_for("dt", "edited")
    found = info(server, "p/a/1/m")
    assert (found["metadata"], {name: found[name] for name in texts}) == ({"edited": True}, texts)
    t.button("Edit").click()
    t.page.locator("#dialog").get_by_label("Description").fill("")
    t.button("Save").click()
    t.wait_for(".prose", "None yet.")
    assert info(server, "p/a/1/m")["description"] is None


def test_metadata_are_shown_under_their_own_names(server, tab):
    metadata = {"learning_rate": 0.1, "framework": "of the metadata"}
    requests.patch(f"{server.url}/models/p/a/1/m/info", json={"framework": "onnx", "metadata": metadata})
    t = tab(server, "/models/p/a/1#m")
    for text in ("learning_rate", "onnx", "of the metadata"):
        assert text in t.text("#view")


def test_a_change_of_somebody_else_is_not_overwritten(server, tab):
    t = tab(server, "/models/p/a/1#m")
    t.button("Edit").click()
    requests.patch(f"{server.url}/models/p/a/1/m/info", json={"description": "theirs"})
    t.page.locator("#dialog").get_by_label("Description").fill("mine")
    t.button("Save").click()
    t.wait_for("#problem", "look again, then decide")
    assert info(server, "p/a/1/m")["description"] == "theirs"


def test_a_model_is_verified_and_found_intact_or_corrupt(server, tab):
    t = tab(server, "/models/p/a/1#m")
    t.button("Verify").click()
    t.wait_for("dd", "✓ intact")
    (server.storage / "p/a/1/m/model").write_bytes(b"MODEL")
    t.button("Verify").click()
    t.wait_for("dd", "corrupt")
    t.open("/models/p/a/1#m")
    t.wait_for("dd", "its bytes are not those that were uploaded")
    t.shot("corrupt")
    with t.page.expect_download() as download:
        t.page.get_by_role("link", name="Download it as it is").click()
    assert Path(download.value.path()).read_bytes() == b"MODEL"


def test_a_model_that_was_put_there_by_hand_is_shown_with_what_is_known(server, tab):
    (server.storage / "p/a/1/by-hand").mkdir()
    (server.storage / "p/a/1/by-hand/model").write_bytes(b"model")
    t = tab(server, "/models/p/a")
    assert t.page.locator("tbody time").count() == 1    # that of the other model
    t.go("1").go("by-hand")
    t.button("Verify").click()
    t.wait_for("#status", "Verified: not yet")      # its digest is not known
    t.button("Delete…").click()
    t.page.get_by_label("To confirm").fill("p/a/1/by-hand")
    t.button("Delete").click()
    t.wait_for("#summary", "1 file")


def test_deleting_wants_the_name_typed(server, tab):
    put(server, "p/a/2/m")
    put(server, "p/a/2/n")
    t = tab(server, "/models/p/a/1#m")
    t.button("Delete…").click()
    assert t.button("Delete").is_disabled()
    typed = t.page.get_by_label("To confirm, type p/a/1/m")
    typed.fill("p/a/1/")
    assert t.button("Delete").is_disabled()
    t.shot("deleting")
    typed.fill("p/a/1/m")
    t.button("Delete").click()
    t.wait_for("#view", "There is nothing here yet")
    t.open("/models/p/a/2")
    t.button("Delete…").click()
    assert "2 models will be gone" in t.text("#dialog")
    t.page.get_by_label("To confirm").fill("p/a/2")
    t.button("Delete").click()
    t.wait_for("#title", "a")
    assert requests.get(f"{server.url}/models/list").json()["total_models"] == 0


def test_a_model_that_was_replaced_meanwhile_is_not_deleted(server, tab):
    t = tab(server, "/models/p/a/1#m")
    t.button("Delete…").click()
    put(server, "p/a/1/m", b"another")
    t.page.get_by_label("To confirm").fill("p/a/1/m")
    t.button("Delete").click()
    t.wait_for("#problem", "look again, then decide")
    assert info(server, "p/a/1/m")["size"] == 7


def test_by_an_alias_the_version_that_it_stands_for_is_deleted(server, tab):
    requests.put(f"{server.url}/models/p/a/@live", params={"version": "1"}).raise_for_status()
    t = tab(server, "/models/p/a/@live")
    t.button("Delete…").click()
    t.page.get_by_label("To confirm, type p/a/1").fill("p/a/1")
    t.button("Delete").click()
    t.wait_for("#problem", "the alias @live of p/a points at 1")
    assert requests.get(f"{server.url}/models/p/a").json()["aliases"] == {"@live": "1"}


def test_what_is_shown_is_deleted_and_not_what_is_on_its_way(server, tab):
    put(server, "p/a/2/m")
    t = tab(server, "/models/p/a/1")
    held = []
    t.page.route("**/models/p/a?*", lambda route: held.append(route))
    t.page.locator("#crumbs").get_by_role("link", name="a", exact=True).click()
    t.wait_for("#title", "a")
    t.button("Delete…").click()
    assert "1 model will be gone" in t.text("#dialog")
    assert t.page.get_by_label("To confirm, type p/a/1").is_visible()
    for route in held:
        route.continue_()


def test_a_dialog_leaves_nothing_to_the_next_one(server, tab):
    t = tab(server, "/models/p/a/1#m")
    t.button("Delete…").click()
    t.button("Cancel").click()
    t.button("Edit").click()
    t.page.locator("#dialog").get_by_label("Framework").fill("onnx")
    t.button("Save").click()
    t.wait_for("dd", "onnx")


# ---- uploading


def fill(t, **names):
    for label, text in names.items():
        t.page.locator("#dialog").get_by_label(label, exact=True).fill(text)


@needs_resumption
def test_a_file_is_uploaded_with_a_button(server, tab, tmp_path):
    (tmp_path / "my model (1).bin").write_bytes(b"uploaded" * 1000)
    t = tab(server, "/models/p")
    choose(t, tmp_path / "my model (1).bin")
    assert t.page.get_by_label("Project").input_value() == "p"
    assert "my model (1).bin → my_model__1_.bin" in t.text("#names")
    fill(t, Application="b", Version="1", Name="m.bin", Description="of the page", Framework="onnx")
    t.shot("uploading")
    t.page.locator("#dialog-go").click()
    t.wait_for("#transfers-title", "1 of 1 file uploaded")
    found = info(server, "p/b/1/m.bin")
    assert (found["size"], found["description"], found["framework"]) == (8000, "of the page", "onnx")
    t.wait_for("tbody", "b")        # the list has it
    t.shot("uploaded")


def folder(tmp_path, **files):
    place = tmp_path / "bert"
    for path, data in {"config.json": b"{}", "onnx/model.onnx": b"onnx" * 100, "onnx/deep/er.bin": b"deep",
                       ".git/config": b"hidden", ".DS_Store": b"hidden", **files}.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    return place


FOLDER = ["config.json", "onnx/deep/er.bin", "onnx/model.onnx"]


@needs_resumption
def test_a_folder_becomes_a_version(server, tab, tmp_path):
    t = tab(server)
    t.button("Upload").click()
    t.page.set_input_files("#folder", folder(tmp_path))
    assert t.page.get_by_label("Version").input_value() == "bert"
    fill(t, Project="p", Application="nlp")
    t.page.locator("#dialog-go").click()
    t.wait_for("#transfers-title", "3 of 3 files uploaded")
    listed = requests.get(f"{server.url}/models/p/nlp/bert").json()["models"]
    assert [model["model_name"] for model in listed] == FOLDER


def dropped(t, *paths):
    """Files and folders are dragged over the page and dropped."""
    session = t.page.context.new_cdp_session(t.page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    t.page.locator("#drop").wait_for()
    t.shot("dropping")
    session.send("Input.dispatchDragEvent", {"type": "drop", "x": 300, "y": 300, "data": data})


@needs_resumption
def test_a_folder_is_dropped_anywhere(server, tab, tmp_path):
    t = tab(server, "/models/p/nlp/2.0")
    dropped(t, folder(tmp_path, **{f"many/{n:03}": b"x" for n in range(120)}))     # a browser lists them by the hundred
    t.wait_for("#dialog", "123 files")
    t.shot("dropped")
    t.page.locator("#dialog-go").click()
    t.wait_for("#transfers-title", "123 of 123 files uploaded")
    t.wait_for("#summary", "123 files")
    t.shot("folder-uploaded")


@needs_resumption
def test_a_file_is_dropped_on_the_dialog(server, tab, tmp_path):
    (tmp_path / "m").write_bytes(b"dropped")
    t = tab(server, "/models/p/b/1")
    t.button("Upload").click()
    fill(t, Version="2")
    dropped(t, tmp_path / "m")
    t.wait_for("#names", "m")
    t.page.locator("#dialog-go").click()
    t.wait_for(".done", "7 B uploaded")
    assert info(server, "p/b/2/m")["size"] == 7


@needs_resumption
def test_a_model_that_exists_is_replaced_on_request_alone(server, tab, tmp_path):
    (tmp_path / "m").write_bytes(b"another")
    t = tab(server, "/models/p/a/1")
    for is_wanted in (False, True):
        choose(t, tmp_path / "m")
        t.page.get_by_label("Replace models that exist").set_checked(is_wanted)
        t.page.locator("#dialog-go").click()
        t.wait_for(*((".done", "7 B uploaded") if is_wanted else (".failed", "There is a model of this name")))
        assert info(server, "p/a/1/m")["size"] == (7 if is_wanted else 5)
    assert info(server, "p/a/1/m")["metadata"] == {}
    t.button("Clear").click()
    assert not t.page.locator("#transfers").is_visible()


@pytest.mark.parametrize("version", ["@live", "latest"])
def test_what_stands_for_a_version_is_none_to_upload_to(server, tab, version):
    """A version that is really called latest would hide all others."""
    requests.put(f"{server.url}/models/p/a/@live", params={"version": "1"}).raise_for_status()
    t = tab(server, f"/models/p/a/{version}")
    t.button("Upload").click()
    assert [t.page.get_by_label(name).input_value() for name in ("Application", "Version")] == ["a", ""]


@pytest.mark.parametrize(("names", "problem"), [
    ({"Application": "b", "Version": "1"}, "Choose a file or a folder first."),
    ({"Application": "b c", "Version": "1"}, None),      # the browser says it
])
def test_an_upload_that_cannot_be_is_not_begun(server, tab, names, problem):
    t = tab(server, "/models/p")
    t.button("Upload").click()
    fill(t, **names)
    t.page.locator("#dialog-go").click()
    if problem:
        assert t.text("#problem") == problem
    else:
        assert t.page.get_by_label("Application").evaluate("field => field.validity.patternMismatch")
    assert t.page.locator("#dialog").is_visible()


@needs_resumption
@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 5 * PIECE])
def test_a_file_of_any_size_arrives_as_it_is(server, tab, tmp_path, size):
    data = bytes(n * 7 & 255 for n in range(251)) * (size // 251) + b"\xfe" * (size % 251)
    (tmp_path / "file").write_bytes(data)
    t = tab(server, "/models/p/b/1")
    begin(t, tmp_path / "file")
    t.wait_for(".done", "uploaded")
    assert requests.get(f"{server.url}/models/p/b/1/file").content == data


@needs_resumption
def test_a_name_that_no_model_can_have_is_refused_before_the_file_is_read(server, tab, tmp_path):
    (tmp_path / "m").write_bytes(b"model")
    t = tab(server, "/models/p/b/1")
    choose(t, tmp_path / "m")
    fill(t, Name="../../other/m")
    t.page.locator("#dialog-go").click()
    assert t.page.get_by_label("Name").evaluate("field => field.validity.patternMismatch")
    fill(t, Name="onnx/m")
    t.page.locator("#dialog-go").click()
    t.wait_for(".done", "5 B uploaded")
    assert info(server, "p/b/1/onnx/m")["size"] == 5


def slow(t, bytes_a_second):
    session = t.page.context.new_cdp_session(t.page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1,
                                                      "uploadThroughput": bytes_a_second})


def choose(t, path):
    """Opens the dialog for an upload, with this file in it."""
    t.button("Upload").click()
    t.page.set_input_files("#files", path)


def begin(t, path):
    choose(t, path)
    t.page.locator("#dialog-go").click()


def begin_large(t, path, size):
    with path.open("wb") as file:
        for number in range(size >> 20):
            file.write(number.to_bytes(4, "big") * (1 << 18))
    begin(t, path)


def wait_for_sent(t, size):
    """Waits until that many bytes have been sent, and have been acknowledged."""
    t.wait_for(".say", "Sending: ")
    t.until(f"document.querySelector('.say').textContent.startsWith('Sending') "
            f"&& document.querySelector('progress').value >= {size}")


def begin_slowly(t, path, size, speed, sent):
    """Begins to upload a file of this size, at so many bytes a second, and waits until so many have been sent."""
    slow(t, speed)
    begin_large(t, path, size)
    wait_for_sent(t, sent)


def offsets_of(t):
    """Grows by the offset of each piece that the page sends."""
    sent = []
    t.page.on("request", lambda request: request.method in ("POST", "PUT")
              and sent.append(int(request.headers["upload-offset"])))
    return sent


def address_of(t):
    """Of the upload that the page goes on with."""
    with t.page.expect_request(lambda request: request.method == "PUT") as sent:
        pass
    return sent.value.url


@needs_resumption
def test_an_upload_tells_how_it_goes_and_is_cancelled(server, tab, tmp_path):
    t = tab(server, "/models/p/b/1")
    slow(t, 4 << 20)
    begin_large(t, tmp_path / "large", 64 << 20)
    t.wait_for(".say", re.compile(r"Sending: [0-9.]+ .B of 67\.1 MB · [0-9.]+ .B/s · \d+ s left"))
    t.shot("under-way")
    assert 0 < t.page.locator("progress").evaluate("bar => bar.value") < 64 << 20
    state = address_of(t)
    assert requests.get(state).headers["Upload-Offset"] != "0"
    t.button("Cancel").first.click()
    t.page.locator("#transfers").wait_for(state="hidden")
    assert requests.get(f"{server.url}/models/p/b/1").json()["total_models"] == 0
    eventually(lambda: 'uploads_in_flight 0' in requests.get(f"{server.url}/metrics").text)
    eventually(lambda: requests.get(state).status_code == 404)     # nothing of it is left


@needs_resumption
def test_what_waits_is_uploaded_when_others_are_cancelled(server, tab, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(5):
        (tmp_path / "many" / f"{number}").write_bytes(b"%d" % number * (4 << 20))
    t = tab(server, "/models/p/b/1")
    slow(t, 1 << 20)
    begin(t, [*(tmp_path / "many").iterdir()])
    t.page.locator("#rows li.running").nth(2).wait_for()
    for _ in range(3):
        t.page.locator("#rows li.running").get_by_role("button").first.click()
    t.page.locator("#rows li.running").nth(1).wait_for()
    slow(t, -1)
    t.wait_for("#transfers-title", "2 of 2 files uploaded")


@needs_resumption
def test_all_of_it_is_cancelled_at_once(server, tab, tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(5):
        (tmp_path / "many" / f"{number}").write_bytes(b"%d" % number * (4 << 20))
    t = tab(server, "/models/p/b/1")
    slow(t, 1 << 20)
    begin(t, [*(tmp_path / "many").iterdir()])
    t.wait_for(".say", "Sending")
    t.button("Cancel all").click()
    t.page.locator("#transfers").wait_for(state="hidden")
    slow(t, -1)
    eventually(lambda: "uploads_in_flight 0" in requests.get(f"{server.url}/metrics").text)
    assert requests.get(f"{server.url}/models/p/b/1").json()["total_models"] == 0


@needs_resumption
@pytest.mark.parametrize("answer", ["null", '{"detail": "the proxy is tired"}', "<h1>Busy</h1>"])
def test_whatever_a_proxy_answers_is_told_and_the_upload_tried_again(server, tab, tmp_path, answer):
    (tmp_path / "m").write_bytes(b"model")
    t = tab(server, "/models/p/b/1")
    t.page.route("**/upload*", lambda route: route.fulfill(status=503, content_type="application/json", body=answer))
    begin(t, tmp_path / "m")
    what = "the proxy is tired" if "tired" in answer else "It answered 503"
    t.wait_for(".broken", f"{what} · Trying again in 1 s")
    t.page.unroute("**/upload*")
    t.wait_for(".done", "5 B uploaded")


@needs_resumption
def test_a_server_that_comes_back_gets_the_rest_of_an_upload(start, tab, tmp_path):
    server = start()
    t = tab(server, "/models/p/b/1")
    slow(t, 16 << 20)
    begin_large(t, tmp_path / "large", 96 << 20)
    t.wait_for(".say", "Sending")
    server.stop(signal.SIGKILL)
    t.wait_for(".broken", "Trying again in")
    t.shot("broken-connection")
    slow(t, -1)
    again = start(SERVER_PORT=str(server.port))
    t.wait_for(".done", "100.7 MB uploaded")
    assert info(again, "p/b/1/large")["size"] == 96 << 20


@needs_resumption
def test_a_file_that_changes_while_it_is_sent_is_not_tried_again(start, tab, tmp_path):
    t = tab(start(), "/models/p/b/1")
    slow(t, 16 << 20)
    begin_large(t, tmp_path / "large", 96 << 20)
    t.wait_for(".say", "Sending")
    (tmp_path / "large").write_bytes(b"something else")
    t.wait_for(".failed", "The file has changed meanwhile: choose it again.")


@needs_resumption
def test_what_arrived_before_a_break_is_not_sent_again(start, tab, tmp_path):
    server = start()
    t = tab(server, "/models/p/b/1")
    sent = offsets_of(t)
    begin_slowly(t, tmp_path / "large", 160 << 20, speed=24 << 20, sent=80e6)
    server.stop(signal.SIGKILL)
    t.wait_for(".broken", "Trying again in")
    before = len(sent)
    slow(t, -1)
    again = start(SERVER_PORT=str(server.port))
    t.wait_for(".done", "167.8 MB uploaded")
    assert info(again, "p/b/1/large")["sha256"] == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
    assert sent.count(0) == 1 and min(sent[before:]) > 32 << 20


@needs_resumption
def test_after_a_reload_the_same_file_continues(start, tab, tmp_path):
    server = start()
    t = tab(server, "/models/p/b/1")
    begin_slowly(t, tmp_path / "large", 96 << 20, speed=24 << 20, sent=50e6)
    t.page.on("dialog", lambda dialog: dialog.accept())     # "Leave the page?"
    t.page.reload()
    t.settled()
    slow(t, -1)
    sent = offsets_of(t)
    begin(t, tmp_path / "large")
    t.wait_for(".done", "100.7 MB uploaded")
    assert min(sent) >= 32 << 20
    assert info(server, "p/b/1/large")["sha256"] == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()


@needs_resumption
def test_a_folder_that_is_dropped_again_continues(server, tab, tmp_path):
    t = tab(server, "/models/p/nlp/2.0")
    put(server, "p/nlp/2.0/config.json", b"{}")
    dropped(t, folder(tmp_path))
    t.page.locator("#dialog-go").click()
    t.wait_for("#transfers-title", "3 of 3 files uploaded")
    passed_over = t.page.locator(".done", has_text="A model of this size is there already.")
    assert passed_over.locator(".name").all_inner_texts() == ["config.json"]


@needs_resumption
def test_an_upload_that_the_server_knows_no_more_begins_again(server, tab, tmp_path):
    """It expires, and another token has not begun it."""
    t = tab(server, "/models/p/b/1")
    begin_slowly(t, tmp_path / "large", 32 << 20, speed=4 << 20, sent=1e6)
    gone = address_of(t)
    t.page.on("dialog", lambda dialog: dialog.accept())     # "Leave the page?"
    t.page.reload()
    t.settled()
    assert requests.delete(gone).status_code == 204
    slow(t, -1)
    begin(t, tmp_path / "large")
    t.wait_for(".done", "33.6 MB uploaded")
    assert info(server, "p/b/1/large")["sha256"] == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()


@needs_resumption
def test_of_two_tabs_one_cancels_and_the_other_uploads_all_of_it(server, tab, tmp_path):
    """They share an upload, as a tab does with the one before its reload."""
    t = tab(server, "/models/p/b/1")
    begin_slowly(t, tmp_path / "large", 32 << 20, speed=4 << 20, sent=1e6)
    other = Tab(t.page.context.new_page(), t.url, tmp_path)
    other.open("/models/p/b/1")
    slow(other, 4 << 20)
    begin(other, tmp_path / "large")
    wait_for_sent(other, 1e6)
    t.button("Cancel").first.click()
    other.wait_for(".broken", "Trying again in")
    slow(other, -1)
    other.wait_for(".done", "33.6 MB uploaded")
    assert info(server, "p/b/1/large")["sha256"] == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()


@needs_resumption
def test_an_upload_whose_last_answer_was_lost_is_not_sent_again(server, tab, tmp_path):
    """The browser does not hear that it was stored, and asks."""
    (tmp_path / "m").write_bytes(b"model" * 100_000)
    t, lost = tab(server, "/models/p/b/1"), []

    def lose(route):
        if route.request.method != "PUT" or lost:
            return route.continue_()
        lost.append(route.fetch().status)
        return route.abort()

    t.page.context.route("**/upload?*", lose)
    sent = offsets_of(t)
    choose(t, tmp_path / "m")
    t.page.get_by_label("Replace models that exist").check()
    t.page.locator("#dialog-go").click()
    t.wait_for(".done", "500.0 kB uploaded")
    assert (sent, lost) == ([0, PIECE], [201])
    assert info(server, "p/b/1/m")["sha256"] == hashlib.sha256(b"model" * 100_000).hexdigest()


# ---- tokens, reading alone, other pages


def granted(*grants):
    return [f"{name}:{hashlib.sha256(name.encode()).hexdigest()}:{verbs}:{prefix}\n" for name, verbs, prefix in grants]


@pytest.fixture
def guarded(start, tokens):
    path = tokens(*granted(("ann", "read,create,update,delete", "*"), ("bob", "read", "p")))
    server = start(MODEL_TOKENS_FILE=str(path))
    for place in ("p/a/1/m", "q/a/1/m"):
        answer = requests.put(f"{server.url}/models/{place}", data=b"model", headers={"Authorization": "Bearer ann"})
        assert answer.status_code == 201
    return server


def enter(t, token):
    t.button("Enter a token").click()
    t.page.locator("#dialog").get_by_role("textbox").fill(token)
    t.button("Use this token").click()


def test_401_and_403_are_told_in_words_and_a_token_mends_them(guarded, tab, tmp_path):
    t = tab(guarded)
    assert "requires a token" in t.text("#notice")
    t.shot("no-token")
    enter(t, "nonsense")
    t.wait_for("#notice", "does not know this token")
    enter(t, "bob")
    t.wait_for("tbody", "p")
    assert t.rows() == ["p"]        # what he may not read is not there
    t.open("/models/p/a/1#m")       # the tab keeps it
    t.button("Edit").click()
    t.button("Save").click()
    t.wait_for("#problem", "You are not allowed to do this: the token bob has no permission to update p/a/1/m")
    t.button("Cancel").click()
    (tmp_path / "file").write_bytes(b"x")
    begin(t, tmp_path / "file")
    t.wait_for(".failed", "You are not allowed to do this")
    t.shot("not-allowed")
    other = t.page.context.new_page()
    other.goto(guarded.url)
    other.wait_for_selector("#notice:not([hidden])")        # another tab does not have it


@pytest.mark.parametrize("way", ["picked", "in memory"])
def test_a_download_with_a_token(guarded, tab, way):
    t = tab(guarded, None)
    t.page.add_init_script("sessionStorage.setItem('token', 'bob'); " + (
        "delete window.showSaveFilePicker" if way == "in memory" else """
        window.showSaveFilePicker = async ({suggestedName}) =>
            (await navigator.storage.getDirectory()).getFileHandle(suggestedName, {create: true})"""))
    t.open("/models/p/a/1#m")
    if way == "picked":
        t.button("Download").click()
        read = """async () => (await (await (await navigator.storage.getDirectory()).getFileHandle('m', {create: true}))
            .getFile()).text()"""
        eventually(lambda: t.page.evaluate(read) == "model")
    else:
        with t.page.expect_download() as download:
            t.button("Download").click()
        assert Path(download.value.path()).read_bytes() == b"model"
    assert 'Authorization: Bearer $TOKEN' in t.text(".lines") and "bob" not in t.text(".lines")


def test_where_everybody_may_read_a_link_downloads_with_a_token_too(start, tokens, tab):
    server = start(MODEL_TOKENS_FILE=str(tokens(*granted(("ann", "read,create", "*")))), MODEL_ANONYMOUS="read")
    requests.put(f"{server.url}/models/p/a/1/m", data=b"model", headers={"Authorization": "Bearer ann"})
    t = tab(server, None)
    t.page.add_init_script("sessionStorage.setItem('token', 'ann')")
    t.open("/models/p/a/1#m")
    with t.page.expect_download() as download:
        t.page.get_by_role("link", name="Download", exact=True).click()
    assert Path(download.value.path()).read_bytes() == b"model"


HOSTILE = ["<img src=x onerror=\"document.title='taken'\">", "<script>document.title='taken'</script>", "{root}",
           "\u202ednammoc", "a" * 8000, "\u001b[31m", "${document.title='taken'}", "javascript:alert(1)",
           "مرحبا بالعالم"]


def test_what_others_wrote_is_text_and_nothing_else(start, tab):
    server = start()
    for number, text in enumerate(HOSTILE):
        put(server, f"p/a/1/m{number}", b"model")
        answer = requests.patch(f"{server.url}/models/p/a/1/m{number}/info", json={
            "description": text, "framework": text, "metadata": {text[:100]: text, "list": [text, {text[:50]: None}]}})
        assert answer.ok, answer.text
    t = tab(server, "/models/p/a/1")
    assert len(t.rows()) == len(HOSTILE)
    t.shot("hostile-list")
    for number, text in enumerate(HOSTILE):
        t.open(f"/models/p/a/1#m{number}")
        assert t.page.locator(".prose").text_content() == text
        assert t.page.locator("#view img, #view script, #view iframe").count() == 0
        assert t.page.title() == f"p/a/1/m{number} · Model repository"
        assert t.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        t.shot(f"hostile-{number}")


def test_an_address_made_by_others_is_text_too(shop, tab):
    t = tab(shop, "/models/search/reviews-encoder/1.2.0#%3Cimg%20src=x%20onerror=alert(1)%3E")
    t.wait_for("#notice", "is not a name")
    assert t.page.locator("main img").count() == 0
    t.open("/models/search/reviews-encoder/1.2.0#%")
    t.wait_for("#notice", "is not a name")
    t.open("/models/list?q=%3Cimg%20src=x%3E&metadata.%3Cb%3E=x")
    assert t.page.locator("main img, main b b").count() == 0


@pytest.mark.parametrize("dots", ["..", "%2e%2e", "..%2f.."])
def test_an_address_with_dots_shows_no_model_of_another_place(shop, tab, dots):
    """Its title and the name to be typed for a deletion would begin with the place where it is not."""
    t = tab(shop, f"/models/search/ranker/2024-11-01#{dots}/../../reviews-encoder/1.2.0/model.safetensors")
    assert t.text("#title") == "2024-11-01" and t.rows() == ["ranker.pkl"]


@pytest.mark.needs("a mount namespace")
def test_a_storage_that_is_only_read_shows_no_buttons_that_cannot_work(tmp_path, tab):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with running(models) as server:
        put(server, "p/a/1/m")
    with running(models, *read_only_but(elsewhere)) as server:
        t = tab(server, "/models/p/a/1#m")
        t.wait_for("#health", "read-only")
        for name in ("Upload", "Delete…", "Edit"):
            assert not t.button(name).is_visible()
        assert t.button("Verify").is_visible()
        t.shot("read-only")
        t.open("/models/none")
        assert t.text("#view").strip() == "There is nothing here yet."


def test_no_page_of_another_origin_frames_it_or_reads_through_it(shop, start, tab):
    other = start()
    t = tab(shop)
    told = t.page.evaluate("""async url => {
        const asked = {};
        for (const method of ["PUT", "DELETE", "PATCH"])
            asked[method] = await fetch(url + "/models/p/a/1/m", {method, body: "x"})
                .then(answer => answer.status, () => "refused");
        const frame = document.body.appendChild(document.createElement("iframe"));
        frame.src = url + "/";
        await new Promise(loaded => { frame.onload = loaded; setTimeout(loaded, 3000); });
        try { asked.frame = frame.contentDocument?.title ?? "refused"; } catch { asked.frame = "refused"; }
        return asked;
    }""", other.url)
    assert told == {"PUT": "refused", "DELETE": "refused", "PATCH": "refused", "frame": "refused"}
    t.complaints.clear()    # the policy of the page itself refused them, and said so
    assert requests.get(f"{other.url}/models/list").json()["total_models"] == 0


def test_below_a_path_of_a_proxy(start, tab):
    server = start(URL_PREFIX="/repository")
    requests.put(f"{server.url}/repository/models/p/a/1/m", data=b"model")
    t = tab(server, "/repository")
    for name in ("p", "a", "1", "m"):
        t.go(name)
    assert t.page.url == f"{server.url}/repository/models/p/a/1#m"
    assert f"{server.url}/repository/models/p/a/1/m" in t.text(".lines")
    t.page.get_by_role("link", name="All projects").click()
    assert t.settled().rows() == ["p"]


def test_below_a_proxy_that_wants_a_cookie(shop, tab):
    """As people are signed in to many servers: without the cookie, the proxy answers with a page of its own."""
    def as_proxy(route):
        if "seat=1" in (route.request.all_headers().get("cookie") or ""):
            route.continue_()
        else:
            route.fulfill(status=401, content_type="text/html", body="<h1>Sign in</h1>")

    t = tab(shop, None)
    t.page.context.add_cookies([{"name": "seat", "value": "1", "url": shop.url}])
    t.page.context.route("**/*", as_proxy)
    t.open()
    assert t.rows() == ["fraud", "search", "speech", "vision"]


@needs_resumption
@pytest.mark.needs("nginx", "openssl")
def test_through_the_proxy_with_tls(start, tls, tab, tmp_path):
    server = start(TRUSTED_PROXY="127.0.0.1")
    with proxy(tmp_path / "nginx", tls, server.port) as front:
        t = tab(front, "/models/p/b/1", ignore_https_errors=True)
        begin_large(t, tmp_path / "large", 20 << 20)
        t.wait_for(".done", "21.0 MB uploaded")
        t.go("large")
        assert f"{front.url}/models/p/b/1/large" in t.text(".lines")
        assert info(server, "p/b/1/large")["sha256"] == hashlib.sha256((tmp_path / "large").read_bytes()).hexdigest()
        t.page.goto("about:blank")      # before nginx goes away


def test_a_server_that_does_not_answer_is_told_and_asked_again(start, tab):
    server = start()
    put(server, "p/a/1/m")
    t = tab(server)
    server.stop()
    t.page.locator("tbody a").click()
    t.wait_for("#notice", "cannot be reached")
    t.shot("not-reachable")
    start(SERVER_PORT=str(server.port))
    t.button("Try again").click()
    t.wait_for("tbody", "a")


def test_an_answer_that_breaks_off_is_told_and_asked_for_again(server, tab):
    t = tab(server)
    t.page.route("**/models/p?*", lambda route: route.fulfill(content_type="application/json", body='{"models": ['))
    t.page.locator("tbody a").click()
    t.wait_for("#notice", "broke off")
    t.page.unroute("**/models/p?*")
    t.button("Try again").click()
    t.wait_for("tbody", "a")


def test_an_action_that_the_server_does_not_answer_is_told_too(server, tab):
    t = tab(server, "/models/p/a/1#m")
    server.stop()
    t.button("Verify").click()
    t.wait_for("#notice", "cannot be reached")


# ---- many


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """100,000 models in 100 projects, as another program wrote them."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import tree
    root = tmp_path_factory.mktemp("crowd") / "models"
    root.mkdir()
    tree.build(root, tree.SHAPE)
    with running(root) as server:
        found = requests.get(f"{server.url}/models/list?q=project&limit=1").json()      # which reads all of them, once
        assert found["total_models"] == 100_000
        yield server


def test_100_000_models_are_browsed_page_by_page(crowd, tab):
    t, sent = tab(crowd, None), []
    t.page.on("request", lambda request: sent.append(request.url))
    t.open()
    assert t.rows() == [f"project{number:03}" for number in range(40)]
    assert len(sent) < 100      # and not one for each thousand models
    t.wait_for("tbody tr:last-child td", "1,000")
    assert t.text("#summary").startswith("100,000 models in more than 40 projects")
    t.shot("many-projects")
    for first, last in ((40, 80), (80, 100)):
        t.go("Next page")
        assert t.rows() == [f"project{number:03}" for number in range(first, last)]
    assert t.page.get_by_role("link", name="Next page").count() == 0
    t.page.go_back()
    t.page.reload()     # a page has an address of its own
    assert t.settled().rows()[0] == "project040" and requests.get(t.page.url).json()["total_models"] == 100_000
    t.go("Next page").go("project099").go("app09")
    assert t.rows()[:2] == ["1.19.0", "1.18.0"] and len(t.rows()) == 20
    t.open("/models/list?q=project05")
    assert t.text("#summary") == "10,000 models found" and len(t.rows()) == 100
    first = t.text("tbody")
    t.go("Next page")
    assert t.text("#title") == "Search in all projects" and t.text("tbody") != first and len(t.rows()) == 100
    t.shot("many-found")


def test_names_that_are_numbers_are_listed_once_and_in_their_order(server, tab):
    """JavaScript sorts keys of objects that are numbers; the list is cut in the second of these."""
    for app, many in (("100", 60), ("11", 70), ("12", 1)):
        put(server, f"q/{app}/1", tar_with({f"{number}": b"x" for number in range(many)}))
    t = tab(server, "/models/q")
    assert t.rows() == ["100", "11", "12"]
    eventually(lambda: t.page.locator("tbody tr td:nth-child(2)").all_inner_texts() == ["60", "70", "1"])


def test_versions_are_in_the_order_in_which_people_count(server, tab):
    ordered = ["10.0.0", "v3.1.0", "3.0.0", "2.0.0+cu121", "2.0.0", "2.0.0-rc.10", "2.0.0-rc.2", "1.0.0.1", "1.0.0"]
    for version in ordered:
        put(server, f"q/a/{version}/m")
    assert tab(server, "/models/q/a").rows() == ordered


def test_the_newest_version_is_the_first_of_however_many(server, tab):
    for number in range(60):
        put(server, f"q/a/1.{number}.0", tar_with({f"{file}": b"x" for file in range(5)}))
    t = tab(server, "/models/q/a")
    assert t.rows() == [f"1.{number}.0" for number in reversed(range(60))]


def test_json_of_the_page_is_told_nowhere_twice(shop, tab):
    """After going back, a browser shows the page and not the list that the page fetched from the same address."""
    t = tab(shop, "/models/search")
    t.page.goto("about:blank")
    t.page.go_back()
    assert t.settled().rows() == ["ranker", "reviews-encoder"]
    assert json.loads(requests.get(f"{shop.url}/models/search").text)["total_models"] == 18

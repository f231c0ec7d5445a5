"""The house: which package may import which, what imports waitress, and that importing a module does nothing."""

import ast
import os
import subprocess
import sys

import pytest
from support.common import ROOT

# package: the packages of ours that it may import. Arrows point down; what is not in the table is an optional room.
ARROWS = {
    "repository": set(),
    "storage": {"repository"},
    "server": {"storage", "repository"},
    "inspection": {"server", "storage", "repository"},
    "folders": {"server", "storage", "repository"},
    "hub": {"server", "storage", "repository"},
    "openapi": {"server", "storage", "repository"},
    "page": {"server", "storage", "repository"},
    "resumption": {"server", "storage", "repository"},
    "model_server": {"server", "storage", "repository", "inspection", "folders", "hub", "page",
                     "resumption", "openapi"},
}
HTTP = {"http", "email", "urllib", "waitress", "wsgiref", "socket", "socketserver"}
MAX_FILE, MAX_FUNCTION = 450, 50    # lines


def files_of(package):
    return [*sorted((ROOT / package).rglob("*.py"))] if (ROOT / package).is_dir() else [ROOT / f"{package}.py"]


def imports(file):
    """The modules that a file imports, by their whole names, wherever in it that is written."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def packages():
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    return found - {"tests"}


def test_the_table_of_arrows_has_every_package():
    assert packages() == ARROWS.keys()


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_imports_no_other_than_the_table_says(package):
    imported = {name.partition(".")[0] for file in files_of(package) for name in imports(file)}
    assert imported & packages() - {package} <= ARROWS[package]


@pytest.mark.parametrize("package", ["repository", "storage"])
def test_the_storage_knows_no_http(package):
    imported = {name.partition(".")[0] for file in files_of(package) for name in imports(file)}
    assert not imported & HTTP


def test_waitress_is_imported_by_one_module():
    users = {file.relative_to(ROOT).parts[:2] for package in ARROWS for file in files_of(package)
             if any(name.partition(".")[0] == "waitress" for name in imports(file))}
    assert users == {("server", "waitress_adapter")}


@pytest.mark.parametrize("package", ARROWS)
def test_no_file_and_no_function_is_longer_than_can_be_read_at_once(package):
    for file in files_of(package):
        text = file.read_text(encoding="utf-8")
        long = [node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
                and node.end_lineno - node.lineno >= MAX_FUNCTION]
        assert (len(text.splitlines()) <= MAX_FILE, long) == (True, []), file


def test_importing_a_module_does_nothing(tmp_path):
    files = [file.relative_to(ROOT).with_suffix("") for package in ARROWS for file in files_of(package)]
    modules = [".".join(file.parts) for file in files]
    code = (f"import sys, threading, logging, os; sys.path.insert(0, {str(ROOT)!r})\n"
            f"before = set(os.listdir('/proc/self/fd'))\nimport {', '.join(modules)}\n"
            "assert threading.active_count() == 1 and not logging.root.handlers\n"
            "assert set(os.listdir('/proc/self/fd')) == before")
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "SERVER_PORT": "nonsense",
           "MODEL_STORAGE_PATH": str(tmp_path / "m")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []

"""Asks for everything that huggingface_hub has a function for, and prints the answers as JSON."""

import json
import sys

from huggingface_hub import HfApi, HfFileSystem, __version__, file_exists, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

REPO = "acme/tiny"
api, fs = HfApi(), HfFileSystem()


def error_of(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except HfHubHTTPError as error:
        return [type(error).__name__, str(error)]


with open(hf_hub_download(REPO, "onnx/model.onnx", revision="1.0.0"), "rb") as file:
    downloaded = len(file.read())
with fs.open(f"{REPO}@1.0.0/onnx/model.onnx") as file:
    file.seek(9)
    some = file.read(7).decode()
info = api.model_info(REPO, files_metadata=True)
print(json.dumps({
    "version": __version__,
    "downloaded": downloaded,
    "snapshot": snapshot_download(REPO, local_dir=sys.argv[1], allow_patterns=["*.json", "onnx/*"]),
    "sha": info.sha,
    "blobs": {each.rfilename: each.lfs.sha256 for each in info.siblings},
    "expanded": api.model_info(REPO, expand=["siblings", "sha"]).sha,
    "of_revision": api.model_info(REPO, revision="1.0.0").sha,
    "repositories": [api.repo_exists(REPO), api.repo_exists("acme/none")],
    "revisions": [api.revision_exists(REPO, each) for each in ("main", "1.0.0", info.sha, "9", "refs/pr/1", "0" * 40)],
    "files": api.list_repo_files(REPO),
    "tree": [each.path for each in api.list_repo_tree(REPO, "onnx/int8")],
    "all": [each.path for each in api.list_repo_tree(REPO, recursive=True)],
    "exist": [file_exists(REPO, each) for each in ("config.json", "onnx/model.onnx", "none", ".gitattributes", "a b")],
    "paths": [each.path for each in api.get_paths_info(REPO, ["config.json", "onnx", "none"])],
    "models": [[each.id for each in api.list_models(**query)]
               for query in ({}, {"author": "acme"}, {"search": "TINY"}, {"filter": "gguf"}, {"limit": 1})],
    "refs": [[each.name, each.target_commit] for each in api.list_repo_refs(REPO).branches],
    "ls": sorted(each["name"] for each in fs.ls(f"{REPO}@1.0.0/onnx")),
    "glob": sorted(fs.glob(f"{REPO}/**/config.json")),
    "some": some,
    "parameters": api.get_safetensors_metadata(REPO).parameter_count,
    "whoami": api.whoami(token="amr_x")["name"],
    "errors": [error_of(hf_hub_download, REPO, "none"), error_of(hf_hub_download, REPO, "config.json", revision="9"),
               error_of(hf_hub_download, "acme/none", "config.json"), error_of(snapshot_download, "acme/none"),
               error_of(lambda: list(api.list_repo_tree(REPO, "none")))],
}))

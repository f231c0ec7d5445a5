"""The API of the Hugging Face Hub, for reading: a repository is an application here, and its revisions are versions.

docs/hub.md says what clients ask for, and go by.
"""

import json
import sys
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from hub.about import ABOUT, REPO
from hub.snapshots import MAIN, File, Missing, Snapshot, Snapshots, digits, identity_of, versions
from repository.errors import InvalidName, ModelCorrupt, ModelNotFound, corrupted
from repository.model import ModelKey
from server.access import Unauthorized
from server.application import Room, Route
from server.descriptions import described
from server.errors import BadRequest
from server.request import Request
from server.responses import Response, file_response, json_response
from server.uploads import Body
from storage import Storage

Json = dict[str, Any]
MAX_PAGE = 10_000       # entries of a tree, as many as a tar may have: llama.cpp asks for no second page
MAX_PATHS = 2 << 20     # bytes of the paths in one request: 10,000 long ones, percent-encoded
POINTER_BYTES = 134     # of the file that Git has in place of a large one; clients want a number
TRIES = 5               # to open a file that is replaced again and again
CODES = {"version": "RevisionNotFound", "model_name": "EntryNotFound"}     # for an invalid name
TRUE = ("true", "True", "1")    # as JavaScript, Python and people write it in a query
# Models here have no task, tags or inference provider, so a search for one of these finds nothing.
NEVER = {"filter", "pipeline_tag", "apps", "inference_provider", "num_parameters"}


def resolve(request: Request, store: Storage, model_name: str, **names: str) -> Response:
    """A file of a revision, under the commit that it belongs to, unless it was replaced since."""
    for _ in range(TRIES):
        snapshot = request.services.of(Snapshots).find(store, **names)
        commit = ("X-Repo-Commit", snapshot.commit)
        if not (file := snapshot.files.get(model_name)):
            raise Missing("EntryNotFound", f"there is no {model_name} in {'/'.join(snapshot.version)}", commit)
        key = ModelKey(*(*snapshot.version, model_name))
        with suppress(ModelNotFound):
            model, content = opened = (store.open if request.method == "GET" else store.peek)(key)
            if identity_of(model) == file.identity and not model.corrupt:
                response = file_response(request.method, request.header, opened, dated=False)
                response.headers.append(commit)
                return response
            content.close()
            if model.corrupt:
                raise corrupted(key)
        store.index.forget(snapshot.version, below=True)    # it was replaced since the index looked
    raise Missing("RevisionNotFound", f"{key} has been replaced since this revision was asked for: load it again")


def entries(snapshot: Snapshot) -> dict[str, Json]:
    """The files and folders of a snapshot by their paths, in order, as trees show them."""
    shown, folders = dict[str, Json](), dict[str, list[str]]()
    for path, file in snapshot.files.items():
        shown[path] = {"type": "file", "path": path, **blob_of(file)}
        folder = path
        while folder := folder.rpartition("/")[0]:
            folders.setdefault(folder, []).append(f"{file.identity}  {path}")
    for folder, inside in folders.items():
        shown[folder] = {"type": "directory", "path": folder, "size": 0, "oid": digits("\n".join(inside))}
    return dict(sorted(shown.items()))


def blob_of(file: File) -> Json:
    """What clients compare with their copy of a file, under the names in a tree and those in an info."""
    oid, lfs = digits(file.identity), {"oid": file.sha256, "sha256": file.sha256, "size": file.size}
    more = {"lfs": {**lfs, "pointerSize": POINTER_BYTES}} if file.sha256 else {}    # clients need all of it, or nothing
    return {"size": file.size, "oid": oid, "blobId": oid, **more}


def tree(request: Request, store: Storage, model_name: str = "", **names: str) -> Response:
    """The entries of a folder of a revision, or all below it; in pages if there are many."""
    snapshot = request.services.of(Snapshots).find(store, **names)
    query, below = dict(request.parameters), f"{model_name}/" if model_name else ""
    found = {path: shown for path, shown in entries(snapshot).items() if path.startswith(below)
             and (query.get("recursive") in TRUE or "/" not in path[len(below):])}
    if not found:
        raise Missing("EntryNotFound", f"there is no folder {model_name} in {'/'.join(snapshot.version)}")
    rest = [shown for path, shown in found.items() if path > query.get("cursor", "")]
    page, headers = rest[:MAX_PAGE], list[tuple[str, str]]()
    if len(rest) > MAX_PAGE:
        more = urlencode({**query, "cursor": page[-1]["path"]})
        headers.append(("Link", f'<{request.base_url}{quote(request.path)}?{more}>; rel="next"'))
    return json_response(200, page, *headers)


def info(request: Request, store: Storage, **names: str) -> Response:
    """A repository, and the files of a revision."""
    if "model_name" in names:
        names["version"] += "/"     # a branch of Git like refs/pr/1, which no version can be called
    snapshot = request.services.of(Snapshots).find(store, **names)
    blobs = dict(request.parameters).get("blobs") in TRUE
    siblings = [{"rfilename": path, **(blob_of(file) if blobs else {})} for path, file in snapshot.files.items()]
    return json_response(200, {**summary(*snapshot.version[:2]), "sha": snapshot.commit,
                               "lastModified": snapshot.modified, "siblings": siblings})


def summary(project_id: str, app_name: str) -> Json:
    """What clients expect to be told about any repository."""
    name = f"{project_id}/{app_name}"
    return {"id": name, "modelId": name, "author": project_id, "private": False, "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": []}


def paths_info(request: Request, store: Storage, **names: str) -> Response:
    """The entries of the paths in a form, as Python sends it, or in JSON; paths that do not exist are left out."""
    snapshot = request.services.of(Snapshots).find(store, **names)
    try:
        if (request.header("Content-Type") or "").startswith("application/json"):
            wanted = json.loads(request.body.data)["paths"]
            if not (isinstance(wanted, list) and all(isinstance(path, str) for path in wanted)):
                raise ValueError("its paths are not a list of strings")
        else:
            wanted = [path for name, path in parse_qsl(request.body.data.decode(), errors="strict") if name == "paths"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadRequest('send form fields called paths, or JSON like {"paths": ["config.json"]}') from error
    paths = set(wanted)
    found = [shown for path, shown in entries(snapshot).items() if path in paths]
    return json_response(200, found)


def refs(request: Request, store: Storage, **names: str) -> Response:
    """main, then all versions: without a main, llama.cpp would take the first one."""
    snapshots = request.services.of(Snapshots)
    commits = {MAIN[0]: snapshots.find(store, **names).commit}
    for version in versions(store, tuple(names.values())):
        if snapshot := snapshots.newest(store, version):
            commits[version[-1]] = snapshot.commit
    branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in commits.items()]
    return json_response(200, {"branches": branches, "tags": [], "converts": []})


def models(request: Request, store: Storage) -> Response:
    """The repositories that the caller may read."""
    query, index = dict(request.parameters), store.index
    projects = [query["author"]] if "author" in query else index.below(())
    names = ((project, app) for project in projects for app in index.below((project,)))
    found = (summary(*name) for name in names if query.get("search", "").casefold() in "/".join(name).casefold()
             and not NEVER & query.keys() and request.caller.may("read", name) and index.fingerprint(name))
    limit = None
    with suppress(ValueError):      # no limit, or none that is a number
        limit = min(max(0, int(query.get("limit", ""))), sys.maxsize)
    return json_response(200, [*islice(found, limit)])


def alone(request: Request, store: Storage, project_id: str, **names: str) -> Response:
    """404 for the Hub's oldest repositories, like gpt2: a repository here always has a slash in its name."""
    raise Missing("RepoNotFound", f"{project_id} is not a repository: here they are called project/application")


def whoami(request: Request, store: Storage) -> Response:
    return json_response(200, {"type": "user", "name": request.caller.name, "orgs": [], "auth": {}})


def explain(request: Request, error: Exception, response: Response) -> None:
    """Reports an error as the Hub does: clients go by X-Error-Code, and show X-Error-Message or the JSON's `error`."""
    code = ""
    if isinstance(error, InvalidName):      # so nothing of this name exists
        response.status, code = 404, CODES.get(error.field, "RepoNotFound")
    elif isinstance(error, ModelCorrupt):   # without a code, clients would try again, or blame the network
        response.status, code = 403, "GatedRepo"
    elif isinstance(error, ModelNotFound | Unauthorized):   # a token must not learn what exists that it may not read
        known = not isinstance(error, Unauthorized) and request.caller.may("read", tuple(request.names.values())[:2])
        code = "RevisionNotFound" if known else "RepoNotFound"      # an alias is missing, or all of it
    assert isinstance(response.body, bytes)
    detail = json.loads(response.body)["detail"]
    response.body = json.dumps({"error": detail, "detail": detail}).encode() + b"\n"
    message = " ".join(detail.encode("ascii", "backslashreplace").decode().split())
    response.headers += [("X-Error-Message", message), *([("X-Error-Code", code)] if code else [])]


route = partial(Route, encoded_slashes=True, explain=explain)
ROUTES = (
    route("GET",  "/api/whoami-v2",                                            "read", whoami, partly=True),
    route("GET",  "/api/models",                                               "read", models, partly=True),
    route("GET",  REPO,                                                        "read", info),
    route("GET",  REPO + "/revision/{version}",                                "read", info),
    route("GET",  REPO + "/revision/{version}/{model_name}",                   "read", info),
    route("GET",  REPO + "/tree/{version}",                                    "read", tree),
    route("GET",  REPO + "/tree/{version}/{model_name}",                       "read", tree),
    route("POST", REPO + "/paths-info/{version}", "read", paths_info, lambda *_, **names: Body(limit=MAX_PATHS),
          through_aliases=True),
    route("GET",  REPO + "/refs",                                              "read", refs),
    route("GET",  "/{project_id}/{app_name}/resolve/{version}/{model_name}",   "read", resolve),
    route("GET",  "/{project_id}/{app_name}/raw/{version}/{model_name}",       "read", resolve),
    route("GET",  "/api/models/{project_id}",                                  None,   alone),
    route("GET",  "/api/models/{project_id}/revision/{version}",               None,   alone),
    route("GET",  "/{project_id}/resolve/{version}/{model_name}",              None,   alone),
)
HUB = Room(described(ROUTES, ABOUT))

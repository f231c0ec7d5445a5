"""The descriptions of the routes for clients of the Hub, which do not need them."""

from dataclasses import replace

from server.about import ACTUAL, CACHE, JSON, NAMES, STRING, VERSION_OR_ALIAS, About, Answer, Field, Json, Schema
from server.descriptions import LINK, PART_CONDITIONS, SENT

ENTRIES: Json = {"type": "array", "items": Schema("HubEntry", {
    "type": "object",
    "properties": {"type": {"enum": ["file", "directory"]}, "path": STRING, "size": {"type": "integer"}, "oid": STRING},
    "required": ["type", "path", "size", "oid"],
})}
REPOSITORY = Schema("HubRepository", {
    "type": "object", "properties": {"id": STRING, "sha": STRING}, "required": ["id"]})
PATHS: Json = {"type": "object", "properties": {"paths": {"type": "array", "items": STRING}}}   # a form may have none
WITH_ERRORS = (Field("X-Error-Code", "What clients go by: `RevisionNotFound` and others.", STRING),
               Field("X-Error-Message", "What clients show.", STRING))
COMMIT = Field("X-Repo-Commit", "The commit of the revision.", STRING)
NAMED = (Field("version", "A version, the commit of one, an alias with its `@`, or `main`: the version of that name, "
               "otherwise the highest one.", VERSION_OR_ALIAS),
         NAMES["model_name"]._replace(text="The path of a file or folder; its slashes may be sent as %2F."))
BLOBS = Field("blobs", "`true`: with sizes and digests.", STRING)
TREE_QUERY = (Field("recursive", "`true`: also what is in folders.", STRING),
              Field("cursor", "From the Link of the page before.", STRING))


def told(name: str, summary: str, schema: Json | Schema, *query: Field) -> About:
    answer = Answer("What the Hub would answer.", {JSON: schema}, (CACHE, LINK, *ACTUAL))
    return About(name, summary, {200: answer}, (403, 404, 409), query, names=NAMED, with_errors=WITH_ERRORS)


def file(name: str, summary: str) -> About:
    answers = {status: answer._replace(headers=(*answer.headers, COMMIT)) for status, answer in SENT.items()}
    return About(name, summary, answers, (403, 404, 409, 412, 416), headers=PART_CONDITIONS, names=NAMED,
                 with_errors=(*WITH_ERRORS, COMMIT))


def alone(name: str, summary: str) -> About:
    return replace(told(name, summary, REPOSITORY), names=())   # names of any form: nothing is ever found


REPO = "/api/models/{project_id}/{app_name}"
ABOUT = {
    "GET /api/whoami-v2": told("hub_whoami", "the name of the token", {"type": "object"}),
    "GET /api/models": told("hub_models", "repositories; `author`, `search`, `limit`",
                            {"type": "array", "items": REPOSITORY},
                            *(Field(name, "As the Hub has it.", STRING) for name in ("author", "search", "limit"))),
    f"GET {REPO}": told("hub_info", "the files of `main` and its commit; `blobs=true` adds sizes and digests",
                        REPOSITORY, BLOBS),
    f"GET {REPO}/revision/{{version}}": told("hub_revision", "the same for a revision", REPOSITORY, BLOBS),
    f"GET {REPO}/revision/{{version}}/{{model_name}}": told(
        "hub_branch", "404: no version is called like a branch such as `refs/pr/1`", REPOSITORY, BLOBS),
    f"GET {REPO}/tree/{{version}}": told(
        "hub_tree", "its files and folders; `recursive=true`; in pages of 10,000", ENTRIES, *TREE_QUERY),
    f"GET {REPO}/tree/{{version}}/{{model_name}}": told("hub_folder", "those of a folder", ENTRIES, *TREE_QUERY),
    f"POST {REPO}/paths-info/{{version}}": replace(
        told("hub_paths_info", "those that the form or JSON in the body names", ENTRIES), errors=(403, 404, 409, 413),
        bodies={JSON: Schema("HubPaths", {**PATHS, "required": ["paths"]}),
                "application/x-www-form-urlencoded": PATHS}),
    f"GET {REPO}/refs": told("hub_refs", "`main`, then all versions, with their commits", {"type": "object"}),
    "GET /{project_id}/{app_name}/resolve/{version}/{model_name}": file(
        "hub_resolve", "a file, with ranges and `ETag` like a download, and its commit in `X-Repo-Commit`"),
    "GET /{project_id}/{app_name}/raw/{version}/{model_name}": file("hub_raw", "the same"),
    "GET /api/models/{project_id}": alone(
        "hub_alone", "404: no repository here has a name without a slash, like `gpt2`"),
    "GET /api/models/{project_id}/revision/{version}": alone("hub_alone_revision", "the same"),
    "GET /{project_id}/resolve/{version}/{model_name}": alone("hub_alone_resolve", "the same"),
}

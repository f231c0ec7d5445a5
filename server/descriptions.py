"""The descriptions of the core's routes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from repository.metadata import MAX_CUSTOM
from repository.model import MAX_PARTS, NAME, NAME_FIELDS
from server.about import (
    ACTUAL,
    BINARY,
    BYTES,
    CACHE,
    ERRORS,
    ETAG,
    FLAG,
    IF_MATCH,
    IF_NONE_MATCH,
    JSON,
    LOCATION,
    NAMES,
    PATH,
    SHA256,
    STRING,
    TAGS,
    TEXT,
    TEXT_OR_NULL,
    UNCHANGED,
    WHOLE,
    About,
    Answer,
    Field,
    Json,
    Schema,
)
from server.application import Route
from server.digests import IN_BASE64, IN_HEX, LISTS, SIZES
from server.listing import LINES_OF, MAX_PAGE
from server.responses import ARCHIVES

ANY_NAMES: Json = {"type": "object", "additionalProperties": STRING}
# The properties that say where something is.
PLACE = {name: NAMES[name].schema for name in NAME_FIELDS} | {"model_name": PATH}


# ---- schemas


MODEL = Schema("Model", {
    "type": "object",
    "description": "What is known about a model. What is not known about one that was put there by hand is null.",
    "properties": {
        **PLACE,
        "filename": {**TEXT_OR_NULL, "description": "The name of the file in the form; null for other uploads."},
        "size": {**WHOLE, "description": "Bytes."},
        "sha256": {"type": ["string", "null"], "pattern": SHA256["pattern"]},
        "format": {**TEXT_OR_NULL, "description": "What the server took the bytes for."},
        "details": {"type": ["object", "null"], "description": "What it read from them; it varies with the format."},
        "description": TEXT_OR_NULL,
        "framework": TEXT_OR_NULL,
        "metadata": {"type": "object", "description": "Custom fields, with values of any type."},
        "uploaded_at": {**TEXT_OR_NULL, "description": "When the bytes were uploaded; UTC, ISO 8601."},
        "updated_at": {**TEXT_OR_NULL, "description": "When bytes or metadata last changed."},
        "verified_at": {**TEXT_OR_NULL, "description": "When the stored bytes were last read and compared."},
        "corrupt": {"type": "boolean", "description": "Whether they are known to be damaged."},
        "path": {**STRING, "description": "The file, relative to the storage directory."},
        "url": {**STRING, "description": "The address of the download."},
    },
    "required": [*NAME_FIELDS, "filename", "size", "sha256", "format", "details", "description", "framework",
                 "metadata", "uploaded_at", "updated_at", "verified_at", "corrupt", "path", "url"],
})
DONE: Json = {"type": "object", "required": ["message"], "properties": {"message": STRING}}
CHANGED_MODEL = Schema("ChangedModel", {"allOf": [MODEL, {**DONE, "properties": {
    "message": STRING, "unchanged": {"type": "boolean", "description": "True where nothing had to be written."}}}]})
MODEL_LIST = Schema("ModelList", {
    "type": "object",
    "properties": {
        **PLACE,
        "models": {"type": "array", "items": MODEL},
        "total_models": {**WHOLE, "description": "Those that the filters select, on all pages."},
        "aliases": {"type": "object", "additionalProperties": PLACE["version"],
                    "description": "Versions by the aliases that point at them."},
        "next": {**STRING, "description": "To be sent as `after` for the next page; missing on the last one."},
    },
    "required": ["models", "total_models"],
})
DELETED = Schema("DeletedModels", {
    "type": "object",
    "properties": {"message": STRING, **PLACE, "deleted_models": WHOLE},
    "required": ["message", "project_id", "deleted_models"],
})
CHANGE = Schema("Change", {
    "type": "object",
    "properties": {
        "description": TEXT_OR_NULL,
        "framework": TEXT_OR_NULL,
        "metadata": {"type": ["object", "null"], "maxProperties": MAX_CUSTOM},
    },
    "additionalProperties": False,
})
HEALTH = Schema("Health", {
    "type": "object",
    "properties": {
        "status": {"enum": ["healthy", "degraded", "unhealthy"]},
        "reason": {**STRING, "description": "Why it is unhealthy."},
        "version": {**STRING, "description": "That of the server."},
        "timestamp": STRING,
        "storage_path": STRING,
        "read_only": {"type": "boolean"},
        "corrupt_models": WHOLE,
        "faults": {"type": "object", "additionalProperties": WHOLE, "description": "Of helper threads, by name."},
        "lost_log_lines": {"type": "object", "additionalProperties": WHOLE, "description": "By kind: audit, other."},
        "late_audit_lines": WHOLE,
        "free_bytes": WHOLE,
    },
    "required": ["status", "version", "timestamp", "storage_path"],
})
PROGRESS = Schema("Verification", {
    "type": "object",
    "description": "A verification, or the last one. The numbers are missing where the token may not read all of it.",
    "properties": {
        "running": {"type": "boolean"},
        "below": {**STRING, "description": "The names of what is verified, empty for everything."},
        **dict.fromkeys(("total_models", "total_bytes", "done_models", "done_bytes", "skipped_models",
                         "corrupt_models"), WHOLE),
        "corrupt": {"type": "array", "items": STRING, "description": "The first 100 corrupt models."},
        "started_at": TEXT_OR_NULL,
        "finished_at": TEXT_OR_NULL,
        "error": TEXT_OR_NULL,
        "waiting": {"type": "array", "items": STRING},
    },
    "required": ["running", "waiting"],
})


# ---- what several routes have


FIELDS = {
    "description": "What the model is, up to 8 KiB.",
    "framework": "What it was made with.",
    "metadata": "Custom metadata as a JSON object, whose values keep their types.",
    "sha256": "The digest that the bytes must have, in hex.",
}


def hex_of(size: int) -> Json:
    return {"type": "string", "pattern": f"^[0-9A-Fa-f]{{{2 * size}}}$"}


def base64_of(size: int) -> Json:
    return {"type": "string", "pattern": f"^[A-Za-z0-9+/]{{{-(-size * 8 // 6)}}}{-size % 3 * '='}$"}


CLAIMS = (
    *(Field(name, f"The {algorithm} that the bytes must have, in hex.", hex_of(SIZES[algorithm]))
      for name, algorithm in IN_HEX.items()),
    *(Field(name, "A digest that the bytes must have, by the algorithm: `sha-256=…`. Unknown ones are ignored.", STRING)
      for name in LISTS),
    *(Field(name, f"The {algorithm} that the bytes must have, in base64.", base64_of(SIZES[algorithm]))
      for name, algorithm in IN_BASE64.items()),
)
UPLOAD_QUERY = (
    *(Field(name, FIELDS[name], STRING) for name in ("description", "framework")),
    Field("metadata", FIELDS["metadata"], {"type": "object"}, media=JSON),
    Field("sha256", FIELDS["sha256"], SHA256),
    Field("custom", "Every other parameter becomes custom metadata.", ANY_NAMES),
)
OF_UPLOADS = (403, 409, 411, 412, 413, 415, 422, 507)
STORED = (CACHE, LOCATION, ETAG)
UPLOADED = {
    201: Answer("It is stored.", {JSON: CHANGED_MODEL}, STORED),
    200: Answer("It took the place of another one, or is the same again.", {JSON: CHANGED_MODEL}, STORED),
}
FORM = Schema("UploadForm", {
    "type": "object",
    "properties": {
        "file": {**BYTES, "description": "The model."},
        "description": {**STRING, "description": FIELDS["description"]},
        "framework": {**STRING, "description": FIELDS["framework"]},
        "metadata": {"type": "object", "description": FIELDS["metadata"]},
        "sha256": {**SHA256, "description": FIELDS["sha256"]},
    },
    "required": ["file"],
    "propertyNames": {"pattern": r"^[^\u0000\r\n]+$"},
    "additionalProperties": STRING,
})

CURSOR = f"^({'/'.join([NAME.pattern] * len(NAME_FIELDS))}(/{NAME.pattern}){{0,{MAX_PARTS - 1}}})?$"
LISTS_BY_TYPE: dict[str, Json | Schema] = {JSON: MODEL_LIST, "application/x-ndjson": STRING, TEXT: STRING}
LINK = Field("Link", 'The next page, with `rel="next"`.', STRING)
LISTED = Answer("The models, in order; without `limit` all of them.", LISTS_BY_TYPE, (CACHE, LINK, *ACTUAL))
LIST_QUERY = (
    Field("framework", "Only models with this framework.", STRING),
    Field("q", "Only those with this text in a name or the description.", STRING),
    Field("model_format", "Only those with this format of the bytes.", STRING),
    Field("corrupt", "Only those known to be corrupt, or all others.", FLAG),
    Field("filters", "`metadata.stage=prod`: only those with this value of a custom field.", ANY_NAMES),
    Field("limit", "The number of models on a page.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
    Field("after", "The `next` of the page before.", {**STRING, "pattern": CURSOR}),
    Field("format", "The form of the answer.", {**STRING, "enum": ["json", *LINES_OF]}),
)

READ_CONDITIONS = (IF_MATCH, IF_NONE_MATCH)
CONDITIONS = (IF_MATCH, IF_NONE_MATCH._replace(schema=TAGS))    # of changes, which are refused if it is malformed
IF_UNMODIFIED_SINCE = Field("If-Unmodified-Since", "Only if it was not modified after that.", STRING)
CHANGE_CONDITIONS = (*CONDITIONS, IF_UNMODIFIED_SINCE)
PART_CONDITIONS = (
    *READ_CONDITIONS,
    Field("If-Modified-Since", "Only if it is not this very `Last-Modified`.", STRING),
    IF_UNMODIFIED_SINCE,
    Field("Range", "`bytes=N-` continues a download.", STRING),
    Field("If-Range", "The ETag for which the range is meant; the whole model if it is another one.", STRING),
)
ALLOW_CORRUPT = Field("allow_corrupt", "`true`: the bytes as they are, of models known to be corrupt, too.", FLAG)
DOWNLOAD_QUERY = (Field("sha256", "Only if the model has this digest, in hex; otherwise 412.", SHA256), ALLOW_CORRUPT)
ABOUT_BYTES = (
    CACHE, ETAG, *ACTUAL,
    Field("Accept-Ranges", "`bytes`.", STRING),
    Field("Content-Disposition", "The name of the uploaded file, or that of the model.", STRING),
    Field("Last-Modified", "When the file was written; missing where that is no reliable validator.", STRING),
    Field("X-Checksum-Sha256", "The digest of the whole model, in hex.", SHA256),
    Field("Repr-Digest", "The same, as RFC 9530 has it.", STRING),
    Field("Digest", "The same, as RFC 3230 has it.", STRING),
)
OF_A_PART = Field("Content-Range", "Which part it is, of how many bytes.", STRING, required=True)
FILE = {BINARY: BYTES, **dict.fromkeys(ARCHIVES.values(), BYTES)}
SENT = {
    200: Answer("The model.", FILE, ABOUT_BYTES),
    206: Answer("The part of it that `Range` asks for.", FILE, (*ABOUT_BYTES, OF_A_PART)),
    304: UNCHANGED._replace(headers=ABOUT_BYTES),
}
REFUSED_READS = (404, 409, 412)
RECURSIVE = (Field("recursive", "`true`: all models below, not only one.", FLAG),
             Field("aliases", "`true`: also the aliases that point at a version which nothing is left of.", FLAG))


def listing(name: str, summary: str) -> About:
    return About(name, summary, {200: LISTED}, query=LIST_QUERY)


def deletion(name: str, summary: str) -> About:
    answer = Answer("How many models were deleted.", {JSON: DELETED}, (CACHE,))
    return About(name, summary, {200: answer}, (403, 404, 409, 412), RECURSIVE)


def check(name: str, summary: str, *errors: int) -> About:
    return About(name, summary, {202: Answer("It is running, or waits.", {JSON: PROGRESS}, (CACHE, LOCATION))}, errors)


# ---- the routes, in the README's order and words


MODEL_PATH = "/models/{project_id}/{app_name}/{version}/{model_name}"
ABOUT = {
    "GET /health": About("get_health", "reports whether the server is able to work", {
        200: Answer("It is, or is with a fault: `degraded`.", {JSON: HEALTH}, (CACHE,)),
        503: Answer(ERRORS[503].text, {JSON: HEALTH}, (CACHE,)),
    }),
    "GET /metrics": About("get_metrics", "counters and gauges for Prometheus", {
        200: Answer("The metrics.", {TEXT: STRING}, (CACHE,)),
    }),
    "POST /models/upload": About(
        "upload_form", "uploads a model with a form", UPLOADED, OF_UPLOADS,
        query=tuple(Field(name, f"{NAMES[name].text} It may be a field of the form instead.", schema, required=True)
                    for name, schema in PLACE.items()),
        headers=(*CHANGE_CONDITIONS, *CLAIMS), bodies={"multipart/form-data": FORM},
        text="Every other field becomes custom metadata. Fields may be parameters of the query, too."),
    "GET /models/list": listing("list_models", "lists all models"),
    "GET /models/{project_id}": listing("list_project", "lists the models of a project"),
    "GET /models/{project_id}/{app_name}": listing("list_app", "lists the models of an application"),
    "GET /models/{project_id}/{app_name}/{version}": listing("list_version", "lists the models of a version"),
    f"GET {MODEL_PATH}/info": About("get_info", "returns what is known about a model", {
        200: Answer("What is known.", {JSON: MODEL}, (CACHE, ETAG, *ACTUAL)),
        304: UNCHANGED._replace(headers=(*UNCHANGED.headers, *ACTUAL)),
    }, REFUSED_READS, headers=READ_CONDITIONS),
    f"PATCH {MODEL_PATH}/info": About(
        "change_info", "changes its description, framework and metadata",
        {200: Answer("It is changed.", {JSON: MODEL}, (CACHE, ETAG))}, (403, 404, 409, 412, 413, 507),
        headers=CHANGE_CONDITIONS, bodies={"application/merge-patch+json": CHANGE, JSON: CHANGE},
        text="A JSON merge patch (RFC 7396): what it does not name stays, null removes a field."),
    f"GET {MODEL_PATH}.sha256": About(
        "get_digest", "returns its digest in the format of `sha256sum -c`",
        {**SENT, 200: Answer("The digest and the name.", {TEXT: STRING, **FILE}, ABOUT_BYTES)},
        (*REFUSED_READS, 416), headers=PART_CONDITIONS,
        text="A model that is really called so comes first, and is answered as a download of it."),
    f"GET {MODEL_PATH}": About(
        "download", "downloads a model",
        {**SENT, 200: Answer("The model, or the list of a folder.", FILE | LISTS_BY_TYPE, (*ABOUT_BYTES, LINK))},
        (*REFUSED_READS, 416), DOWNLOAD_QUERY, PART_CONDITIONS,
        text="Where the name is that of a folder, its models are listed, with the parameters that lists have."),
    f"PUT {MODEL_PATH}": About(
        "upload", "uploads a model: the request body is the model", UPLOADED, OF_UPLOADS,
        UPLOAD_QUERY, headers=(*CHANGE_CONDITIONS, *CLAIMS), bodies={BINARY: BYTES}),
    f"DELETE {MODEL_PATH}": About(
        "delete_model", "deletes a model",
        {200: Answer("What was deleted.", {JSON: {"anyOf": [CHANGED_MODEL, DELETED]}}, (CACHE,))},
        (403, 404, 409, 412), RECURSIVE, CHANGE_CONDITIONS, text="A folder needs `?recursive=true`."),
    "DELETE /models/{project_id}": deletion("delete_project", "deletes a project"),
    "DELETE /models/{project_id}/{app_name}": deletion("delete_app", "deletes an application"),
    "DELETE /models/{project_id}/{app_name}/{version}": deletion("delete_version", "deletes a version"),
    "POST /verify": check("verify", "checks all stored models against their digests, in the background"),
    "POST /verify/{project_id}": check("verify_project", "checks the models of a project", 404),
    "POST /verify/{project_id}/{app_name}": check("verify_app", "checks the models of an application", 404),
    "POST /verify/{project_id}/{app_name}/{version}": check("verify_version", "checks the models of a version", 404),
    "POST /verify/{project_id}/{app_name}/{version}/{model_name}": check("verify_model", "checks one model", 404),
    "GET /verify": About("get_verification", "reports the progress of the check", {
        200: Answer("The running verification, or the last one.", {JSON: PROGRESS}, (CACHE,)),
    }),
}


def described(routes: Iterable[Route], table: Mapping[str, About] = ABOUT) -> tuple[Route, ...]:
    """These routes with their descriptions, from a table by method and path."""
    return tuple(replace(route, about=table.get(f"{route.method} {route.path}")) for route in routes)

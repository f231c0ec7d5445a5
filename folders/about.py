"""What there is to tell of folders: of lists as a tar, versions that are uploaded as one, and aliases."""

from server.about import (
    BINARY,
    BYTES,
    CACHE,
    ETAG,
    JSON,
    LOCATION,
    NAMES,
    ONE_NAME,
    STRING,
    VERSION_OR_ALIAS,
    About,
    Answer,
    Field,
    Schema,
)
from server.descriptions import (
    CLAIMS,
    CONDITIONS,
    DONE,
    MODEL_LIST,
    OF_A_PART,
    OF_UPLOADS,
    PART_CONDITIONS,
    UPLOAD_QUERY,
)
from server.places import LATEST

TAR = {"application/x-tar": BYTES}
OF_A_TAR = (CACHE, ETAG, Field("Accept-Ranges", "`bytes`.", STRING), Field("Content-Disposition", "A name.", STRING))
AS_A_TAR = About("", "", {
    200: Answer("", TAR, OF_A_TAR),
    206: Answer("The part of the tar that `Range` asks for.", TAR, (*OF_A_TAR, OF_A_PART)),
    304: Answer("It is still the tar that the client has.", {}, OF_A_TAR),
}, (404, 409, 412, 416), (Field("format", "", {"enum": ["tar"]}),), PART_CONDITIONS,
    text="`?format=tar` is one tar of all files, which has no pages, and is 404 where there are none. It takes "
         "`?allow_corrupt=true`, too.")
STORED = Answer("The models of the version.", {JSON: {"allOf": [MODEL_LIST, DONE]}}, (CACHE, LOCATION, ETAG))
PUT_VERSION = About(
    "upload_version", "uploads a version: the request body is a tar of its files",
    {201: STORED._replace(text="It is stored."), 200: STORED._replace(text="It took the place of what was there.")},
    OF_UPLOADS, UPLOAD_QUERY, (*CONDITIONS, *CLAIMS), {BINARY: BYTES, **TAR},
    names=(NAMES["version"]._replace(text="The version.", schema={**ONE_NAME, "not": {"const": LATEST}}),),
    text="All fields are for every file. What an existing version has and the tar has not is gone.")
OR_ALIAS = About("", "", {}, names=(Field(
    "version", "The version, `latest` for the highest one that has it, or `@` and an alias.",
    VERSION_OR_ALIAS),), errors=(404,))
OF_A_VERSION = About("", "", {status: Answer("", {}, (
    Field("X-Version-ETag", "The ETag of the whole version's tar, which If-Match may name.", STRING),))
    for status in (200, 206, 304)})
VERSION = "/models/{project_id}/{app_name}/{version}"
MODEL = f"{VERSION}/{{model_name}}"
ADDS = {
    "GET /models/list": AS_A_TAR,
    "GET /models/{project_id}": AS_A_TAR,
    "GET /models/{project_id}/{app_name}": AS_A_TAR,
    f"GET {VERSION}": AS_A_TAR.joined(OR_ALIAS),
    f"GET {MODEL}/info": OR_ALIAS,
    **{f"GET {path}": OR_ALIAS.joined(OF_A_VERSION) for path in (MODEL, f"{MODEL}.sha256")},
}

ALIAS_STATE = Schema("Alias", {
    "type": "object",
    "properties": {"message": STRING, **{name: NAMES[name].schema for name in ("project_id", "app_name", "version")},
                   "alias": STRING, "url": STRING},
    "required": ["message", "project_id", "app_name", "version", "alias", "url"],
})
ALIAS_NAME = (Field("alias", "The alias without its `@`.", ONE_NAME),)
STATE = Answer("The alias.", {JSON: ALIAS_STATE}, (CACHE, ETAG))
POINT = About(
    "point_alias", "lets an alias point at the version that `?version=` names",
    {201: STATE._replace(text="It is new."), 200: STATE._replace(text="It was moved.")}, (403, 404, 409, 412, 507),
    (Field("version", "The version, which must hold something.", ONE_NAME, required=True),), CONDITIONS,
    names=ALIAS_NAME, text="The ETag is the version in quotes.")
REMOVE = About("remove_alias", "removes an alias", {200: STATE._replace(text="It is gone.")}, (403, 404, 409, 412),
               headers=CONDITIONS, names=ALIAS_NAME)

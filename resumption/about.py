"""What there is to tell of uploads that are continued."""

from collections.abc import Mapping

from resumption.shelf import IDENT
from server.about import ALLOW, BINARY, BYTES, SHA256, STRING, TEXT, WHOLE, About, Answer, Field, Json, Schema
from server.descriptions import CONDITIONS, OF_UPLOADS, UPLOAD_QUERY, UPLOADED

STATE = (
    Field("Upload-Offset", "How many bytes are here.", WHOLE),
    Field("Upload-Complete", "`?1` if the model is stored.", STRING),
    Field("Upload-Length", "The size of the model, if it is known.", WHOLE),
    Field("Upload-Limit", "The largest model, and the seconds that an unfinished upload is kept.", STRING),
    Field("Tus-Resumable", "The version of tus.", STRING),
    Field("Upload-Defer-Length", "`1`: the size is not known yet.", STRING),
    Field("Cache-Control", "`no-store`.", STRING),
)
WHICH = (Field("sha256", "The digest of the model; `id` instead where a POST began the upload.", SHA256, required=True),
         Field("id", "What the Location of a POST has.", {"type": "string", "pattern": f"^{IDENT.pattern}$"}))
LENGTH = Field("Upload-Length", "The size of the model.", WHOLE)
OF_TUS = Field("Tus-Resumable", "`1.0.0`: answers as clients of tus want them, 204 to the last part, and 403 in place "
               "of 409 where the model exists.", STRING)
PARTLY = Answer("It is kept; more is to follow.", {}, STATE)
STORED = {status: answer._replace(headers=(*answer.headers, *STATE)) for status, answer in UPLOADED.items()}
REFUSALS = (*OF_UPLOADS, 404)


def part(name: str, summary: str) -> About:
    return About(
        name, summary, {**STORED, 204: PARTLY}, REFUSALS,
        (*WHICH, *(field for field in UPLOAD_QUERY if field.name != "sha256")),
        (Field("Upload-Offset", "Where the part begins; 409 beyond what is here.", WHOLE, required=True), LENGTH,
         Field("Upload-Complete", "`?0`: more is to follow.", {"type": "string", "enum": ["?0", "?1"]}), OF_TUS,
         *CONDITIONS),
        PART, with_errors=STATE)


PART: Mapping[str, Json | Schema] = {BINARY: BYTES}
GET = About("get_upload", "tells how much of an upload is here", {
    200: Answer("The number of bytes.", {TEXT: STRING}, STATE)}, (404, 409), WHICH, with_errors=STATE)
PUT, PATCH = part("put_part", "continues an upload"), part("patch_part", "the same, as clients of tus do it")
# without the body's type: a generated client would look for JSON in the empty answer of an upload that has begun, too
POST = About("begin_upload", "begins an upload that can be continued", {
    200: STORED[200], 204: PARTLY,      # where it stands for a PATCH
    201: Answer("It has begun; if all of it came, it is stored, and the body tells of it.", {}, STORED[201].headers),
}, REFUSALS, UPLOAD_QUERY, (LENGTH, Field("Upload-Metadata", "Fields, as tus has them.", STRING), OF_TUS, *CONDITIONS),
    PART, with_errors=STATE)
DELETE = About("forget_upload", "gives an upload up", {204: Answer("It is gone.", {}, ())}, (403, 404), WHICH,
               with_errors=STATE)
OPTIONS = About("options_upload", "tells what tus asks for", {
    204: Answer("What there is.", {}, (ALLOW, *STATE, *(Field(name, "As tus has it.", STRING) for name in (
        "Tus-Version", "Tus-Extension", "Tus-Max-Size")))),
}, (404,))

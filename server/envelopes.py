"""Refuses, by the head of an upload, what is only a part of a model, or has something around it. Pure functions."""

from collections.abc import Mapping

from server.conditional import Header
from server.errors import BadRequest, UnsupportedMediaType

# Each says that the body is a part (RFC 9110 14.2, 14.4 and 14.5): lftp sends Range when it continues an upload,
# and tus-js-client Upload-Concat when it sends several parts at once, to be put together.
PARTS = ("Content-Range", "X-Content-Range", "Range", "Upload-Concat")
# (number of the chunk, number of all) in the forms of Dropzone, Resumable.js, flow.js, Plupload, Fine Uploader and
# ng-file-upload: chunks of one file, which would replace one another.
CHUNKS = (("dzchunkindex", "dztotalchunkcount"), ("resumableChunkNumber", "resumableTotalChunks"),
          ("flowChunkNumber", "flowTotalChunks"), ("chunk", "chunks"), ("qqpartindex", "qqtotalparts"),
          ("_chunkNumber", "_chunkSize"))
AS_IT_IS = ("binary", "8bit", "7bit")   # RFC 2045 6.2: these encodings change nothing


def check_no_range(header: Header, instead: str) -> None:
    """Raises BadRequest if a header says that the body is a part of a model; `instead` says what to do."""
    for name in PARTS:
        if header(name) is not None:
            raise BadRequest(f"a part of a model cannot be uploaded ({name}): {instead}")


def check_whole(header: Header) -> None:
    """Raises BadRequest for a part of a model: nothing would be worse than to store it as the whole."""
    check_no_range(header, "send the whole")
    # draft-ietf-httpbis-resumable-upload: a body that does not begin at 0, or is not the last one
    if (header("Upload-Offset") or "0").strip() != "0" or (header("Upload-Complete") or "?1").strip() != "?1":
        raise BadRequest("a part of a model cannot be uploaded here (Upload-Offset, Upload-Complete): send the whole")


def check_chunks(fields: Mapping[str, str]) -> None:
    """Raises BadRequest if the fields say that the file in this form is one chunk of several."""
    for number, count in CHUNKS:
        if number in fields and count in fields and fields[count].strip() != "1":
            raise BadRequest(f"this is one chunk of a file ({number}={fields[number][:50]}, "
                             f"{count}={fields[count][:50]}), and it would be stored as the whole: switch chunking "
                             "off, an upload may have any size")


def check_envelope(header: Header, is_form: bool) -> None:
    """Raises UnsupportedMediaType for a body with something around the model, which would be stored with it."""
    kind = (header("Content-Type") or "").partition(";")[0].strip().lower()
    if not is_form and "multipart" in kind:
        raise UnsupportedMediaType("the form itself would be stored as the model: send the bytes alone, as in curl -T "
                                   "model.pt URL, or the form with POST to /models/upload")
    if not is_form and kind.startswith("message/"):
        raise UnsupportedMediaType(f"the {kind[:50]} itself would be stored as the model: send the bytes alone, as in "
                                   "curl -T model.pt URL")
    encodings = [word.strip().lower() for word in (header("Content-Encoding") or "identity").split(",")]
    if "aws-chunked" in encodings or (header("X-Amz-Content-Sha256") or "").strip().upper().startswith("STREAMING-"):
        raise UnsupportedMediaType("the chunks and signatures of aws-chunked would be stored with the model: send the "
                                   "bytes alone, as in curl -T model.pt URL")
    if encodings != ["identity"]:
        raise UnsupportedMediaType("the model would be stored compressed: send it without Content-Encoding")
    if (encoding := (header("Content-Transfer-Encoding") or "binary").strip().lower()) not in AS_IT_IS:
        raise UnsupportedMediaType(f"the model would be stored as {encoding[:50]}: send the bytes as they are, without "
                                   "Content-Transfer-Encoding")

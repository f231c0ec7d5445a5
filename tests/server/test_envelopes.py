"""A part of a model, or something around one, is never stored as the model."""

import subprocess
from urllib.parse import urlencode

import pytest
from support.site import FILE, stores_nothing

NAMED = {"project_id": "p-form", "app_name": "a", "version": "1", "model_name": "m"}
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


@pytest.mark.parametrize("header", [
    {"Content_Range": "bytes 5-9/10"}, {"Content_Range": "bytes 0-9/10"}, {"Content_Range": "nonsense"},
    {"X_Content_Range": "bytes 5-9/10"},
    {"Range": "bytes=5-"},              # lftp: put -c
    {"Range": "bytes=0-"},
    {"Upload_Concat": "partial"},       # tus-js-client: parallelUploads
    {"Upload_Offset": "5"}, {"Upload_Complete": "?0"},
])
def test_a_part_of_a_model_is_not_stored_as_the_whole(site, target, header):
    stores_nothing(site, lambda: site.put(target, b"01234", **header), 400)
    stores_nothing(site, lambda: site.post([*NAMED.items(), FILE], **header), 400)


@pytest.mark.parametrize("header", [{"Upload_Offset": "0", "Upload_Complete": "?1"}, {"Content_Encoding": "identity"},
                                    {"Content_Transfer_Encoding": "Binary"}])
def test_a_whole_that_says_so_is_taken(site, target, header):
    assert site.put(target, **header).status == 201


@pytest.mark.parametrize(("header", "says"), [
    ({"Content_Type": "multipart/form-data; boundary=x"},   "curl -T"),
    ({"Content_Type": "multipart/form-data"},               "curl -T"),
    ({"Content_Type": "Multipart/Mixed; boundary=x"},       "curl -T"),
    ({"Content_Type": "multipart/byteranges; boundary=x"},  "curl -T"),
    ({"Content_Type": "application/x-multipart"},           "curl -T"),
    ({"Content_Type": "application/x-mixed-multipart;a=b"}, "curl -T"),
    ({"Content_Type": "message/rfc822"},                    "curl -T"),
    ({"Content_Type": "message/http"},                      "curl -T"),
    ({"Content_Encoding": "gzip"},                          "without Content-Encoding"),
    ({"Content_Encoding": "identity, gzip"},                "without Content-Encoding"),
    ({"Content_Encoding": "aws-chunked"},                   "aws-chunked"),
    ({"Content_Encoding": "aws-chunked, gzip"},             "aws-chunked"),
    ({"x_amz_content_sha256": SIGNED},                      "aws-chunked"),
    ({"x_amz_content_sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}, "aws-chunked"),
    ({"Content_Transfer_Encoding": "base64"},               "Content-Transfer-Encoding"),
])
def test_what_is_around_a_model_is_not_stored_with_it(site, target, header, says):
    assert says in stores_nothing(site, lambda: site.put(target, b"--x\r\n", **header), 415).json["detail"]
    if "Content_Type" not in header:
        stores_nothing(site, lambda: site.post([*NAMED.items(), FILE], **header), 415)


def test_curl_that_puts_a_form_is_told_what_to_do_instead(live_server, project, tmp_path):
    (tmp_path / "m").write_bytes(b"model")
    run = subprocess.run(["curl", "-sS", "-X", "PUT", "-F", "file=@m", "-w", "%{http_code}",
                          f"{live_server.url}/models/{project}/a/1/m"], cwd=tmp_path, capture_output=True, text=True,
                         timeout=30, check=True)
    assert "curl -T" in run.stdout and run.stdout.endswith("415")
    assert not (live_server.storage / project).exists()


# ---- chunks of browsers


CHUNKS = {      # as the libraries send them for the second of three
    "Dropzone": {"dzuuid": "u", "dzchunkindex": "1", "dztotalfilesize": "15", "dzchunksize": "5",
                 "dztotalchunkcount": "3", "dzchunkbyteoffset": "5"},
    "Resumable.js": {"resumableChunkNumber": "2", "resumableTotalChunks": "3", "resumableFilename": "m"},
    "flow.js": {"flowChunkNumber": "2", "flowTotalChunks": "3", "flowFilename": "m"},
    "Plupload": {"name": "m", "chunk": "1", "chunks": "3"},
    "Fine Uploader": {"qqpartindex": "1", "qqtotalparts": "3", "qqfilename": "m"},
    "ng-file-upload": {"_chunkNumber": "1", "_chunkSize": "5", "_totalSize": "15"},
}


@pytest.mark.parametrize("library", CHUNKS)
def test_a_chunk_of_a_browser_is_not_stored_as_the_whole(site, library):
    chunk = CHUNKS[library]
    for send in (lambda: site.post([*NAMED.items(), *chunk.items(), FILE]),
                 lambda: site.post([FILE, *chunk.items()], "?" + urlencode(NAMED)),
                 lambda: site.post([FILE], "?" + urlencode(NAMED | chunk))):
        assert "chunk" in stores_nothing(site, send, 400).json["detail"]


@pytest.mark.parametrize("fields", [{"dzchunkindex": "0", "dztotalchunkcount": "1"}, {"chunk": "0", "chunks": "1"},
                                    {"chunk": "7"}, {"chunks": "7"}])
def test_a_file_in_one_chunk_is_taken(site, names, fields):
    assert site.post([*names.items(), *fields.items(), FILE]).status == 201

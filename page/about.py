"""The descriptions of the page: HTML where a browser asks for a list, and the files that it needs."""

from server.about import CACHE, ETAG, IF_NONE_MATCH, ONE_NAME, STRING, UNCHANGED, About, Answer, Field

VARY = Field("Vary", "`Accept`: a browser gets a page from here.", STRING)
HEADERS = (CACHE, ETAG, VARY, Field("Content-Security-Policy", "What the page may load.", STRING))
PAGE = {200: Answer("The page, for `Accept: text/html` alone.", {"text/html": STRING}, HEADERS),
        304: UNCHANGED._replace(headers=HEADERS)}
FOR_BROWSERS = About("", "", PAGE, headers=(IF_NONE_MATCH,), with_errors=(VARY,), text="For `text/html` it is a page.")
ADDS = dict.fromkeys(("GET /models/list", "GET /models/{project_id}", "GET /models/{project_id}/{app_name}",
                      "GET /models/{project_id}/{app_name}/{version}"), FOR_BROWSERS)
START = About("get_page", "a page for browsers", PAGE, (404,), headers=(IF_NONE_MATCH,), with_errors=(VARY,))
FILE = About("get_page_file", "the files that the page needs", {
    **PAGE, 200: Answer("The file.", {"text/css": STRING, "text/javascript": STRING}, HEADERS),
}, (404,), headers=(IF_NONE_MATCH,), names=(Field("name", "The name of the file.", ONE_NAME),))

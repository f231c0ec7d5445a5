"""The application under WebTest, which answers nothing that its routes do not tell of."""

import warnings
from contextlib import suppress

from repository.errors import InvalidName
from server.about import ERRORS, OF_EVERY_ANSWER, OF_EVERY_ROUTE
from server.application import Application
from server.errors import HttpError
from server.request import Request

with warnings.catch_warnings():     # WebOb imports cgi, which Python 3.11 calls deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import webtest

OF_HTTP = {"content-length", "content-type"}


class TestApp(webtest.TestApp):
    def do_request(self, req, status=None, expect_errors=None):
        response = super().do_request(req, status=status, expect_errors=expect_errors)
        if isinstance(self.app, Application):
            with suppress(HttpError, InvalidName):
                route, _ = self.app.router.find(Request(dict(req.environ), self.app.services))
                check(route, req.method, response)
        return response


def check(route, method, response):
    """Fails for a status, a media type or a header that the route does not tell of."""
    about, status = route.about, response.status_int
    if about is None:
        return
    where = f"which {method} {route.path} does not tell of: see server/descriptions.py, or the room that it is of"
    if (answer := about.answers.get(status)) is None:
        assert status in {*about.errors, *OF_EVERY_ROUTE, 401, 403, 404}, f"it answers {status}, {where}"
        answer = ERRORS[status]._replace(headers=(*ERRORS[status].headers, *about.with_errors))
    known = {field.name.lower() for field in (*answer.headers, *OF_EVERY_ANSWER)} | OF_HTTP
    unknown = {name.lower() for name in response.headers} - known
    unknown = {name for name in unknown if not name.startswith("access-control-") and name != "vary"}  # by a setting
    assert not unknown, f"it answers {status} with {', '.join(sorted(unknown))}, {where}"
    if method != "HEAD" and answer.content and "content-type" in response.headers:
        assert response.content_type in answer.content, f"it answers {status} as {response.content_type}, {where}"

"""The room of the Hub's clients: that the server works without it."""

from support.rooms import works_without

WITHOUT = """
    app.request("/models/acme/tiny/1/config.json", method="PUT", body=b"{}", headers={"Content-Length": "2"})
    for path in ("/api/models/acme/tiny", "/acme/tiny/resolve/main/config.json", "/api/models", "/api/whoami-v2"):
        assert app.get(path, status=404).json["detail"].startswith("there is nothing at")
"""


def test_without_the_room_and_its_lines_all_the_rest_works(tmp_path):
    works_without(tmp_path, WITHOUT, "hub")

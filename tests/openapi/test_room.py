"""The room of the API's description: that the server works without it."""

from support.rooms import works_without

WITHOUT = """
    assert app.get("/openapi.json", status=404).json["detail"].startswith("there is nothing at")
"""


def test_without_the_room_and_its_line_all_the_rest_works(tmp_path):
    works_without(tmp_path, WITHOUT, "openapi")

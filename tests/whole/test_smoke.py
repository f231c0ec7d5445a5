def test_an_upload_comes_back(live_server, http, project):
    url = f"{live_server.url}/models/{project}/a/1/m"
    assert http.put(url, data=b"abc").status_code == 201
    assert http.get(url).content == b"abc"


def test_under_another_server_too(app):
    assert app.put("/models/p/a/1/m", b"abc", status=201).json["size"] == 3
    assert app.post("/models/upload", {"project_id": "p", "app_name": "a", "version": "2", "model_name": "m"},
                    upload_files=[("file", "x.pt", b"abcd")], status=201).json["filename"] == "x.pt"
    assert app.get("/models/p/a/latest/m").body == b"abcd"

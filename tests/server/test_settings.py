"""Settings, and the life of the process: how it starts, what it says, how it stops."""

import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path

import pytest
import requests
from support.common import eventually
from support.live import LiveServer, Wire
from support.needs import SANDBOX, need, read_only_but
from support.process import NOT_ALMIGHTY, run_to_its_end

from server.settings import Settings
from server.waitress_adapter.server import Server

DEFAULTS = {"storage_path": None, "host": "", "port": 8000, "threads": 8, "max_size": None, "overwrite": True,
            "allowed_formats": frozenset(), "pickle": "allow"}


@pytest.mark.parametrize(("env", "changed"), [
    ({}, {}),
    ({"HOME": "/root", "SERVER_PORTS": "x"}, {}),
    ({"MODEL_STORAGE_PATH": "/data"}, {"storage_path": Path("/data")}),
    ({"SERVER_HOST": "127.0.0.1", "SERVER_PORT": "80"}, {"host": "127.0.0.1", "port": 80}),
    ({"SERVER_PORT": "0"}, {"port": 0}), ({"SERVER_PORT": "65535"}, {"port": 65535}),
    ({"SERVER_THREADS": "1"}, {"threads": 1}),
    ({"MODEL_MAX_SIZE": "1000"}, {"max_size": 1000}), ({"MODEL_MAX_SIZE": "500M"}, {"max_size": 500 << 20}),
    ({"MODEL_MAX_SIZE": "20G"}, {"max_size": 20 << 30}),
    ({"MODEL_VERIFY_RATE": "2M"}, {"verify_rate": 2 << 20}), ({"MODEL_VERIFY_RATE": ""}, {"verify_rate": 100 << 20}),
    ({"SERVER_GRACE_SECONDS": "0"}, {"grace_seconds": 0}), ({"SERVER_GRACE_SECONDS": ""}, {"grace_seconds": 10}),
    ({"TRUSTED_PROXY": "192.0.2.1"}, {"trusted_proxy": (ip_network("192.0.2.1/32"),)}),
    ({"TRUSTED_PROXY": "10.42.0.0/16, 127.0.0.1,fd00::/8"},
     {"trusted_proxy": tuple(map(ip_network, ("10.42.0.0/16", "127.0.0.1", "fd00::/8")))}),
    ({"MODEL_OVERWRITE": "allow"}, {}), ({"MODEL_OVERWRITE": "deny"}, {"overwrite": False}),
    ({"MODEL_TOKENS_FILE": "/run/secrets/tokens"}, {"tokens_file": Path("/run/secrets/tokens")}),
    *(({"MODEL_ANONYMOUS": value}, {"anonymous": value}) for value in ("all", "read", "none")),
    ({"MODEL_ANONYMOUS": "", "MODEL_TOKENS_FILE": ""}, {}),
    ({"MODEL_ALLOWED_FORMATS": "safetensors"}, {"allowed_formats": frozenset({"safetensors"})}),
    ({"MODEL_ALLOWED_FORMATS": "gguf, onnx,unknown"}, {"allowed_formats": frozenset({"gguf", "onnx", "unknown"})}),
    ({"MODEL_ALLOWED_ORIGINS": "HTTPS://ml.example:443, http://[::1]:3000"},
     {"allowed_origins": frozenset({"https://ml.example", "http://[::1]:3000"})}),
    ({"MODEL_ALLOWED_HOSTS": "Models.example,10.0.0.1:8000,[::1]"},
     {"allowed_hosts": frozenset({"models.example", "10.0.0.1:8000", "[::1]"})}),
    ({"MODEL_PICKLE": "allow"}, {}), ({"MODEL_PICKLE": "known"}, {"pickle": "known"}),
    ({"MODEL_PICKLE": "deny"}, {"pickle": "deny"}),
    # what compose makes of ${SERVER_PORT} when nobody set it
    (dict.fromkeys(("MODEL_STORAGE_PATH", "SERVER_HOST", "SERVER_PORT", "SERVER_THREADS", "MODEL_MAX_SIZE",
                    "MODEL_ALLOWED_FORMATS", "MODEL_PICKLE"), ""), {}),
])
def test_settings_come_from_the_environment(env, changed):
    assert Settings.from_env(env) == Settings(**{**DEFAULTS, **changed})


@pytest.mark.parametrize(("name", "value"), [
    *(("SERVER_PORT", value) for value in ("http", "-1", "65536", "80.0", " 80", "0x50", "\uff18\uff10", "²",
    "9" * 5000, "80\n", "tcp://10.96.3.4:8000")),
    *(("SERVER_GRACE_SECONDS", value) for value in ("-1", "1.5", "3601", "10s")),
    *(("TRUSTED_PROXY", value) for value in ("nginx", "10.42.0.1/16", "10.0.0.1,", "10.0.0.1 10.0.0.2", "*")),
    *(("SERVER_THREADS", value) for value in ("0", "-1", "many", "1e3", "9" * 5000)),
    *(("MODEL_MAX_SIZE", value) for value in ("0", "-1", "M", "12X", "1.5G", "1 G", "\uff15G", "9" * 5000, "5G\n")),
    *(("MODEL_VERIFY_RATE", value) for value in ("0", "fast", "1.5M")),
    *(("MODEL_PICKLE", value) for value in ("deny ", "no", "Known", "0")),
    *(("MODEL_OVERWRITE", value) for value in ("yes", "ALLOW?", "0", "allow ")),
    *(("MODEL_ALLOWED_ORIGINS", value) for value in ("*", "null", "example.org", "https://a/b", "https://a,", "ftp://a")),
    *(("MODEL_ALLOWED_HOSTS", value) for value in ("*", "https://a", "a/b", "a b", "::1", ",")),
    *(("MODEL_ANONYMOUS", value) for value in ("some", "READ", "0", "none ")),
])
def test_a_bad_value_is_named_with_what_it_should_be(name, value):
    with pytest.raises(ValueError, match=f"^{name} .*(set|use)"):
        Settings.from_env({name: value})


@pytest.mark.parametrize(("name", "value"), [
    ("SERVER_PORT", "http"), ("SERVER_THREADS", "0"), ("MODEL_MAX_SIZE", "big"), ("MODEL_OVERWRITE", "maybe"),
    ("MODEL_ALLOWED_FORMATS", "word"), ("MODEL_PICKLE", "never"),
    ("SERVER_HOST", "192.0.2.1"),       # a good address, of another machine
    ("SERVER_HOST", "a..b"),            # no name that anybody would look up
])
def test_a_bad_value_stops_the_server_with_one_clear_line(tmp_path, name, value):
    ended = run_to_its_end(tmp_path, **{name: value})
    assert ended.returncode > 0
    assert ended.stdout.count("\n") == 1, ended.stdout
    assert name in ended.stdout and value in ended.stdout


def test_the_port_that_kubernetes_injects_for_a_service_is_explained(tmp_path):
    ended = run_to_its_end(tmp_path, SERVER_PORT="tcp://10.96.3.4:8000")
    assert (ended.returncode > 0, ended.stdout.count("\n")) == (True, 1), ended.stdout
    assert "Kubernetes" in ended.stdout and "enableServiceLinks: false" in ended.stdout


def test_without_a_host_it_listens_on_every_family_of_the_machine(start):
    server = start(SERVER_HOST="")
    families = ["127.0.0.1", *(["[::1]"] if socket.has_dualstack_ipv6() else [])]
    for address in families:
        got = requests.put(f"http://{address}:{server.port}/models/p/a/1/m", b"x", timeout=10)
        assert got.json()["url"] == got.headers["Location"] == f"http://{address}:{server.port}/models/p/a/1/m"
    for address in families:    # as it came, and not as ::ffff:127.0.0.1
        server.wait_for_log(f" {address.strip('[]')}\n")
    if len(families) == 2:
        assert f" at http://[::]:{server.port}, " in server.log()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("header", ["", "Host:\r\n"])
def test_without_a_host_header_urls_have_the_address_that_was_asked(start, host, header):
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    server = start(SERVER_HOST=host)
    with socket.create_connection((host, server.port), 10) as sock, sock.makefile("rb") as answer:
        sock.sendall(f"PUT /models/p/a/1/m HTTP/1.0\r\n{header}Content-Length: 1\r\n\r\nx".encode())
        shown = f"[{host}]" if ":" in host else host
        assert f"\r\nLocation: http://{shown}:{server.port}/models/p/a/1/m\r\n".encode() in answer.read()


def test_a_request_has_the_seconds_of_grace_that_are_set(start):
    server = start(SERVER_GRACE_SECONDS="1")
    with server.connect() as wire:
        wire.send("PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
        started = time.monotonic()
        assert server.stop() == 0
        assert 0.9 < time.monotonic() - started < 8     # with 10 seconds it would take them
    assert not (server.storage / "p").exists()


def test_a_port_that_is_taken_stops_it_with_one_clear_line_and_leaves_nothing(live_server, tmp_path):
    ended = run_to_its_end(tmp_path, SERVER_PORT=str(live_server.port))
    assert (ended.returncode > 0, ended.stdout.count("\n")) == (True, 1), ended.stdout
    assert str(live_server.port) in ended.stdout and "SERVER_PORT" in ended.stdout
    left = {path.name for path in (tmp_path / "models" / ".staging").iterdir()}
    assert left <= {"locks", "start.lock", "replaced"}


@pytest.mark.parametrize(("path", "advice"), [
    ("file", "MODEL_STORAGE_PATH has to be a directory"),
    ("file/models", "MODEL_STORAGE_PATH has to be a directory"),
    ("x" * 300, "MODEL_STORAGE_PATH has to be a directory"),
    ("closed", "chown -R {uid}:{gid} {path}"),
    ("closed/models", "chown -R {uid}:{gid} {path}"),
    ("closed/my models", "chown -R {uid}:{gid} '{path}'"),
])
def test_a_storage_that_cannot_be_written_names_who_it_is_and_what_mends_it(tmp_path, path, advice):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0)
    path = tmp_path / path
    ended = run_to_its_end(tmp_path, *NOT_ALMIGHTY, MODEL_STORAGE_PATH=str(path))
    assert (ended.returncode > 0, ended.stdout.count("\n")) == (True, 1), ended.stdout
    uid, gid = os.getuid(), os.getgid()
    for part in (str(path), f"uid {uid}, gid {gid}", advice.format(uid=uid, gid=gid, path=path)):
        assert part in ended.stdout
    assert ("chown" in ended.stdout) == ("chown" in advice)


def test_the_start_line_says_where_and_how(start, tmp_path):
    server = start(MODEL_MAX_SIZE="5M", MODEL_OVERWRITE="deny", storage=tmp_path / "deep" / "er")
    line = next(line for line in server.lines if " serving " in line)
    assert (f"serving {tmp_path}/deep/er at http://127.0.0.1:{server.port}, overwrite deny, limit {5 << 20}, "
            "anonymous all\n") in line
    assert (tmp_path / "deep" / "er").is_dir()
    assert server.stop() == 0
    assert server.lines[-1].endswith("stopped\n")


@pytest.mark.skipif(Path("/app/models").exists(), reason="there is an /app/models here")
def test_where_app_models_cannot_be_made_the_models_go_to_the_working_directory(start, tmp_path):
    need("a mount namespace")
    server = start(*read_only_but(tmp_path, SANDBOX.replace("exec", 'cd "$0"; exec')), MODEL_STORAGE_PATH="")
    assert f" serving {tmp_path}/models at " in server.log()
    assert "./models" in server.log()
    assert not Path("/app/models").exists()


def test_the_access_log_is_one_line_a_request_that_awk_can_cut(live_server, http, project):
    url = f"{live_server.url}/models/{project}/a/1/m"
    asked = [http.put(url, data=b"x" * 1234), http.get(url), http.get(url, headers={"Range": "bytes=0-9"}),
             http.head(url), http.get(f"{live_server.url}/models/%20/%0Aforged%20line?q=1")]
    for got, size in zip(asked, (1234, 1234, 10, 0, None), strict=True):
        request_id = got.headers["X-Request-Id"]
        line = live_server.line_of(request_id)
        path = re.escape(got.request.path_url.partition("?")[0])
        sent = str(len(got.content) if size is None else size)
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{{4}} INFO access {got.request.method} {path} "
                            rf"{got.status_code} {sent} \d+\.\d {request_id} 127\.0\.0\.1\n", line), line


# ---- how it ends


def refuses(port):
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_upload_finish_and_nobody_new_in(start, sign):
    server, body = start(), os.urandom(3_000_000)
    with server.connect() as idle, server.connect() as wire:
        wire.send(f"PUT /models/p/a/1/m HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n", body[:1_500_000])
        eventually(lambda: list(server.storage.glob(".staging/*/*/model")), "the draft")
        server.process.send_signal(sign)
        eventually(lambda: refuses(server.port), "the end of listening")
        assert idle.at_end()        # a connection without a request is closed
        assert server.process.poll() is None
        wire.send(body[1_500_000:])
        status, headers, _ = wire.response()
        assert (status, headers["connection"], wire.at_end()) == (201, "close", True)
    assert (server.process.wait(15), server.stop()) == (0, 0)
    assert "Traceback" not in server.log()
    assert (server.storage / "p/a/1/m/model").read_bytes() == body
    again = LiveServer(server.storage)
    try:
        assert requests.get(f"{again.url}/models/p/a/1/m", timeout=10).content == body
    finally:
        assert again.stop() == 0


def test_what_was_sent_before_the_signal_is_answered(make_app):
    """Also on connections that the server has not accepted yet."""
    server = Server(make_app().app, "127.0.0.1", 0, 2, 100, idle=10, grace=20, proxies=(), prefix="")
    port = server.addresses[0].rpartition(":")[2]
    with ExitStack() as wires:
        clients = [wires.enter_context(Wire(socket.create_connection(("127.0.0.1", port), 20))) for _ in range(30)]
        for number, wire in enumerate(clients):
            wire.send(f"PUT /models/p/a/1/m{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nmodel")
        server.stop()
        server.run()
        answers = [wire.response() for wire in clients]
        assert {(status, headers["connection"]) for status, headers, _ in answers} == {(201, "close")}
        assert all(wire.at_end() for wire in clients)
    for entry in [*server._map.values()]:   # otherwise the process ends then
        entry.close()


@pytest.fixture
def in_a_terminal():
    """SIGHUP is not ignored, though these tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_server_ends_at_once_with_0(start, in_a_terminal, sign):
    server = start()
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    assert server.stop(sign) == 0
    assert "Traceback" not in server.log()
    assert {path.name for path in (server.storage / ".staging").iterdir()} <= {"locks", "start.lock", "replaced"}


def test_a_server_under_nohup_outlives_its_terminal(start):
    server = start("nohup")
    server.process.send_signal(signal.SIGHUP)
    assert requests.get(f"{server.url}/health", timeout=10).status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize(("files", "said"), [("256", "only 48 connections at once"), ("16448", "")])
def test_a_low_limit_of_open_files_is_said(start, files, said):
    server = start("bash", "-c", f'ulimit -n {files}; exec "$@"', "-")
    assert server.stop() == 0
    assert ("connections at once" in server.log()) == bool(said) and said in server.log()


def test_a_misspelt_setting_is_named(start):
    server = start(MODEL_TOKEN_FILE="tokens", TRUSTED_PROXIES="127.0.0.1", SERVER_PORT_80_TCP="x", MODEL_PICKLES="deny",
                   MODEL_PICKLE="deny")
    assert server.stop() == 0
    assert dict(re.findall(r"(\w+) is not a setting, so it changes nothing: is (\w+) meant", server.log())) == {
        "MODEL_TOKEN_FILE": "MODEL_TOKENS_FILE", "TRUSTED_PROXIES": "TRUSTED_PROXY"}

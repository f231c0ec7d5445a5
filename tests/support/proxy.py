"""nginx with the configuration in deploy/, in front of servers."""

import re
import socket
import ssl
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from support.common import ROOT, eventually
from support.live import Wire

CONF = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
TRUSTED = {"TRUSTED_PROXY": "127.0.0.1"}
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A directory with a self-signed certificate."""
    place = tmp_path_factory.mktemp("tls")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", place / "privkey.pem",
                    "-out", place / "fullchain.pem"], check=True, capture_output=True)
    return place


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for it in sockets:
        it.bind(("127.0.0.1", 0))
    ports = [it.getsockname()[1] for it in sockets]
    for it in sockets:
        it.close()
    return ports


def replaced(text, old, new):
    assert old in text, f"deploy/nginx.conf has no {old!r} any more"
    return text.replace(old, new)


class Proxy:
    """nginx with deploy/nginx.conf, in front of the servers at these ports."""

    def __init__(self, place, tls, *ports, prefixed=None):
        self.place, self.tls = place, tls
        self.http, self.https = free_ports(2)
        text = CONF
        if prefixed:    # uncomments the example of a sub-path
            for start, end in (("# location /models-eu/", "# }"), ("# location ~ ^/+models-eu/+metrics", "# }"),
                               ("# location ~ ^/+models-eu/+[", "# }"),
                               ("# upstream models_eu", "# }")):
                begin = text.index(start)
                stop = text.index(end, begin) + len(end)
                text = text[:begin] + re.sub(r"(?m)^( *)# ", r"\1", text[begin:stop]).removeprefix("# ") + text[stop:]
            text = replaced(text, "ai-model-repository-eu:8000", f"127.0.0.1:{prefixed}")
        text = re.sub(r"(?m)^ *listen \[::\]:.*\n", "", text)
        line = re.search(r"server ai-model-repository:8000\b.*;", text)[0]
        servers = "\n        ".join(line.replace("ai-model-repository:8000", f"127.0.0.1:{port}") for port in ports)
        for old, new in ((line, servers),
                         ("listen 80;", f"listen 127.0.0.1:{self.http};"),
                         ("listen 443 ssl", f"listen 127.0.0.1:{self.https} ssl"),
                         ("/etc/nginx/tls", str(tls)), ("/run/nginx.pid", f"{place}/nginx.pid"),
                         ("/var/log/nginx/", f"{place}/"),
                         ("\nhttp {", "\nhttp {" + "".join(f"\n{x}_temp_path {place}/{x};" for x in TEMPORARY))):
            text = replaced(text, old, new)
        (place / "nginx.conf").write_text(text)
        self.process = subprocess.Popen(["nginx", "-p", place, "-c", place / "nginx.conf", "-e", place / "error.log",
                                         "-g", "daemon off;"], stderr=subprocess.PIPE)
        eventually(lambda: self._has_started(place / "nginx.pid"), "nginx")

    def _has_started(self, pid):
        assert self.process.poll() is None, self.process.stderr.read().decode()
        return pid.exists() and pid.read_text()

    @property
    def url(self):
        return f"https://localhost:{self.https}"

    @property
    def plain_url(self):
        return f"http://localhost:{self.http}"

    def session(self, source=None):
        """requests, from an address of its choice."""
        class From(HTTPAdapter):
            def init_poolmanager(self, *arguments, **options):
                super().init_poolmanager(*arguments, source_address=(source, 0) if source else None, **options)

        session = requests.Session()
        session.mount("https://", From())
        session.trust_env = False       # otherwise REQUESTS_CA_BUNDLE takes precedence
        session.verify = str(self.tls / "fullchain.pem")
        return session

    def connect(self):
        context = ssl.create_default_context(cafile=self.tls / "fullchain.pem")
        raw = socket.create_connection(("127.0.0.1", self.https), 20)
        return Wire(context.wrap_socket(raw, server_hostname="localhost"))

    def curl(self, *arguments):
        return subprocess.run(["curl", "-q", "-sS", "--cacert", self.tls / "fullchain.pem", "--noproxy", "*",
                               *map(str, arguments)], capture_output=True, timeout=600)

    def access_log(self):
        return (self.place / "access.log").read_text()

    def processes(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def stop(self):
        """Stops nginx; returns what it complained about."""
        self.process.terminate()
        self.process.wait(20)
        self.process.stderr.close()
        return (self.place / "error.log").read_text()


@contextmanager
def proxy(place, tls, *ports, clean=True, **options):
    place.mkdir()
    it = Proxy(place, tls, *ports, **options)
    try:
        yield it
    finally:
        complaints = it.stop()
    written = [path for name in TEMPORARY for path in (place / name).rglob("*") if path.is_file()]
    assert not written
    # among them that a body was "buffered to a temporary file", and that one could not be: nobody may write there
    assert not clean or not complaints, complaints

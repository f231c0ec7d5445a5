"""Requests as bytes on the wire."""


def head(request, *headers, version="1.1"):
    return "\r\n".join([f"{request} HTTP/{version}", "Host: localhost", *headers, "", ""])


def chunks(data, size=60_000):
    pieces = [data[n : n + size] for n in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"

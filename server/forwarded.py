"""What a reverse proxy says about its client. It is believed if the connection comes from a trusted address."""

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

Network = IPv4Network | IPv6Network


def forward(environ: dict[str, Any], trusted: tuple[Network, ...]) -> None:
    """Puts the client, scheme and host that a trusted proxy names into a WSGI environment.

    The last of several values counts, because the trusted proxy itself has added that; those before it came with the
    request. Request.check_host() checks whether they can be part of a URL.
    """
    if not trusted or not is_trusted(environ["REMOTE_ADDR"], trusted):
        return
    if scheme := last(environ, "HTTP_X_FORWARDED_PROTO"):
        environ["wsgi.url_scheme"] = scheme.lower()     # RFC 3986 3.1
    if host := last(environ, "HTTP_X_FORWARDED_HOST"):
        environ["HTTP_HOST"] = host
    if client := last(environ, "HTTP_X_FORWARDED_FOR"):
        environ["REMOTE_ADDR"] = without_port(client)


def is_trusted(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        client = ip_address(address)
    except ValueError:
        return False
    return any(client in network for network in trusted)


def last(environ: dict[str, Any], variable: str) -> str:
    """The last of the values between commas, without its quotes; empty if there is none."""
    value: str = environ.get(variable, "").rpartition(",")[2].strip(" \t")
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def without_port(client: str) -> str:
    """The address of 192.0.2.1:80, [2001:db8::1]:80 or [2001:db8::1]; anything else as it is."""
    if client.startswith("["):
        return client[1:].partition("]")[0]
    address, _, port = client.partition(":")
    return address if port.isdecimal() else client

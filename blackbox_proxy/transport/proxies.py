"""Which proxy the environment names for a server: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, and NO_PROXY before them all."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from blackbox_proxy.errors import InputError
from blackbox_proxy.secrets import basic
from blackbox_proxy.transport.address import shown_url

_SOCKS = {"socks": "socks5", "socks5": "socks5", "socks5h": "socks5h"}


def proxy_for(url: str) -> str | None:
    """The URL of the proxy between this machine and `url`; None where it is asked directly.

    Raises InputError, which names the variable, for a proxy that cannot be used.
    """
    return _named(url)[0]


def on_the_way(url: str) -> str:
    """The proxy between this machine and `url` in words for a message, with what names it; "" without one."""
    try:
        proxy, where = _named(url)
    except InputError:  # set since: what was asked was not asked through it
        return ""
    return "" if proxy is None else f"the proxy {shown_url(proxy)} of {where}"


def _named(url: str) -> tuple[str | None, str]:
    """The proxy, and where its name stands."""
    parts = urlsplit(url)
    found = getproxies()
    scheme = next((name for name in (parts.scheme, "all") if found.get(name)), None)
    if scheme is None or proxy_bypass(parts.netloc.rpartition("@")[2]) or _in_a_network(parts.hostname, found):
        return None, ""
    given = found[scheme].strip()
    variable = next((name for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()) if os.environ.get(name)), None)
    where = f"the environment variable {variable}" if variable else "the system's settings"
    proxy = given if "://" in given else f"http://{given}"
    kind, _, rest = proxy.partition("://")
    kind = _SOCKS.get(kind.lower(), kind.lower())
    try:
        named = urlsplit(f"{kind}://{rest}")
        whole = bool(named.hostname) and (named.port is None or named.port > 0)
    except ValueError:
        whole = False
    if not whole or kind not in ("http", "https", *_SOCKS):
        raise InputError(
            f"{where} names a proxy that cannot be used: {shown_url(proxy)!r}",
            hint="It looks like http://proxy:3128 or socks5://proxy:1080; NO_PROXY names servers to ask without it.",
        )
    if kind in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise InputError(
            f"{where} names a SOCKS proxy ({shown_url(proxy)}), which needs the extra 'socks': "
            "pip install 'blackbox-proxy[socks]'",
            hint="Or name this server in NO_PROXY to ask it without the proxy.",
        )
    if named.username or named.password:
        basic(unquote(named.username or ""), unquote(named.password or ""))
    return f"{kind}://{rest}", where


def _in_a_network(host: str | None, found: Mapping[str, str]) -> bool:
    """Whether NO_PROXY names a network (10.0.0.0/8) that this address lies in."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    for named in found.get("no", "").split(","):
        try:
            if "/" in named and address in ipaddress.ip_network(named.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False

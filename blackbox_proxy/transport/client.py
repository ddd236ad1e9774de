"""The HTTP client: what is secret is added to a request here, on its last step, for the one server it is meant for.

So no library object holds a key, and none of them can log or show it. No redirect leads to another origin, since the
key and the prompt would go along; a server's cookies are not kept; answers are bounded (bounds.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from blackbox_proxy.errors import BadResponse
from blackbox_proxy.transport.address import origin, shown_url
from blackbox_proxy.transport.bounds import Bounded, allowed, named

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)


class Guarded(httpx2.AsyncBaseTransport):
    """Sends requests to one origin. headers: those that every request gets, in place of its own authorization.
    query: added to every URL. Raises BadResponse for redirects elsewhere and for answers too long or oddly packed.
    """

    def __init__(
        self, home: str, headers: Mapping[str, str], query: Sequence[tuple[str, str]], proxy: str | None
    ) -> None:
        self._home = origin(home)
        self._headers = dict(headers)
        self._query = tuple(query)
        self._inner = httpx2.AsyncHTTPTransport(limits=_LIMITS, proxy=proxy)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        if self._query:
            url = url.copy_with(params=url.params.merge(httpx2.QueryParams(list(self._query))))
        headers = request.headers.copy()
        for name in ("authorization", "cookie"):
            headers.pop(name, None)
        headers.update({**self._headers, "accept-encoding": "gzip"})
        for _ in range(_MOST_REDIRECTS + 1):
            asked = httpx2.Request(
                request.method, url, headers=headers, stream=request.stream, extensions=request.extensions
            )
            with named():
                response = await self._inner.handle_async_request(asked)
            where = response.headers.get("location")
            if response.status_code not in _REDIRECTS or where is None:
                return await self._bounded(response, shown_url(str(url)))
            await response.aclose()
            url = self._followed(url, where)
        raise BadResponse(
            f"{shown_url(str(request.url))} sends every request on to another place",
            hint="Check base_url: the server, or something before it, sends requests in a circle.",
        )

    def _followed(self, url: httpx2.URL, where: str) -> httpx2.URL:
        """The place that a redirect names, of the same origin."""
        here = shown_url(str(url))
        try:
            there = url.join(where).copy_with(userinfo=b"", fragment=None)
            same = origin(str(there)) == self._home
        except (ValueError, httpx2.InvalidURL):
            raise BadResponse(
                f"{here} sends the request on to something that is no URL", hint="Check base_url."
            ) from None
        if not same:
            raise BadResponse(
                f"{here} sends the request on to {shown_url(str(there))}, another server; key and prompt were not sent "
                "there",
                hint="If that is the right server, give its URL as base_url.",
            )
        return there

    @staticmethod
    async def _bounded(response: httpx2.Response, url: str) -> httpx2.Response:
        headers = response.headers.copy()
        coding = headers.pop("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            await response.aclose()
            coding = "".join(c for c in coding if c.isalnum() or c in "-, ")[:40]
            raise BadResponse(f"{url} packs its answers as {coding!r}, which was not asked for", hint="Check base_url.")
        packed = coding.endswith("gzip")
        if packed:
            headers.pop("content-length", None)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        return httpx2.Response(
            response.status_code,
            headers=headers,
            stream=Bounded(response.stream, allowed(), url, packed=packed),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


def http_client(
    home: str, headers: Mapping[str, str], query: Sequence[tuple[str, str]], proxy: str | None, timeout: float
) -> httpx2.AsyncClient:
    """A client for one server. timeout: seconds without a byte, and to connect."""
    jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx2.AsyncClient(
        transport=Guarded(home, headers, query, proxy), timeout=timeout, cookies=jar, follow_redirects=False
    )

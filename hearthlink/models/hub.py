"""A model hub over HTTP: what a file is, and its bytes from any place on. Redirects are followed by hand, so that the
token is shown to the hub alone.

Protocol (huggingface.co/docs/hub, huggingface_hub's file_download): ``GET /owner/repo/resolve/revision/file`` redirects
to a store. The hub's own responses tell what the file is: X-Linked-Size, X-Linked-Etag (the sha256 of a large file) and
X-Repo-Commit. The store's ETag is its own and good only for asking it again.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote

import httpx2

from hearthlink.client import cause_of
from hearthlink.models.patience import Passing
from hearthlink.models.reference import Reference
from hearthlink.output import Failure, Status, printable
from shared import __version__
from shared.addresses import is_loopback, is_tailnet, split_url

ENDPOINT = "https://huggingface.co"
_CONNECT_SECONDS = 10.0
_SILENT_SECONDS = 30.0
_MAX_REDIRECTS = 10
_LONGEST_SECONDS = 10**9  # of a Retry-After: beyond it the number is nonsense
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# What another try may mend. 408, 425 and 429 say so; the rest is a server in trouble.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_TELLS = ("x-repo-commit", "x-linked-size", "x-linked-etag")
_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Never over a proxy, whatever the environment says.
_LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub describes it. ``size`` in bytes; ``etag`` without quotes; ``sha256`` is empty where the hub
    does not tell it; ``commit`` is what the revision stands for now, else the revision."""

    path: str
    size: int
    etag: str
    sha256: str
    commit: str


class Hub:
    """``with Hub.from_environment() as hub``. ``token`` goes with requests to ``endpoint`` and with no others.

    Proxies of the environment are used, but not for loopback. Every method raises Failure, and Passing for what another
    try may mend.
    """

    def __init__(self, endpoint: str = ENDPOINT, token: str | None = None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._origin = _origin(httpx2.URL(self.endpoint))
        self._token = token
        try:
            self._client = httpx2.Client(
                headers={"User-Agent": f"hearthlink/{__version__}", "Accept-Encoding": "identity"},
                timeout=httpx2.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS),
                mounts=dict.fromkeys(_LOOPBACK),
            )
        except (ImportError, ValueError, httpx2.InvalidURL):
            raise Failure(
                "The proxy that the environment names cannot be used: correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY to"
                " http://HOST:PORT, or name the hub in NO_PROXY.",
                Status.USAGE,
            ) from None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Hub:
        """The hub of HF_ENDPOINT, with HF_TOKEN. Raises Failure when one of them cannot be used."""
        endpoint = environ.get("HF_ENDPOINT") or ENDPOINT
        try:
            url = split_url(endpoint, "http", "https")
        except ValueError as error:
            raise Failure(f"HF_ENDPOINT {error}, such as {ENDPOINT}.", Status.USAGE) from None
        token = environ.get("HF_TOKEN", "").strip() or None
        if token is not None and not _TOKEN.fullmatch(token):
            raise Failure("HF_TOKEN is not a token: it must be one line of ASCII without spaces.", Status.USAGE)
        host = url.hostname or ""
        if token is not None and url.scheme == "http" and not is_loopback(host) and not is_tailnet(host):
            raise Failure(
                f"HF_TOKEN would travel unencrypted to {endpoint}. Use https there, or unset HF_TOKEN.", Status.USAGE
            )
        return cls(endpoint, token)

    def __enter__(self) -> Hub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def look(self, reference: Reference, path: str) -> RemoteFile:
        """What the file ``path`` of the repository is now."""
        told: dict[str, str] = {}
        with closing(self._hops("HEAD", self._url(reference, reference.revision, path), {})) as hops:
            for response in hops:
                if self._is_hub(response.url):
                    told = {name: response.headers[name] for name in _TELLS if name in response.headers} | told
                if response.status_code not in _REDIRECTS:
                    self._check(response, reference, path)
                    told.setdefault("x-linked-size", response.headers.get("content-length", ""))
                    told["etag"] = response.headers.get("etag", "")
                elif "x-linked-size" in told:
                    break  # the store need not be asked; its URL is often good for GET only
        return self._described(reference, path, told)

    @contextmanager
    def open(
        self, reference: Reference, remote: RemoteFile, offset: int = 0, validator: str = ""
    ) -> Iterator[httpx2.Response]:
        """The response that holds the bytes from ``offset`` on: 206, or 200 for all of them, or 416. ``validator`` is
        the strong ETag of the bytes before; when it is not the file's any more, all of them are sent."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator:
            headers["If-Range"] = validator
        url = self._url(reference, remote.commit, remote.path)
        with closing(self._hops("GET", url, headers)) as hops:
            response = next(response for response in hops if response.status_code not in _REDIRECTS)
            if response.status_code != 416:
                self._check(response, reference, remote.path)
            yield response

    def unreachable(self, error: httpx2.TransportError) -> Failure | Passing:
        """What a failed connection means. Path and query of the URL are not shown: stores sign theirs."""
        where = _shown(error.request.url)
        cause = printable(cause_of(error))
        if "CERTIFICATE" in cause.upper():
            return Failure(f"The certificate of {where} is not trusted ({cause}).", Status.UNAVAILABLE)
        if isinstance(error, httpx2.ProxyError):
            advice = "Correct HTTPS_PROXY, or name the host in NO_PROXY."
            return Failure(f"The proxy does not lead to {where} ({cause}). {advice}", Status.UNAVAILABLE)
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            advice = "Check the network, HTTPS_PROXY and HF_ENDPOINT."
            return Passing(f"Nothing answers at {where} ({cause}). {advice}")
        if isinstance(error, httpx2.TimeoutException):
            return Passing(f"{where} was silent for too long.")
        return Passing(f"The connection to {where} broke ({cause}).")

    def _url(self, reference: Reference, revision: str, path: str) -> httpx2.URL:
        parts = (reference.owner, reference.repo, "resolve", quote(revision, safe=""), quote(path))
        return httpx2.URL("/".join((self.endpoint, *parts)))

    def _is_hub(self, url: httpx2.URL) -> bool:
        return _origin(url) == self._origin

    def _hops(self, method: str, url: httpx2.URL, headers: Mapping[str, str]) -> Generator[httpx2.Response]:
        """Every response on the way to the file, unread; the one before is closed when the next is asked for."""
        for _ in range(_MAX_REDIRECTS + 1):
            request = self._client.build_request(method, url, headers=headers)
            if self._token is not None and self._is_hub(url):
                request.headers["Authorization"] = f"Bearer {self._token}"
            try:
                response = self._client.send(request, stream=True)
            except httpx2.TransportError as error:
                raise self.unreachable(error) from None
            with closing(response):
                yield response
                if response.status_code not in _REDIRECTS:
                    return
                url = _next(response)
        raise Failure(
            f"{_shown(url)} redirects in a circle: over {_MAX_REDIRECTS} times. Check HF_ENDPOINT.", Status.UNAVAILABLE
        )

    def _described(self, reference: Reference, path: str, told: Mapping[str, str]) -> RemoteFile:
        size, linked = told.get("x-linked-size", ""), _bare(told.get("x-linked-etag", ""))
        if not (size.isascii() and size.isdigit() and len(size) < 19):
            raise Failure(
                f"{self.endpoint} does not say how large {path} is: it does not answer as a model hub does. Check"
                " HF_ENDPOINT.",
                Status.UNAVAILABLE,
            )
        commit = told.get("x-repo-commit", "")
        return RemoteFile(
            path=path,
            size=int(size),
            etag=linked or _bare(told.get("etag", "")),
            sha256=linked.lower() if _SHA256.fullmatch(linked.lower()) else "",
            commit=commit if _COMMIT.fullmatch(commit) else reference.revision,
        )

    def _check(self, response: httpx2.Response, reference: Reference, path: str) -> None:
        """Raise what a refusal means; return for 200 and 206."""
        status = response.status_code
        if status in (200, 206):
            return
        where = _shown(response.url)
        if status in _PASSING:
            busy = "limits how often it may be asked" if status == 429 else "is in trouble"
            raise Passing(f"{where} {busy} (HTTP {status}).", pause=_retry_after(response.headers))
        if not self._is_hub(response.url):
            # A store's URL is signed and ends after some minutes; the hub gives a new one.
            raise Passing(f"{where} refused the file (HTTP {status}).")
        code = response.headers.get("x-error-code", "")
        repo = f"{reference.owner}/{reference.repo}"
        if status in (401, 403):
            raise self._denied(repo, code, status)
        if status == 404:
            raise self._missing(reference, repo, code, path)
        raise Failure(f"{where} answered HTTP {status} for {repo}, which means nothing here. Check HF_ENDPOINT.")

    def _denied(self, repo: str, code: str, status: int) -> Failure:
        page = f"{self.endpoint}/{repo}"
        if code == "GatedRepo":
            act = "use a token of an account that may" if self._token else "set HF_TOKEN to a token of that account"
            return Failure(f"{repo} is gated: accept its terms at {page} and {act}.", Status.AUTH)
        if self._token:
            return Failure(
                f"The hub does not let HF_TOKEN's account at {repo} (HTTP {status}). Check the name at {page}, and that"
                " the token is valid and may read it.",
                Status.AUTH,
            )
        return Failure(
            f"The hub shows {repo} to nobody without a token (HTTP {status}): the name is wrong, or it is private or"
            f" gated. Check it at {page}, or set HF_TOKEN.",
            Status.AUTH,
        )

    def _missing(self, reference: Reference, repo: str, code: str, path: str) -> Failure:
        if code == "RepoNotFound":
            said = f"There is no repository {repo} at {self.endpoint}. Check the name"
            said += "." if self._token else "; a private one needs HF_TOKEN."
        elif code == "RevisionNotFound":
            said = f"{repo} has no revision {reference.revision!r}. What it has is at {self.endpoint}/{repo}/commits"
        else:
            tree = f"{self.endpoint}/{repo}/tree/{quote(reference.revision, safe='')}"
            said = f"{repo} has no file {path} at {reference.revision}. What it has is at {tree}"
        return Failure(said, Status.NOT_FOUND)


def strong_etag(headers: Mapping[str, str]) -> str:
    """The ETag as it was sent when it stands for these very bytes, else ""."""
    etag = headers.get("etag", "")
    return etag if etag.startswith('"') and etag.endswith('"') and 2 < len(etag) <= 256 else ""


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host.lower(), url.port or {"http": 80, "https": 443}.get(url.scheme)


def _shown(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"


def _next(response: httpx2.Response) -> httpx2.URL:
    """Where a redirect leads. Raises Failure."""
    url = None
    with contextlib.suppress(httpx2.InvalidURL, ValueError, KeyError):
        url = response.url.join(response.headers["location"])
    if url is None or url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise Failure(f"{_shown(response.url)} redirects to nowhere. Check HF_ENDPOINT.", Status.UNAVAILABLE)
    if response.url.scheme == "https" and url.scheme == "http":
        raise Failure(
            f"{_shown(response.url)} redirects to {_shown(url)}, which is not encrypted. Check HF_ENDPOINT.",
            Status.UNAVAILABLE,
        )
    return url


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of a number or a date; None when there is neither."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:12]), _LONGEST_SECONDS))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None

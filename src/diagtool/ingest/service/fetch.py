"""Requests to a service that may be anything: bounded in time and size, whatever it answers.

urllib knows proxies and the certificates of the system. What it does not bound is done here: the time of a
whole request, redirects that would carry a password to another machine, and what is packed in an answer.
"""

from __future__ import annotations

import base64
import http.client
import socket
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from diagtool._version import __version__
from diagtool.capture.errors import BadEvidence, NoSuchTarget, NotPermitted, NotSupported, TargetError

__all__ = ["Body", "Client", "NotServed", "Slow", "is_address", "unpacked_body"]

_MOST_REDIRECTS = 5
_PIECE = 1 << 16
_RUNNING = "Is the service running, and does it serve net/http/pprof at this address?"


class NotServed(BadEvidence):
    """The service has nothing at this path."""


class Slow(TargetError):
    """No whole answer came in time."""

    hint = "Give it more time: --timeout 2m."


def is_address(target: object) -> bool:
    """Whether a target is the address of a service."""
    return isinstance(target, str) and target.lower().startswith(("http://", "https://"))


@dataclass(slots=True)
class Body:
    """The body of an answer, unpacked. ``url``: where it came from, after redirects."""

    url: str
    kind: str
    _read: Callable[[int], bytes]
    _most: int
    _rest: bytes = b""
    _size: int = 0
    _unpack: Any = None

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes, none at the end; all that is left where that is negative.

        Raises BadEvidence where there is more than was allowed.
        """
        if size < 0:
            return b"".join(iter(partial(self.read, _PIECE), b""))
        data = self._piece(size)
        self._size += len(data)
        if self._size > self._most:
            raise BadEvidence(f"{self.url} sends more than {self._most >> 20} MiB", _RUNNING)
        return data

    def _piece(self, size: int) -> bytes:
        if self._unpack is None:
            return self._read(size)
        try:
            while not self._unpack.eof:
                packed = self._unpack.unconsumed_tail or self._read(_PIECE)
                data: bytes = self._unpack.decompress(packed, size)
                if data or not packed:
                    return data
        except zlib.error as error:
            raise BadEvidence(f"the answer of {self.url} is damaged: {error}", _RUNNING) from None
        return b""


@dataclass
class Client:
    """Asks for paths below ``base``, a URL without a slash at its end. ``headers`` go to its machine alone.

    ``seconds``: for each request, from the connection to the last byte.
    """

    base: str
    headers: Sequence[tuple[str, str]] = ()
    seconds: float = 30.0
    shown: str = field(init=False)  # without a password
    _authority: tuple[str, str, int | None] = field(init=False)
    _query: str = field(init=False, default="")

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base)
            self._authority = _authority(self.base)
            if not parts.hostname or any(ord(c) <= 32 or ord(c) == 127 for c in self.base):
                raise ValueError("it names no machine, or has spaces in it")
            parts.hostname.encode("idna")
        except ValueError as error:  # UnicodeError, too
            raise NoSuchTarget(f"this is no address of a service: {error}", _RUNNING) from None
        if parts.username is not None:
            word = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            token = base64.b64encode(word.encode()).decode()
            self.headers = (("Authorization", f"Basic {token}"), *self.headers)
        host = parts.netloc.rpartition("@")[2]
        self.base = self.shown = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        self._query = parts.query

    @contextmanager
    def get(self, path: str, most: int) -> Iterator[Body]:
        """The answer to ``base + path``, at most ``most`` bytes of it unpacked. Raises TargetError."""
        query = "&" if "?" in path else "?"
        url = self.base + path + (query + self._query if self._query else "")
        shown = self.shown + path
        request = urllib.request.Request(url, headers={"User-Agent": f"diagtool/{__version__}"})
        for name, value in self.headers:
            request.add_unredirected_header(name, value)
        with _Watch(self.seconds) as watch:
            try:
                with self._opener(watch).open(request, timeout=self.seconds) as answer:
                    yield self._body(_Whole(answer, shown, watch, self.seconds), answer.headers, shown, most)
            except TargetError:
                raise
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                # Who reads from a socket that the watch ends meets any of these.
                raise (
                    _late(shown, self.seconds) if watch.ended.is_set() else self._error(error, shown)
                ) from None

    def _body(self, whole: _Whole, headers: http.client.HTTPMessage, shown: str, most: int) -> Body:
        encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise NotSupported(f"{shown} answers in the encoding {encoding[:40]}", _RUNNING)
        body = Body(shown, headers.get_content_type(), whole.read, most)
        body._unpack = zlib.decompressobj(31) if encoding == "gzip" else None
        return body

    def _opener(self, watch: _Watch) -> urllib.request.OpenerDirector:
        redirects = _Redirects(self._authority, self.headers)
        return urllib.request.build_opener(_Plain(watch), _Secure(watch), redirects)

    def _error(self, error: Exception, shown: str) -> TargetError:
        if isinstance(error, urllib.error.HTTPError):
            with error:
                return _refusal(error, shown)
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return Slow(f"{shown} did not answer within {self.seconds:g} s")
        if isinstance(reason, socket.gaierror):
            return NoSuchTarget(
                f"there is no machine {urlsplit(shown).hostname}", "Look at the address again."
            )
        if isinstance(reason, ConnectionRefusedError):
            return NoSuchTarget(f"nobody listens at {urlsplit(shown).netloc}", _RUNNING)
        if type(reason).__name__ == "SSLCertVerificationError":
            said = getattr(reason, "verify_message", "") or str(reason)
            hint = "SSL_CERT_FILE=FILE names the certificates to trust."
            return NotPermitted(f"the certificate of {urlsplit(shown).netloc} is not trusted: {said}", hint)
        said = str(reason).strip() or type(reason).__name__
        return BadEvidence(f"{shown} gives no answer that can be read: {said[:300]}", _RUNNING)


def _refusal(error: urllib.error.HTTPError, shown: str) -> TargetError:
    if error.code in (401, 403, 407):
        hint = "Say who asks: --header 'Authorization: Bearer …', or --header @FILE."
        return NotPermitted(f"{shown} may not be read ({error.code})", hint)
    if error.code in (404, 405, 410, 501):
        return NotServed(f"{shown} is not there ({error.code})", _RUNNING)
    if 300 <= error.code < 400:
        return BadEvidence(f"{shown} is redirected: {str(error.msg)[:200]}", _RUNNING)
    return BadEvidence(f"{shown} answers with the error {error.code}", _RUNNING)


def _late(shown: str, seconds: float) -> Slow:
    return Slow(f"{shown} had not answered wholly after {seconds:g} s")


@dataclass(slots=True)
class _Whole:
    """Reads an answer and notices when its end is missing."""

    answer: Any
    shown: str
    watch: _Watch
    seconds: float
    size: int = 0

    def read(self, size: int) -> bytes:
        data: bytes = self.answer.read(size)
        self.size += len(data)
        if self.watch.ended.is_set():
            raise _late(self.shown, self.seconds)
        if data or not size:
            return data
        told = self.answer.headers.get("Content-Length", "")
        if told.isdecimal() and len(told) < 19 and int(told) > self.size:
            raise BadEvidence(f"{self.shown} broke off its answer after {self.size:,} bytes", _RUNNING)
        return data


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = _MOST_REDIRECTS
    max_repeats = 2

    def __init__(self, authority: tuple[str, str, int | None], headers: Sequence[tuple[str, str]]) -> None:
        self._own, self._headers = authority, headers

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _authority(newurl) == self._own:
            for name, value in self._headers:
                new.add_unredirected_header(name, value)
        return new


def _authority(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname or "", parts.port


class _Watched(http.client.HTTPConnection):
    """A connection of which the watch has a socket of its own to end it by."""

    watch: _Watch

    def connect(self) -> None:
        super().connect()
        self.watch.add(self.sock.dup())


# The connection below TLS is the watched one: its connect() is what HTTPSConnection calls.
class _WatchedSecure(http.client.HTTPSConnection, _Watched):
    pass


class _Plain(urllib.request.HTTPHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._watch.of(_Watched), req)


class _Secure(urllib.request.HTTPSHandler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._watch.of(_WatchedSecure), req)


class _Watch:
    """Ends the connections of one request when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.sockets: list[socket.socket] = []
        self.ended = threading.Event()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def add(self, sock: socket.socket) -> None:
        """Know a socket of a connection; it is ended at once where the time is over already."""
        self.sockets.append(sock)
        if self.ended.is_set():
            self._end()

    def of(self, kind: type[_Watched]) -> Callable[..., http.client.HTTPConnection]:
        def made(host: str, **how: Any) -> http.client.HTTPConnection:
            connection = kind(host, **how)
            connection.watch = self
            return connection

        return made

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        for sock in self.sockets:
            sock.close()

    def _end(self) -> None:
        self.ended.set()
        for sock in list(self.sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def unpacked_body(data: bytes, most: int) -> bytes:
    """``data``, unpacked if it is gzip; at most ``most`` bytes. Raises ValueError with words."""
    for _ in range(2):  # some proxies pack once more
        if data[:2] != b"\x1f\x8b":
            break
        unpack = zlib.decompressobj(31)
        try:
            data = unpack.decompress(data, most + 1)
        except zlib.error as error:
            raise ValueError(f"it is damaged: {error}") from None
        if len(data) > most:
            raise ValueError(f"it unpacks to more than {most >> 20} MiB")
        if not unpack.eof:
            raise ValueError("it is cut off")
    return data

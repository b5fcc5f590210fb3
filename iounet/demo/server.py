"""The web server of the page: for one user on this machine, with Python's own library."""

import io
import json
import mimetypes
import sys
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from ..data.images import open_image
from ..errors import DataError
from ..refiner import IoURefiner
from .steps import tighten, upright

LARGEST_PHOTO = 100 * 2**20  # bytes
_PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_SHOWN_BY_BROWSERS = ("image/bmp", "image/gif", "image/jpeg", "image/png", "image/webp")
# With this policy the browser itself refuses to load from, or send to, any other server.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DemoServer(ThreadingHTTPServer):
    """Answers requests for the page, for the photos, and for boxes to be tightened.

    ============================  ==========================================================
    GET /, /page.css, /page.js    the page
    GET /photos                   a JSON list of the photos' names
    GET /photos/N                 photo N, counted from 0, in a format that browsers show
    POST /tighten?box=X,Y,X,Y     :class:`iounet.demo.Steps` as JSON; the body is the photo
    ============================  ==========================================================

    Errors are answered as ``{"error": message}``. Nothing is kept: the page sends the photo with each box.

    Args:
        address: (host, port) to listen at; port 0: any that is free.
        photos: offered on the page.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], refiner: IoURefiner, photos: Sequence[Path]):
        super().__init__(address, _Handler)
        self.refiner = refiner
        self.photos = list(photos)
        self.one_at_a_time = Lock()  # on a GPU, the detector's CUDA graphs serve one caller
        self.is_local = ip_address(str(self.server_address[0])).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints a traceback, unless the browser has merely hung up, as when the page is left."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_server(refiner: IoURefiner, photos: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> DemoServer:
    """A server that listens; ``serve_forever`` answers requests.

    Raises:
        OSError: the port is taken, or the host is not of this machine.
    """
    return DemoServer((host, port), refiner, photos)


def address_of(server: DemoServer) -> str:
    """The address to open in a browser."""
    host, port = server.server_address[:2]
    return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not self._is_asked_by_the_page():
            return
        if path in _PAGE:
            file = files(__package__) / "page" / _PAGE[path]
            self._answer(file.read_bytes(), mimetypes.guess_type(_PAGE[path])[0] or "")
        elif path == "/photos":
            self._answer_json([photo.name for photo in self.server.photos])
        elif path.startswith("/photos/") and path[8:].isdecimal() and int(path[8:]) < len(self.server.photos):
            try:
                self._answer(*_shown(self.server.photos[int(path[8:])]))
            except DataError as error:
                self._answer_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        else:
            self._answer_json({"error": f"there is no {path}"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        if not self._is_asked_by_the_page():
            return
        if url.path != "/tighten":
            return self._answer_json({"error": f"there is no {url.path}"}, HTTPStatus.NOT_FOUND)
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LARGEST_PHOTO:
            self.close_connection = True  # the body is left unread
            message = f"the photo is larger than {LARGEST_PHOTO // 2**20} MiB; reduce it"
            return self._answer_json({"error": message}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        photo = self.rfile.read(int(size))
        try:
            box = _numbers(parse_qs(url.query).get("box", [""])[0])
            with self.server.one_at_a_time:
                steps = tighten(self.server.refiner, photo, box)
        except DataError as error:
            return self._answer_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        self._answer_json(asdict(steps))

    def _is_asked_by_the_page(self) -> bool:
        """Whether the browser shows our page: another site's name may be made to lead here (DNS rebinding)."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:  # such as "[", half of an IPv6 address
            name = ""
        if not self.server.is_local or name == "localhost" or _is_loopback(name):
            return True
        self.close_connection = True
        self._answer_json({"error": f"this page is not at {name}"}, HTTPStatus.FORBIDDEN)
        return False

    def _answer_json(self, content: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._answer(json.dumps(content).encode(), "application/json", status)

    def _answer(self, body: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",  # no other site may show the photos
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Says nothing of each request."""


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise DataError(f"a box is four numbers x1,y1,x2,y2; got '{text}'") from None


def _shown(path: Path) -> tuple[bytes, str]:
    """A photo in a format that browsers show, and its media type: the file as it is, or a PNG.

    Raises:
        DataError: the file cannot be read.
    """
    with open_image(path) as file:
        media_type = Image.MIME.get(file.format or "", "")
    photo = path.read_bytes()
    if media_type in _SHOWN_BY_BROWSERS:
        return photo, media_type
    buffer = io.BytesIO()
    upright(photo).save(buffer, "PNG")
    return buffer.getvalue(), "image/png"

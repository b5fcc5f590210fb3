"""The web server of the demo page, for one user on this machine, built on `http.server`."""

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
# Makes the browser refuse to load from, or send to, any other server.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DemoServer(ThreadingHTTPServer):
    """Serves the page and its photos, and refines boxes.

    | request | answer |
    | --- | --- |
    | `GET /`, `/page.css`, `/page.js` | the page |
    | `GET /photos` | the photos' names as a JSON list |
    | `GET /photos/N` | photo N, counted from 0, in a format that browsers show |
    | `POST /tighten?box=X1,Y1,X2,Y2` with a photo as the body | `iounet.demo.Steps` as JSON |

    Errors are answered as `{"error": message}`. The server stores nothing: the page sends the photo with each box.

    Args:
        address: (host, port) to listen on. Port 0 selects any free port.
        refiner: Refines the boxes.
        photos: Image files to offer on the page.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], refiner: IoURefiner, photos: Sequence[Path]):
        super().__init__(address, _Handler)
        self.refiner = refiner
        self.photos = list(photos)
        self.one_at_a_time = Lock()  # on a GPU, the detector's CUDA graphs allow one caller at a time
        self.is_local = ip_address(str(self.server_address[0])).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the browser closed the connection, as it does when the user leaves the page."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_server(refiner: IoURefiner, photos: Sequence[Path], host: str = "127.0.0.1", port: int = 0) -> DemoServer:
    """Return a server that already listens. Call its `serve_forever` to answer requests.

    Args:
        refiner: Refines the boxes.
        photos: Image files to offer on the page.
        host: Address to listen on.
        port: Port to listen on. 0 selects any free port.

    Raises:
        OSError: The port is in use, or the host is not an address of this machine.
    """
    return DemoServer((host, port), refiner, photos)


def address_of(server: DemoServer) -> str:
    """Return the address to open in a browser."""
    host, port = server.server_address[:2]
    return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not self._has_local_host_name():
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
            self._answer_json({"error": f"{path} does not exist"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        if not self._has_local_host_name():
            return
        if url.path != "/tighten":
            return self._answer_json({"error": f"{url.path} does not exist"}, HTTPStatus.NOT_FOUND)
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > LARGEST_PHOTO:
            self.close_connection = True  # because the body was not read
            message = f"the photo is larger than {LARGEST_PHOTO // 2**20} MiB; use a smaller file"
            return self._answer_json({"error": message}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        photo = self.rfile.read(int(size))
        try:
            box = _numbers(parse_qs(url.query).get("box", [""])[0])
            with self.server.one_at_a_time:
                steps = tighten(self.server.refiner, photo, box)
        except DataError as error:
            return self._answer_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        self._answer_json(asdict(steps))

    def _has_local_host_name(self) -> bool:
        """Return whether the request's host name is allowed. If it is not, answer with an error.

        A local server allows only local names, which protects against DNS rebinding.
        """
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:  # such as "[", half of an IPv6 address
            name = ""
        if not self.server.is_local or name == "localhost" or _is_loopback(name):
            return True
        self.close_connection = True
        self._answer_json(
            {"error": f"the host name '{name}' is not local; open {address_of(self.server)}"}, HTTPStatus.FORBIDDEN
        )
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
        """Do not log requests."""


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise DataError(f"expected a box of four numbers x1,y1,x2,y2; got '{text}'") from None


def _shown(path: Path) -> tuple[bytes, str]:
    """Return a photo in a format that browsers show, and its media type: the file itself, or its content as PNG.

    Raises:
        DataError: The file cannot be read.
    """
    with open_image(path) as file:
        media_type = Image.MIME.get(file.format or "", "")
    photo = path.read_bytes()
    if media_type in _SHOWN_BY_BROWSERS:
        return photo, media_type
    buffer = io.BytesIO()
    upright(photo).save(buffer, "PNG")
    return buffer.getvalue(), "image/png"

"""The demo server's answers and refusals."""

import http.client
import io
import json
import re
import threading
from importlib.resources import files

import pytest
from PIL import Image

from iounet.commands import demo as command
from iounet.demo import make_server, server, tighten

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, noise_photo):
    """A PNG, the same as a TIFF with an EXIF rotation, a file that is not a photo, and one that is not offered."""
    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise_photo().save(folder / "a.png")
    noise_photo().save(folder / "b.tif", exif=exif)
    (folder / "c.jpg").write_bytes(b"no photo")
    (folder / "secret.png").write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module")
def served(refiner, folder):
    with make_server(refiner, [folder / name for name in ("a.png", "b.tif", "c.jpg")]) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def ask(served):
    """A function from method, path and further arguments of HTTPConnection.request to status, body and headers."""

    def ask(method, path, **more):
        connection = http.client.HTTPConnection("127.0.0.1", served.server_address[1], timeout=60)
        connection.request(method, path, **more)
        response = connection.getresponse()
        answer = response.status, response.read(), response.headers
        connection.close()
        return answer

    return ask


def test_the_page(ask):
    for path, name, media_type in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        status, body, headers = ask("GET", path)
        assert (status, headers["Content-Type"]) == (200, media_type)
        assert body == (files("iounet.demo") / "page" / name).read_bytes()
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_refers_to_no_other_server():
    texts = [path.read_text() for path in (files("iounet.demo") / "page").iterdir()]
    addresses = re.findall(r"\w+://[\w./]*", "".join(texts))
    assert len(texts) == 3 and set(addresses) == {"http://www.w3.org/2000/svg"}  # SVG's XML namespace


class TestPhotos:
    def test_names(self, ask):
        assert json.loads(ask("GET", "/photos")[1]) == ["a.png", "b.tif", "c.jpg"]

    def test_a_format_that_browsers_show(self, ask, folder):
        status, body, headers = ask("GET", "/photos/0")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert body == (folder / "a.png").read_bytes()

    def test_a_format_that_browsers_do_not_show(self, ask, folder):
        status, body, headers = ask("GET", "/photos/1")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        with Image.open(io.BytesIO(body)) as shown, Image.open(folder / "a.png") as stored:
            turned = stored.transpose(Image.Transpose.ROTATE_270).convert("RGB")
            assert shown.size == (48, 64) and shown.tobytes() == turned.tobytes()
            assert 0x0112 not in shown.getexif()  # otherwise the browser would rotate it again

    def test_the_error_names_a_damaged_file(self, ask):
        status, body, _ = ask("GET", "/photos/2")
        assert status == 422 and "c.jpg: cannot be read as an image" in json.loads(body)["error"]

    @pytest.mark.parametrize("path", ["/photos/3", "/photos/-1", "/photos/x", "/photos/", "/photos/../secret.png",
                                      "/../../etc/passwd", "/page/index.html", "/index.html", "/tighten"])  # fmt: skip
    def test_nothing_else_is_served(self, ask, path):
        assert ask("GET", path)[0] == 404


class TestTighten:
    def test_steps(self, ask, folder, refiner):
        photo = (folder / "a.png").read_bytes()
        status, body, _ = ask("POST", "/tighten?box=8.5,9,40,44", body=photo)
        expected = tighten(refiner, photo, [8.5, 9, 40, 44])
        assert status == 200
        assert json.loads(body) == {"boxes": expected.boxes, "ious": expected.ious}

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("", "four numbers"),
            ("?box=1,2,x,4", "four numbers"),
            ("?box=1,2,3", "four finite"),
            ("?box=9,9,9,9", "no area"),
        ],
    )
    def test_boxes(self, ask, folder, query, message):
        status, body, _ = ask("POST", f"/tighten{query}", body=(folder / "a.png").read_bytes())
        assert status == 422 and message in json.loads(body)["error"]

    def test_a_file_that_is_not_a_photo(self, ask):
        status, body, _ = ask("POST", "/tighten?box=1,2,3,4", body=b"hello")
        assert status == 422 and "cannot be read as an image" in json.loads(body)["error"]

    def test_a_photo_that_is_too_large_is_not_read(self, ask):
        size = str(server.LARGEST_PHOTO + 1)
        status, body, _ = ask("POST", "/tighten?box=1,2,3,4", headers={"Content-Length": size})
        assert status == 413 and "larger than 100 MiB" in json.loads(body)["error"]

    def test_another_path(self, ask):
        assert ask("POST", "/photos", body=b"")[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 403),
        ("10.0.0.1", 403),
        ("[", 403),
    ],
)
def test_other_host_names_are_refused(ask, host, status):
    assert ask("GET", "/photos", headers={"Host": host})[0] == status
    expected = 422 if status == 200 else status
    assert ask("POST", "/tighten?box=1,2,3,4", body=b"", headers={"Host": host})[0] == expected


@pytest.mark.parametrize(("error", "printed"), [(BrokenPipeError, False), (RuntimeError, True)])
def test_a_closed_connection_prints_no_traceback(served, capsys, error, printed):
    try:
        raise error("raised here")
    except error:
        served.handle_error(None, ("127.0.0.1", 1))
    assert ("raised here" in capsys.readouterr().err) == printed


class TestCommand:
    def test_a_port_in_use(self, call, trained, served):
        port = served.server_address[1]
        message = call(command, "--weights", trained / "model_final.pth", "--port", port)
        assert message.startswith(f"cannot listen on 127.0.0.1:{port} (") and "choose another --port" in message

    def test_errors_name_the_file(self, call, trained, tmp_path):
        message = call(command, tmp_path / "none.jpg", "--weights", trained / "model_final.pth")
        assert "none.jpg: no such image or folder" in message
        assert "no such weights file" in call(command, "--weights", tmp_path / "none.pth")

    def test_prints_its_address_and_stops(self, call, trained, monkeypatch, capsys):
        def interrupted(self):
            raise KeyboardInterrupt

        monkeypatch.setattr(server.DemoServer, "serve_forever", interrupted)
        assert call(command, "--weights", trained / "model_final.pth", "--port", 0) is None
        assert re.match(r"open http://127\.0\.0\.1:\d+ in a browser; press Ctrl-C to stop\n", capsys.readouterr().out)

"""examples/browser in a real browser and its script in Node give the same boxes as ONNX Runtime in Python."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iounet.onnx import OnnxRefiner

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
FIRST = "img_2560.jpg"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_tool):
    """A copy of examples/ with the model and the packages that the README installs."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    examples = tmp_path_factory.mktemp("web") / "examples"
    for name in ("browser", "photos"):
        ignored = shutil.ignore_patterns("node_modules", "*.onnx", "package*.json")
        shutil.copytree(ROOT / "examples" / name, examples / name, ignore=ignored)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web", "sharp"]
    installed = subprocess.run(install, cwd=examples / "browser", capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"npm cannot install onnxruntime-web: {installed.stderr[-300:]}")
    weights, file = ROOT / "weights" / "cards.pth", examples / "browser" / "refiner.onnx"
    exported = run_tool("export_onnx.py", "--weights", weights, "--output", file)
    assert exported.returncode == 0, exported.stderr
    return examples / "browser"


@pytest.fixture(scope="module")
def loose():
    """Boxes [N, 4], xyxy, and labels on the first photo."""
    content = json.loads((PHOTOS / "loose.json").read_text())
    (image,) = [image["id"] for image in content["images"] if image["file_name"] == FIRST]
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] == image]
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    names = {category["id"]: category["name"] for category in content["categories"]}
    return boxes, [names[annotation["category_id"]] for annotation in annotations]


@pytest.fixture
def page(folder, start_chromium):
    """The page after the boxes of the first photo were refined, without animation."""
    from selenium.webdriver.support.ui import WebDriverWait

    handler = functools.partial(_QuietHandler, directory=folder.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser = start_chromium("--force-prefers-reduced-motion")
        try:
            browser.get(f"http://127.0.0.1:{server.server_port}/browser/")
            page = _Page(browser, WebDriverWait(browser, 120))
            page.wait_until_ready()
            yield page
            assert browser.get_log("browser") == []
        finally:
            browser.quit()
            server.shutdown()
            thread.join()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class _Page:
    """What users see and do on the page."""

    def __init__(self, browser, wait):
        self.browser, self.wait = browser, wait

    def find(self, id_):
        return self.browser.find_element("id", id_)

    def wait_until_ready(self):
        body = self.browser.find_element("tag name", "body")
        self.wait.until(lambda _: body.get_dom_attribute("data-state") in ("ready", "broken"))
        assert self.find("error").text == ""

    def rectangles(self, kind):
        rectangles = self.browser.find_elements("css selector", f"#overlay .box.{kind}")
        sides = np.array(
            [[float(each.get_dom_attribute(name)) for name in ("x", "y", "width", "height")] for each in rectangles]
        )
        return np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)

    def rows(self):
        return [row.text.split() for row in self.browser.find_elements("css selector", "#rows tr")]

    def pixels(self):
        """The displayed photo [H, W, 3], as decoded by the browser."""
        height, width, values = self.browser.execute_script("""
            const image = document.getElementById("image");
            const [width, height] = [image.naturalWidth, image.naturalHeight];
            const context = new OffscreenCanvas(width, height).getContext("2d");
            context.drawImage(image, 0, 0);
            return [height, width, [...context.getImageData(0, 0, width, height).data]];
        """)
        return np.array(values, dtype=np.uint8).reshape(height, width, 4)[..., :3]


def assert_agree(page, expected, names):
    """Coordinates must agree to 0.1 pixels, predicted IoUs to the two digits shown."""
    np.testing.assert_allclose(page.rectangles("is-tight"), expected.boxes, atol=0.1)
    for row, name, before, after in zip(page.rows(), names, expected.ious_before, expected.ious, strict=True):
        assert row[0] == name
        assert [float(text) for text in row[1:]] == pytest.approx([before, after], abs=0.0055)


def test_loose_boxes_tighten_at_once(page, folder, loose):
    boxes, names = loose
    photo = Image.open(PHOTOS / FIRST)
    expected = OnnxRefiner(folder / "refiner.onnx", threads=1).refine(photo, boxes, names)
    assert np.abs(expected.boxes - boxes).max() > 5, "boxes that stay prove nothing"
    np.testing.assert_array_equal(page.rectangles("is-loose"), boxes)
    assert_agree(page, expected, names)
    assert page.find("before").text == f"{expected.ious_before.mean():.2f}"
    assert page.find("after").text == f"{expected.ious.mean():.2f}"
    assert page.find("time").text.startswith(f"{len(boxes)} boxes in ")
    # The browser decodes JPEG as Pillow does.
    np.testing.assert_array_equal(page.pixels(), np.asarray(photo))


def test_a_drawn_box_on_a_photo_of_the_user(page, folder, tmp_path):
    from selenium.webdriver import ActionChains

    # A photo with EXIF orientation: the browser shows it upright, and the model must see it upright, too.
    photo = Image.open(PHOTOS / "cam_image45.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "mine.png", exif=exif)
    page.find("file").send_keys(str(tmp_path / "mine.png"))
    page.wait.until(lambda _: page.find("image").get_dom_attribute("alt") == "mine.png")
    page.wait_until_ready()
    assert len(page.rows()) == 0

    overlay = page.find("overlay")
    actions = ActionChains(page.browser, duration=20)
    for x, y in ((400, 180), (540, 370)):  # around the king; the offset is from the middle
        scale = overlay.rect["width"] / photo.width
        actions.move_to_element_with_offset(
            overlay, round((x - photo.width / 2) * scale), round((y - photo.height / 2) * scale)
        )
        if x == 400:
            actions.click_and_hold()
    actions.release().perform()
    page.wait_until_ready()
    drawn = page.rectangles("is-loose")
    np.testing.assert_allclose(drawn, [[400, 180, 540, 370]], atol=2)
    expected = OnnxRefiner(folder / "refiner.onnx", threads=1).refine(photo, drawn.astype(np.float32))
    assert np.abs(expected.boxes - drawn).max() > 5, "boxes that stay prove nothing"
    assert_agree(page, expected, ["drawn"])


def test_node(folder, loose):
    boxes, _ = loose
    photo = PHOTOS / FIRST
    given = [",".join(str(int(value)) for value in box) for box in boxes]
    run = subprocess.run(
        ["node", "refine.mjs", str(photo), *given], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    expected = OnnxRefiner(folder / "refiner.onnx", threads=1).refine(Image.open(photo), boxes)
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [line[0] for line in lines] == given
    refined = [[float(value) for value in line[2].split(",")] for line in lines]
    np.testing.assert_allclose(refined, expected.boxes, atol=0.1)
    ious = [[float(line[-3]), float(line[-1])] for line in lines]
    np.testing.assert_allclose(ious, np.stack([expected.ious_before, expected.ious], axis=1), atol=0.0055)

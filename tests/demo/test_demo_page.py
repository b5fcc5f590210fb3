"""The page in a real browser: draw a box, see it tighten, and go through the steps."""

import threading
from types import SimpleNamespace

import pytest
from PIL import Image

from iounet.demo import address_of, make_server, tighten

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

BOX = [10.0, 12.0, 40.0, 52.0]  # of the photo as it is shown, 48 pixels wide and 64 high


@pytest.fixture(scope="module")
def photos(tmp_path_factory, noise_photo):
    """Two photos stored sideways, with the EXIF orientation that turns them upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path_factory.mktemp("photos") / name for name in ("first.jpg", "second.jpg")]
    for seed, path in enumerate(paths):
        noise_photo(seed).convert("RGB").save(path, exif=exif)
    return paths


@pytest.fixture(scope="module")
def served(refiner, photos):
    with make_server(refiner, photos[:1]) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(start_chromium):
    browser = start_chromium()
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, served):
    """The page, freshly opened, with functions that act as its user and read what it shows."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    def find(id_):
        return browser.find_element("id", id_)

    def wait_until(true):
        WebDriverWait(browser, 60).until(lambda _: true())

    def wait_for(state):
        wait_until(lambda: browser.find_element("tag name", "body").get_dom_attribute("data-state") == state)

    def point(x, y):
        """Offsets from the photo's centre, as Selenium expects."""
        size = find("overlay").rect
        return round((x / 48 - 0.5) * size["width"]), round((y / 64 - 0.5) * size["height"])

    def gesture(*corners, drag):
        actions = ActionChains(browser, duration=20)
        for number, corner in enumerate(corners):
            actions.move_to_element_with_offset(find("overlay"), *point(*corner))
            if not drag:
                actions.click()
            elif number == 0:
                actions.click_and_hold()
        (actions.release() if drag else actions).perform()

    def rectangle(kind):
        element = browser.find_element("css selector", f"#overlay .box.{kind}")
        x, y, width, height = (float(element.get_dom_attribute(name)) for name in ("x", "y", "width", "height"))
        return [x, y, x + width, y + height]

    def go_to(step):
        browser.execute_script(
            "const s = document.getElementById('step'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
            step,
        )

    browser.get(address_of(served))
    wait_for("ready")
    yield SimpleNamespace(
        find=find,
        wait_until=wait_until,
        wait_for=wait_for,
        gesture=gesture,
        rectangle=rectangle,
        go_to=go_to,
        run=browser.execute_script,
    )
    assert browser.get_log("browser") == []


def see_every_step(page, expected):
    page.wait_for("done")
    last = len(expected.ious) - 1
    shown = [f"{expected.ious[step]:.2f}" for step in (0, last // 2, last)]
    assert len(set(shown)) == 3, "the steps must differ for this test to check anything"
    for step in (0, last // 2, last):
        page.go_to(step)
        assert page.find("before").text == f"{expected.ious[0]:.2f}"
        assert page.find("now").text == f"{expected.ious[step]:.2f}"
        assert page.find("count").text == f"step {step} of {last}"
        assert page.rectangle("is-tight") == pytest.approx(expected.boxes[step])
        assert page.rectangle("is-yours") == pytest.approx(expected.boxes[0])
    assert page.find("note").is_displayed() == (expected.ious[-1] < 0.5)


@pytest.mark.parametrize("drag", [True, False], ids=["drag", "two clicks"])
def test_a_box_is_drawn_and_tightens(page, refiner, photos, drag):
    x1, y1, x2, y2 = BOX
    page.gesture((x2, y1), (30, 30), (x1, y2), drag=drag) if drag else page.gesture((x2, y1), (x1, y2), drag=drag)
    page.wait_for("done")
    drawn = page.run("return yours")
    assert drawn == pytest.approx(BOX, abs=0.1)  # a screen pixel is smaller
    see_every_step(page, tighten(refiner, photos[0].read_bytes(), drawn))
    assert page.find("step").get_property("max") == str(refiner.detector.postprocessing.refinement.num_steps)


def test_the_page_plays_to_the_last_step(page):
    page.gesture((5, 5), (40, 60), drag=True)
    page.wait_for("done")
    last = page.run("return steps.ious.length - 1")
    page.wait_until(lambda: page.find("count").text == f"step {last} of {last}")
    assert page.run("document.getElementById('play').click(); return at") == 0
    page.wait_until(lambda: page.find("count").text == f"step {last} of {last}")


def test_a_photo_that_the_user_adds(page, refiner, photos):
    page.find("file").send_keys(str(photos[1]))
    page.wait_until(lambda: page.find("image").get_dom_attribute("alt") == "second.jpg")
    page.wait_for("ready")
    page.gesture((8, 9), (41, 50), drag=True)
    page.wait_for("done")
    see_every_step(page, tighten(refiner, photos[1].read_bytes(), page.run("return yours")))


def test_escape_cancels_a_box(page):
    page.gesture((8, 9), drag=False)
    page.wait_for("drawing")
    page.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    page.wait_for("ready")
    assert page.run("return document.getElementById('overlay').childElementCount") == 0


def test_the_error_names_a_file_that_is_not_a_photo(page, tmp_path):
    (tmp_path / "notes.png").write_text("no photo")
    page.find("file").send_keys(str(tmp_path / "notes.png"))
    page.wait_until(lambda: page.find("error").text)
    assert page.find("error").text == "notes.png cannot be shown; try a JPEG or PNG file."
    assert page.run("return photos.map((photo) => photo.name)") == ["first.jpg"]


def test_nothing_loads_from_other_servers(page, served):
    page.gesture((8, 9), (41, 50), drag=True)
    page.wait_for("done")
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {name.removeprefix(address_of(served)).partition("?")[0] for name in loaded} == {
        *("/page.css", "/page.js", "/photos", "/photos/0", "/tighten"),
    }

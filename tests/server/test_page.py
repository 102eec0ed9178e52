"""The page at `/` in a real browser: Debian's Chromium, driven by keyboard and at a phone's width."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kpl_engine.data import demo_bundle, demo_images
from kpl_engine.errors import OverloadedError, UnauthorizedError
from kpl_engine.imaging.sources import list_images
from tests.server.http.conftest import HttpServer

selenium = pytest.importorskip("selenium", reason="needs the test extra")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    log = tmp_path_factory.mktemp("page") / "log"
    ports = ["--http-port", "0", "--no-grpc", "--metrics-port", "0", "--drain-accept", "0s"]
    command = [sys.executable, "-m", "kpl_engine.cli.main", "serve", str(demo_bundle()), *ports]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        for _ in range(300):
            found = re.search(r"ready: (http://127\.0\.0\.1:\d+)", log.read_text())
            if found or process.poll() is not None:
                break
            time.sleep(0.1)
        assert found, log.read_text()
        yield found[1]
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


@pytest.fixture
def browser(tmp_path, request):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    width, height = getattr(request, "param", (1200, 900))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(argument)
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": {"width": width, "height": height}})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver, condition, what):
    return WebDriverWait(driver, 20, 0.05).until(lambda _: condition(), f"still waiting for {what}")


def element(driver, name):
    return driver.find_element(By.ID, name)


def opened(driver, address):
    driver.get(address)
    wait(driver, lambda: element(driver, "state").text == "ready", "the server's state")


def choose(driver, *paths):
    element(driver, "files").send_keys("\n".join(str(path) for path in paths))


def press_until(driver, name, most=12):
    """Tab to an element, as someone without a mouse."""
    for _ in range(most):
        if driver.switch_to.active_element.get_attribute("id") == name:
            return
        driver.switch_to.active_element.send_keys(Keys.TAB)
    raise AssertionError(f"{name} cannot be reached with Tab")


def answers(driver):
    return driver.find_elements(By.CSS_SELECTOR, "#results > li")


def screenshot(driver, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_from_files_to_evidence_by_keyboard_alone(browser, address):
    opened(browser, address)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    press_until(browser, "drop")
    pictures = list_images(demo_images())
    choose(browser, pictures[0], pictures[40], pictures[100])
    wait(browser, lambda: "3 images chosen" in element(browser, "chosen").text, "the files")
    press_until(browser, "mode")
    Select(element(browser, "mode"))  # it is a plain select: arrow keys and letters are the browser's own
    browser.switch_to.active_element.send_keys("b")
    assert element(browser, "mode").get_attribute("value") == "batch"
    press_until(browser, "classify")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait(browser, lambda: len(answers(browser)) == 3, "three answers")
    assert browser.switch_to.active_element.get_attribute("id") == "answers-title"
    assert "3 of 3 images answered by" in element(browser, "summary").text
    for answer in answers(browser):
        assert answer.find_element(By.CLASS_NAME, "label").text
        assert len(answer.find_elements(By.CSS_SELECTOR, ".bars tr")) == 5
        assert "similarity" in answer.find_element(By.CSS_SELECTOR, ".evidence li").text
    loaded = "return [...document.querySelectorAll('img.thumb')].every(i => i.complete && i.naturalWidth > 0)"
    wait(browser, lambda: browser.execute_script(loaded), "the previews")
    screenshot(browser, "answers")
    assert complaints(browser) == []


def test_a_bad_file_stands_in_its_place(browser, address, tmp_path):
    opened(browser, address)
    bad = tmp_path / "<img src=x onerror=alert(1)>.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    choose(browser, bad, list_images(demo_images())[3])
    wait(browser, lambda: element(browser, "classify").is_enabled(), "the button")
    element(browser, "classify").click()
    wait(browser, lambda: len(answers(browser)) == 2, "two answers")
    first, second = answers(browser)
    assert "Not usable" in first.text
    assert "onerror" in first.text  # the name is text, nothing of it ran
    assert second.find_element(By.CLASS_NAME, "label").text
    assert "1 of 2 images" in element(browser, "summary").text


def test_nothing_usable_says_why(browser, address, tmp_path):
    opened(browser, address)
    bad = tmp_path / "notes.txt"
    bad.write_text("no picture")
    choose(browser, bad)
    wait(browser, lambda: element(browser, "classify").is_enabled(), "the button")
    element(browser, "classify").click()
    wait(browser, lambda: element(browser, "summary").text.startswith("Refused"), "the refusal")


@pytest.mark.parametrize("browser", [(360, 740)], indirect=True)
def test_a_phone_needs_no_sideways_scrolling(browser, address):
    opened(browser, address)
    choose(browser, *list_images(demo_images())[:2])
    wait(browser, lambda: element(browser, "classify").is_enabled(), "the button")
    element(browser, "classify").click()
    wait(browser, lambda: len(answers(browser)) == 2, "two answers")
    root = browser.find_element(By.TAG_NAME, "html")
    assert root.get_property("scrollWidth") <= 360
    sizes = [each.size for each in browser.find_elements(By.CSS_SELECTOR, "button, select") if each.is_displayed()]
    assert all(size["height"] >= 40 for size in sizes), "large enough for a thumb"
    screenshot(browser, "phone")


def test_the_charts_move_and_speak(browser, address):
    opened(browser, address)
    choose(browser, *list_images(demo_images())[:2])
    wait(browser, lambda: element(browser, "classify").is_enabled(), "the button")
    element(browser, "classify").click()

    def points(name):
        return (browser.find_element(By.CSS_SELECTOR, f"#{name} path").get_attribute("d") or "").count(",")

    wait(browser, lambda: points("throughput") >= 3 and points("queue") >= 3 and points("latency") >= 1, "the charts")
    assert re.fullmatch(r"p50 [\d.]+, p99 [\d.]+ ms", element(browser, "latency-value").text)
    spoken = browser.find_element(By.CSS_SELECTOR, "#latency svg").get_attribute("aria-label")
    assert re.match(r"p50 and p99 over two minutes, max [\d.]+ ms, now p50", spoken)


def test_the_page_asks_no_other_host(browser, address):
    opened(browser, address)
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    assert f"{address}/page.js" in asked
    own = (f"{address}/", "data:", "blob:", "chrome://")  # the last is the browser's own first tab
    assert {url for url in asked if not url.startswith(own)} == set()


def ask_about_one(driver):
    choose(driver, list_images(demo_images())[7])
    wait(driver, lambda: element(driver, "classify").is_enabled(), "the button")
    element(driver, "classify").click()


def told(driver, name, *words):
    wait(driver, lambda: all(word in element(driver, name).text for word in words), f"{words} in {name}")


def test_full_stopping_and_away_are_told_and_asking_again_works(browser, service):
    with HttpServer(service) as server:
        opened(browser, server.url)
        service.fail_with = OverloadedError("full", 7)
        ask_about_one(browser)
        told(browser, "summary", "full", "7 s", "still chosen")
        service.fail_with = None
        element(browser, "classify").click()
        wait(browser, lambda: len(answers(browser)) == 1, "the answer")
        service.ready = False
        told(browser, "state", "starting or stopping")
        element(browser, "classify").click()
        told(browser, "summary", "starting or stopping", "still chosen")
        screenshot(browser, "stopping")
    told(browser, "state", "no answer")
    element(browser, "classify").click()
    told(browser, "summary", "did not answer", "still chosen")


def test_a_token_is_asked_for_when_the_server_wants_one(browser, service):
    right = "a-token-of-this-test"

    def guard(scope):
        if (b"authorization", f"Bearer {right}".encode()) not in scope["headers"]:
            raise UnauthorizedError("this server needs a token")

    with HttpServer(service, auth=guard) as server:
        browser.get(server.url)
        wait(browser, lambda: element(browser, "token").is_displayed(), "the field")
        element(browser, "token").send_keys("another-one", Keys.ENTER)
        wait(browser, lambda: element(browser, "token").is_displayed(), "the field again")
        told(browser, "state", "token needed")
        element(browser, "token").send_keys(right, Keys.ENTER)
        told(browser, "state", "ready")
        assert not element(browser, "token").is_displayed()
        ask_about_one(browser)
        wait(browser, lambda: len(answers(browser)) == 1, "the answer")
        kept = "return JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        assert right not in browser.execute_script(kept) + browser.page_source


def test_models_that_come_and_go_are_offered_and_a_choice_stays(browser, service):
    with HttpServer(service) as server:
        opened(browser, server.url)
        wait(browser, lambda: element(browser, "method").get_attribute("value") == "kpl", "the choices")
        Select(element(browser, "method")).select_by_value("zeroshot")
        model = service.model("demo")
        service.model = lambda name, version="": type(model)(**{**vars(model), "name": name})
        index = service.index()
        service.index = lambda: [*index, type(index[0])("second", "1", "READY", "")]
        offered = "return [...document.querySelectorAll('#model option')].map(o => o.value).join()"
        wait(browser, lambda: browser.execute_script(offered) == "demo,second", "the second model")
        assert element(browser, "model").get_attribute("value") == "demo"
        assert element(browser, "method").get_attribute("value") == "zeroshot"


def test_in_the_dark(browser, address):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    opened(browser, address)
    ask_about_one(browser)
    wait(browser, lambda: len(answers(browser)) == 1, "the answer")
    background = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert max(browser.execute_script(background)) < 64
    screenshot(browser, "dark")

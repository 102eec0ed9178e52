"""The HTML report: one file that fetches nothing, says what was measured and no more, and holds any text."""

import copy
import re
import shutil
from html.parser import HTMLParser

import pytest

from kpl_engine.bench.report import html
from kpl_engine.bench.report.axes import Axis, axis_over
from kpl_engine.bench.report.markup import Markup, element, table
from kpl_engine.bench.report.words import number, printable
from tests.bench.made_results import check, make_result

EMPTY = {"meta", "link", "br", "col"}
PICTURES = 7  # four scenarios, load, stages, batches


@pytest.fixture(scope="module")
def made():
    return make_result(1)


@pytest.fixture
def result(made):
    return copy.deepcopy(made)


class Page(HTMLParser):
    """Elements with their attributes and texts; fails where the nesting is not right."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.sections = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append([])
        if self.sections:
            self.sections[-1].append(tag)
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return "\n".join(self.texts)


def test_the_file_needs_nothing_else(result):
    result["subject"]["where"] = "http://10.0.0.7:8000"
    text = html.render(result)
    page = Page(text)
    names = {name for name, _ in page.elements}
    assert not names & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "a",
        "use",
        "image",
        "foreignobject",
    }
    for name, attributes in page.elements:
        assert not {each for each in attributes if each.startswith("on")}
        assert not set(attributes) & {"src", "srcset", "action", "xlink:href", "style"}
        assert attributes.get("href", "data:,") == "data:,", name
        assert "://" not in "".join(str(value) for key, value in attributes.items() if key != "aria-label")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "http://10.0.0.7:8000" in page.text
    assert len(text) < 150_000  # curves of 160 points, whatever was measured


def test_light_and_dark_and_narrow_pages_are_provided_for(result):
    text = html.render(result)
    assert "@media (prefers-color-scheme: dark)" in text
    assert "color-scheme: light dark" in text
    assert any(each.get("content") == "width=device-width, initial-scale=1" for each in Page(text).all("meta"))
    assert Page(text).all("html") == [{"lang": "en"}]


def test_every_picture_has_a_title_a_description_and_its_numbers(result):
    page = Page(html.render(result))
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identities)) == len(identities)
    pictures = page.all("svg")
    assert len(pictures) == PICTURES
    for picture in pictures:
        title, description = picture["aria-labelledby"].split()
        assert picture["role"] == "img"
        assert {title, description} <= set(identities)
    for section in page.sections:
        assert "svg" not in section or "table" in section
    assert "1500 queries; p50" in page.text


def test_loadgens_lines_are_in_sight_where_it_objects(result):
    result["scenarios"][0]["reasons"] = ["Min duration satisfied : Yes", "Min queries satisfied : Yes"]
    page = Page(html.render(result))
    assert page.text.count("What LoadGen adds") == 2
    assert [each for each in page.all("details") if "open" in each] == [{"open": "open"}]
    assert "Min duration satisfied : Yes\nMin queries satisfied : Yes\n" in page.texts


def test_the_figures_of_the_result_are_in_it(result):
    page = Page(html.render(result))
    for each in result["scenarios"][:3]:
        for percentile in each["latency"]["percentiles"].values():
            assert number(percentile["value"]) in page.texts
            if percentile["low"] is not None:
                assert f"{number(percentile['low'])} to {number(percentile['high'])}" in page.texts
    for word in (
        *("Result is : INVALID", "Would need to run at least 315 more", "right", "ViT-B-32", "AMD EPYC", "1.32.0"),
        *("encode", "unexplained", "bound 15 ms", "peak 110", "kpl-engine bench lung.kpl --images films/", "5191488"),
    ):
        assert word in page.text, word
    rows = [text for text in page.texts if text in ("kept", "not kept")]
    assert rows == [
        "kept" if each["keeps_bound"] else "not kept"
        for each in sorted(result["probes"], key=lambda probe: probe["target_qps"])
    ]


def every_text(value, change):
    """``value`` with each text in it, keys of free objects too, changed."""
    if isinstance(value, dict):
        return {key: every_text(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [every_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def test_no_text_of_a_file_becomes_markup(result):
    hostile = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\u202e"
    names = {"scenario", "status", "date"}
    changed = {
        key: value if key in names else every_text(value, lambda text: text + hostile) for key, value in result.items()
    }
    for each in changed["scenarios"]:
        each["scenario"] = each["scenario"].removesuffix(hostile)
        each["loadgen"] = {hostile: hostile}
        each |= {"error": hostile, "codes": {hostile: 3}}
    changed["stages"]["order"] = [*result["stages"]["order"], hostile]
    changed["stages"]["stages"] = result["stages"]["stages"] | {hostile: result["stages"]["total"]}
    changed["versions"] = {hostile: hostile}
    changed["settings"] = {hostile: [hostile, {hostile: hostile}]}
    changed |= {"status": "failed", "error": hostile}
    text = html.render(changed)
    page = Page(text)
    assert not page.all("script")
    assert not page.all("img")
    assert len(page.all("title")) == 1 + PICTURES
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\\x1b[31m\\u202e" in page.text
    assert element("b", "<i>", title='"<') == '<b title="&quot;&lt;">&lt;i&gt;</b>'
    assert Markup("<i>") in element("b", Markup("<i>"))
    assert "&lt;td&gt;" in table(["<td>"], [["<td>"]], "<td>")


@pytest.mark.parametrize("missing", ["scenarios", "probes", "peak_qps", "batches", "stages", "cold_start", "commit"])
def test_a_result_without_a_part_is_rendered(result, missing):
    del result[missing]
    page = Page(html.render(result))
    assert "Complete." in page.text
    lost = {"scenarios": 4, "probes": 1, "batches": 1, "stages": 1}.get(missing, 0)
    assert len(page.all("svg")) == PICTURES - lost


def test_a_run_that_ended_early_says_why_and_shows_what_was_measured(result):
    server = {key: result["scenarios"][2][key] for key in ("scenario", "how", "check_before")}
    result["scenarios"][2] = server | {"error": "the server left after 112 queries"}
    result["scenarios"][3] = {"scenario": "Offline"}
    for key in ("probes", "peak_qps", "batches", "stages", "cold_start"):
        del result[key]
    result |= {"status": "failed", "error": "Server: the server left after 112 queries"}
    page = Page(html.render(result))
    assert "Not complete: Server: the server left after 112 queries" in page.text
    assert page.text.count("not reached") == 2
    assert len(page.all("svg")) == 2


def test_wrong_answers_show_no_speed(result):
    result["scenarios"][1] |= {"is_speed_told": False, "check_after": check(False)}
    result |= {"status": "wrong", "error": "answers differ"}
    page = Page(html.render(result))
    assert "Wrong answers, so no speed is told: answers differ" in page.text
    assert "picture 7: expected 'nodule' 0.93, got 'mass' 0.52" in page.text
    assert not page.all("svg")
    shown = page.text
    speeds = [each["latency"]["percentiles"]["50"]["value"] for each in result["scenarios"]]
    speeds += [each["samples_per_s"] for each in result["scenarios"]]
    speeds += [each["p99_ms"] for each in result["probes"]] + [each["ms"]["value"] for each in result["batches"]]
    speeds.append(result["cold_start"]["total_ms"]["value"])
    for speed in speeds:
        assert not re.search(rf"(?<![\d.]){re.escape(number(speed))}(?![\d.])", shown), speed


def test_a_curve_goes_up_and_its_marks_stand_on_it(result):
    latency = copy.deepcopy(result)
    latency["scenarios"] = latency["scenarios"][:1]
    for key in ("probes", "batches", "stages"):
        del latency[key]
    text = html.render(latency)
    marks = [
        (float(x), float(y)) for x, y in re.findall(r'<circle class="point two" cx="([\d.]+)" cy="([\d.]+)"', text)
    ]
    assert len(marks) == 4
    assert marks == sorted(marks)
    assert [y for _, y in marks] == sorted((y for _, y in marks), reverse=True)  # pixels count downwards
    curve = re.search(r'<path class="line one" d="M([\d.]+) ([\d.]+)([^"]+)"', text)
    steps = [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([\d.]+)", curve[3])]
    assert steps == sorted(steps, key=lambda step: (step[0], -step[1]))
    for x, y in marks:  # 160 points over 320 px: a mark is at most one step, and a hair, beside the curve
        assert min(abs(x - sx) + abs(y - sy) for sx, sy in steps) < 8.0
    whiskers = re.findall(r'<path class="whisker two" d="M([\d.]+) [\d.]+v10m0 -5H([\d.]+)', text)
    told = [each for each in result["scenarios"][0]["latency"]["percentiles"].values() if each["low"] is not None]
    assert len(told) >= 3
    for (x, _), (low, high) in zip(marks[: len(told)], whiskers, strict=True):
        assert float(low) <= x + 0.1
        assert x <= float(high) + 0.1


def test_rates_at_which_nothing_was_answered_have_no_point(result):
    dead = {"p50_ms": 0.0, "p90_ms": 0.0, "p99_ms": 0.0, "samples_per_s": 0.0, "keeps_bound": False, "is_valid": False}
    result["probes"].append(result["probes"][0] | dead | {"target_qps": 5000.0})
    assert 'class="hollow three"' in html.render(result)
    assert (
        html.render(result).count('class="hollow three"')
        == sum(not each["keeps_bound"] for each in result["probes"]) - 1
    )
    result["probes"] = [result["probes"][-1]]
    assert "Nothing was answered." in Page(html.render(result)).text


def test_axes_put_values_where_they_belong():
    assert Axis(0.0, 10.0, 100.0, 200.0).at(2.5) == 125.0
    assert Axis(1.0, 100.0, 0.0, 200.0, "log").at(10.0) == pytest.approx(100.0, abs=1e-9)  # rounding of two logarithms
    assert Axis(0.01, 0.99, 200.0, 0.0, "logit").at(0.5) == pytest.approx(100.0, abs=1e-9)
    assert Axis(0.0, 10.0, 100.0, 200.0).at(11.0) == 200.0
    assert Axis(0.0, 10.0, 0.0, 1.0).ticks() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0][:6]
    assert Axis(1.0, 1000.0, 0.0, 1.0, "log").ticks() == [1.0, 10.0, 100.0, 1000.0]
    assert Axis(0.01, 0.9991, 0.0, 1.0, "logit").ticks() == [0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
    for law in ("linear", "log"):
        for values in ([3.0], [0.0, 0.0], [1e-4, 7e5], [5.0, 5.1]):
            axis = axis_over(values, 0.0, 300.0, law)
            assert all(0.0 <= axis.at(each) <= 300.0 for each in values)
            assert 1 <= len(axis.ticks()) <= 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (1234.5, "1,234"), (123.4, "123"), (12.345, "12.3"), (1.2345, "1.23"), (0.0123456, "0.0123")),
        *((9.996, "10.0"), (99.96, "100"), (-1.5, "-1.50"), (None, "–"), (float("nan"), "–"), (1e-12, "0.000000000")),
    ],
)
def test_numbers_have_three_digits_that_count(value, text):
    assert number(value) == text


def test_long_texts_are_cut():
    assert len(printable("x" * 100_000)) < 2100


@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_scrolling_sideways_and_fetches_nothing(result, tmp_path, width):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the test extra")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(argument)
    options.add_experimental_option("mobileEmulation", {"deviceMetrics": {"width": width, "height": 800}})
    result["subject"]["bundle"] = "a_very_long_name_without_any_room_to_break_it" * 3 + ".kpl"
    result["command"] += " --images " + "x" * 300
    path = tmp_path / "report.html"
    path.write_text(html.render(result), encoding="utf-8")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(path.as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('svg')].map(each => each.getBoundingClientRect().width)"
        )
        assert len(sizes) == PICTURES
        assert all(300 <= each <= width for each in sizes)
        assert not driver.execute_script("return performance.getEntriesByType('resource').length")
        assert not driver.get_log("browser")
    finally:
        driver.quit()

"""The page that ``imcc view`` writes, in a real browser: the digits CNN and 2,000 ops."""

import json

import pytest

import imcc
from imcc.frontend.model_file import load_model_file
from imcc.report.page import page

from .networks import deep

DIGITS = "examples/digits_cnn/model.py"
HOSTILE = '</script><script>window.hostile = 1</script><img src=x onerror="hostile=1">'


@pytest.fixture(scope="module")
def cnn(request):
    """The digits example, measured on few samples."""
    held = load_model_file(request.config.rootpath / DIGITS)
    inputs, targets = held.evaluation_data()
    return imcc.compile(
        held.module,
        held.example_inputs,
        calibration=held.calibration_data()[:8],
        evaluation=(inputs[:8], targets[:8]),
        metric=held.metric,
        trials=2,
        name="digits_cnn",
    )


class Page:
    """A page in the browser, with what a reader does."""

    def __init__(self, browser, path):
        self.browser = browser
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(path.as_uri())
        self.until("return document.documentElement.dataset.state === 'complete'")

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, script, *arguments, seconds=20):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, 0.03).until(
            lambda browser: browser.execute_script(script, *arguments)
        )

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def click(self, element):
        """Click as a reader does who has scrolled to it, past the header that stays."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def tab(self, name):
        self.find(f"#tab-{name}").click()
        panel = self.find(f"#panel-{name}")
        assert panel.is_displayed()
        return panel

    def graph(self):
        self.tab("graph")
        self.until("return performance.getEntriesByName('imcc:graph-drawn').length > 0")
        return self

    def press(self, text):
        (button,) = [item for item in self.all("button") if item.text == text]
        before = self.run("return performance.getEntriesByName('imcc:graph-drawn').length")
        button.click()
        self.until(
            "return performance.getEntriesByName('imcc:graph-drawn').length > arguments[0]", before
        )

    def search(self, text):
        from selenium.webdriver.common.keys import Keys

        field = self.find(".search input")
        field.clear()
        field.send_keys(text)
        field.send_keys(Keys.ENTER)
        self.until(
            "return document.querySelector('.inspect h3').textContent.includes(arguments[0])", text
        )
        return self.find(".inspect").text

    def mark(self, name):
        return self.run("return performance.getEntriesByName(arguments[0])[0].startTime", name)

    def nodes(self):
        return int(self.run("return document.querySelector('.canvas').dataset.nodes"))

    def quiet(self):
        """Neither an error on the console nor a request for anything but the file itself."""
        assert self.browser.get_log("browser") == []
        sent = []
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                sent.append(message["params"]["request"]["url"])
        assert [url for url in sent if not url.startswith(("file:", "blob:", "data:"))] == []
        assert len([url for url in sent if url.startswith("file:")]) == 1


def open_page(browser, compiled, folder):
    path = folder / "page.html"
    path.write_text(page(compiled), encoding="utf-8")
    return Page(browser, path)


def test_the_cnn_from_pass_to_pass(browser, cnn, tmp_path):
    shown = open_page(browser, cnn, tmp_path)
    assert shown.find("h1").text == "digits_cnn"
    assert "Energy per inference" in shown.find("#panel-overview").text
    panel = shown.tab("passes")
    passes = [item for item in cnn.history.stages[1:] if item.program is not None]
    buttons = shown.all("button.pass")
    assert len(buttons) == len(passes) < len(cnn.history.stages) - 1
    for number, stage in enumerate(passes):
        shown.click(shown.all("button.pass")[number])
        name = stage.pass_.split("{")[0]
        assert shown.find("#panel-passes section h2").text == name
        shown.until("return document.querySelectorAll('.diff-row.changed').length > 0")
    assert "enters phase mapped" in panel.text
    # The rule and the user's line stand between before and after; a click shows more.
    (fold,) = [item for item in shown.all("button.pass") if "fold-batch-norm" in item.text]
    shown.click(fold)
    row = next(item for item in shown.all(".diff-row.changed") if "nn.batch_norm" in item.text)
    assert "fold-batch-norm" in row.text and "model.py:" in row.text
    shown.click(row.find_element("css selector", "button.why"))
    explained = shown.find(".explained")
    assert "replaced" in explained.text
    assert "self.bn1(self.conv1(x))" in explained.text or "self.stem(x)" in explained.text
    shown.click(shown.find("button[data-key=rewrites]"))
    shown.until("return document.querySelectorAll('.rewrite .added').length > 0")
    shown.quiet()


def test_an_op_is_found_and_its_cost_read(browser, cnn, tmp_path):
    shown = open_page(browser, cnn, tmp_path).graph()
    (op,) = [
        item
        for item in cnn.module.function().ops
        if item.name == "xbar.mvm" and item.scope == "block.conv1"
    ]
    text = shown.search(f"%{op.results[0].name} xbar.mvm".split()[0])
    layer = next(
        item
        for item in cnn.report()["entry_points"]["inference"]["layers"]
        if item["name"] == "block.conv1"
    )
    convert = layer["events"]["adc.convert"]
    assert f"{convert:,.0f}" in text and "1.37 pJ per conversion" in text
    assert "Murmann" in text
    assert "block.conv1" in text and "model.py" in text
    assert "map-crossbars" in text and "calibrate-adc" in text
    # The layer as it was captured: what became of its op, and what that costs.
    shown.run(
        "const select = document.querySelector('.toolbar select'); select.value = '0';"
        "select.dispatchEvent(new Event('change'))"
    )
    shown.until("return document.querySelector('.inspect h3').textContent === 'Nothing selected'")
    captured = next(
        line.split(" = ")[0]
        for line in cnn.history.text(0).splitlines()
        if "nn.conv" in line and '"block.conv1"' in line
    )
    text = shown.search(captured)
    assert "there this op became" in text.lower() and f"%{op.results[0].name} = xbar.mvm" in text
    shown.quiet()


def test_all_views_of_the_cnn(browser, cnn, tmp_path):
    shown = open_page(browser, cnn, tmp_path)
    report = cnn.report()["entry_points"]["inference"]
    panel = shown.tab("cost")
    shown.until("return document.querySelectorAll('#panel-cost tbody tr').length > 3")
    assert len(shown.all("#panel-cost tbody tr")) == len(report["layers"])
    (stem,) = [item for item in shown.all("button.expand") if item.text == "stem.0"]
    shown.click(stem)
    assert "adc.convert" in shown.find("tr.explained").text
    assert "1.37 pJ per conversion" in shown.find("tr.explained").text
    shown.click(shown.find("button[data-key=component]"))
    shown.until("return document.querySelector('#panel-cost h2').textContent.includes('component')")
    assert "adc" in panel.text
    tiles = shown.tab("tiles")
    shown.until("return document.querySelectorAll('.tile').length > 0")
    assert len(shown.all(".tile")) == report["resources"]["tiles"]
    assert f"{report['resources']['crossbars']} of" in tiles.text
    schedule = shown.tab("schedule")
    shown.until("return document.querySelector('#panel-schedule tbody tr') !== null")
    drawn = shown.run(
        "const one = document.querySelector('canvas');"
        "const data = one.getContext('2d').getImageData(0, 0, one.width, one.height).data;"
        "const seen = new Set(); for (let i = 0; i < data.length; i += 4)"
        " seen.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]); return seen.size"
    )
    assert drawn > 10
    assert "stem.0" in schedule.text
    accuracy = shown.tab("accuracy")
    assert "95 % interval" in accuracy.text and len(shown.all(".point circle")) == 4
    shown.quiet()


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_sticks_out_and_text_is_readable(browser, cnn, tmp_path, width, theme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        shown = open_page(browser, cnn, tmp_path)
        assert shown.run("return document.documentElement.dataset.theme") == theme
        for name in ("overview", "passes", "graph", "cost", "tiles", "schedule", "accuracy"):
            shown.tab(name)
            if name == "graph":
                shown.until("return performance.getEntriesByName('imcc:graph-drawn').length > 0")
            wide = shown.run("return document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} wide"
            assert shown.run(CONTRAST) == [], name
            assert shown.run(NAMELESS) == [], name
        shown.quiet()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Text whose contrast with the ground under it is below 4.5:1, by the formula of WCAG 2.
CONTRAST = """
const rgb = (text) => {
  const found = text.match(/[\\d.]+/g).map(Number);
  return found.length === 3 ? [...found, 1] : found;
};
const light = (colour) => {
  const [r, g, b] = colour.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgb(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const bad = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest("svg, script"))
    continue;
  const [a, b] = [rgb(getComputedStyle(element).color), ground(element)].map(light);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.push(`${walk.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return bad.slice(0, 5);
"""

# Controls that a screen reader could not name.
NAMELESS = """
return [...document.querySelectorAll("button, select, input, canvas, svg.graph, [role=tab]")]
  .filter((one) => one.checkVisibility() && !(one.textContent.trim() || one.ariaLabel
    || one.getAttribute("aria-label") || (one.labels && [...one.labels].some((label) =>
      label.textContent.trim()))))
  .map((one) => one.outerHTML.slice(0, 120)).slice(0, 5);
"""


def test_keys_lead_through_tabs_and_graph(browser, cnn, tmp_path):
    from selenium.webdriver.common.keys import Keys

    shown = open_page(browser, cnn, tmp_path)
    shown.find("#tab-overview").click()
    shown.find("#tab-overview").send_keys(Keys.ARROW_RIGHT)
    assert shown.find("#tab-passes").get_attribute("aria-selected") == "true"
    shown.graph()
    graph = shown.find("svg.graph")
    graph.send_keys(Keys.ARROW_DOWN)
    first = shown.find(".inspect h3").text
    graph.send_keys(Keys.ARROW_DOWN)
    second = shown.find(".inspect h3").text
    assert first == "%x" and second == "stem"
    before = shown.nodes()
    graph.send_keys(Keys.ENTER)
    shown.until(
        "return Number(document.querySelector('.canvas').dataset.nodes) !== arguments[0]", before
    )
    assert shown.nodes() < before
    shown.quiet()


def test_two_thousand_ops_stay_readable(browser, tmp_path):
    compiled = deep()
    assert sum(len(function) for function in compiled.module.functions.values()) >= 2000
    shown = open_page(browser, compiled, tmp_path)
    # Nothing is laid out before it is asked for; what stands first stands long before.
    assert shown.run("return performance.getEntriesByName('imcc:layout-started').length") == 0
    assert "2,040 ops" in shown.find("header").text
    shown.graph()
    assert shown.mark("imcc:first-content") < shown.mark("imcc:layout-started")
    assert shown.mark("imcc:layout-started") < shown.mark("imcc:graph-drawn")
    assert shown.nodes() <= 80
    ops = {item.results[0].name: item for item in compiled.module.function().ops if item.results}
    name = next(
        key
        for key, item in ops.items()
        if item.scope == "stages.7.blocks.3.down" and item.name == "xbar.mvm"
    )
    text = shown.search(f"%{name}")
    assert "stages.7.blocks.3.down" in text and "1.37 pJ per conversion" in text
    selected = shown.find(".node.selected")
    canvas = shown.find(".canvas").rect
    place = selected.rect
    assert canvas["x"] < place["x"] < canvas["x"] + canvas["width"]
    assert canvas["y"] < place["y"] < canvas["y"] + canvas["height"]
    shown.press("Fold all")
    folded = shown.nodes()
    assert folded <= 5
    shown.press("Unfold all")
    drawn = [
        item
        for item in compiled.module.function().ops
        if item.name not in ("core.constant", "core.return")
    ]
    assert shown.nodes() > len(drawn) > 900
    # Only what is in sight is drawn.
    assert len(shown.all("svg.graph .node")) < 400
    shown.press("Fold all")
    assert shown.nodes() == folded
    for tab in ("passes", "cost", "tiles", "schedule"):
        shown.tab(tab)
    shown.quiet()


def test_names_of_a_user_stay_text(browser, cnn, tmp_path):
    import dataclasses

    module = cnn.module.clone()
    for op in module.walk():
        op._set("scope", HOSTILE if op.scope.startswith("block") else op.scope)
    report = cnn.report()
    report["model"]["name"] = HOSTILE
    for layer in report["entry_points"]["inference"]["layers"]:
        layer["name"] = layer["name"].replace("block", HOSTILE)
    held = dataclasses.replace(cnn, module=module, report_data=report, history=None)
    path = tmp_path / "page.html"
    path.write_text(page(held), encoding="utf-8")
    shown = Page(browser, path)
    assert shown.find("h1").text == HOSTILE
    assert HOSTILE in shown.find("#panel-overview").text
    shown.graph()
    for tab in ("passes", "cost", "tiles", "schedule"):
        shown.tab(tab)
    assert shown.run("return window.hostile === undefined")
    assert shown.all("img") == []
    shown.quiet()

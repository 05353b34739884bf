"""The report in a real browser: nothing wider than the window, nothing fetched, everything legible.

The page is measured inside a frame of the wanted width, since a headless browser's own window has a least width.
"""

import html
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report import page
from tests import madeup

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
         "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"
WIDTHS = [1280, 820, 390, 320]
# WCAG 2.1, 1.4.3: contrast of text at the AA level.
LEAST_CONTRAST = 4.5

MEASURE = r"""
addEventListener("load", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const root = document.documentElement, wide = [], faint = [];
  const name = e => e.tagName + "." + (e.getAttribute("class") || "") + " " + e.textContent.trim().slice(0, 40);
  const hidden = e => e.closest(".sr") || getComputedStyle(e).position === "absolute" && e.clientWidth <= 1;
  for (const e of document.body.querySelectorAll("*")) {
    if (hidden(e) || e.closest("thead") && e.closest("thead").clientWidth <= 1) continue;
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > root.clientWidth + 0.5 || box.left < -0.5)) wide.push(name(e));
    if (e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX)) wide.push(name(e));
  }
  const rgba = text => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = e => e ? over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255, 1];
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let texts = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || e.closest("script, style, title") || hidden(e)) continue;
    const style = getComputedStyle(e), below = behind(e);
    const color = over(rgba(e.closest("svg") ? style.fill : style.color), below);
    const [a, b] = [light(color), light(below)].sort((x, y) => y - x), contrast = (a + 0.05) / (b + 0.05);
    texts += 1;
    if (contrast < LEAST) faint.push(contrast.toFixed(2) + " " + name(e));
  }
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name).filter(n => !n.startsWith("data:"));
  const images = [...document.images];
  const broken = images.filter(image => !image.naturalWidth).length;
  parent.postMessage(JSON.stringify({width: innerWidth, scroll: Math.max(root.scrollWidth, document.body.scrollWidth),
    wide, faint, texts, fetched, images: images.length, broken, height: root.scrollHeight,
    dark: matchMedia("(prefers-color-scheme: dark)").matches}), "*");
});
"""


@cache
def browser() -> str:
    """The browser; without one these tests are skipped, but never where CI promised one."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no browser on this machine: none of {', '.join(BROWSERS)}; apt-get install chromium"
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def start(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure(text: str, widths: list[int], folder: Path, scheme: str = LIGHT) -> list[dict]:
    """What the browser finds in a page shown at each of some widths, in pixels."""
    # The page forbids scripts and anything from outside; the copy must let the test in and hide nothing from it.
    copy, forbids = re.subn(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
    assert forbids == 1
    script = f"<script>{MEASURE.replace('LEAST)', f'{LEAST_CONTRAST})')}</script>"
    (folder / "copy.html").write_text(copy.replace("</head>", script + "</head>"), encoding="utf-8")
    (folder / "frame.html").write_text(
        "<!doctype html><pre id=told></pre><script>addEventListener('message', event => {"
        "document.getElementById('told').textContent += event.data + '\\n'})</script>"
        + "".join(f"<iframe src=copy.html style='border:0;width:{width}px;height:900px'></iframe>" for width in widths)
    )
    dom = start(folder, scheme, "--virtual-time-budget=10000", "--dump-dom", (folder / "frame.html").as_uri())
    told = re.search(r"<pre id=\"told\">(.+?)</pre>", dom, re.S)
    assert told, "the page told nothing: " + dom[:500]
    seen = {one["width"]: one for one in map(json.loads, html.unescape(told[1]).splitlines())}
    assert set(seen) == set(widths)
    return [seen[width] for width in widths]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    many = [f"a class with quite a long name, number {i}" for i in range(40)]
    return {
        "simulated": page.render(madeup.figures(folder / "a")),
        "measured": page.render(madeup.figures(folder / "b", place="lab", labels=list("0123456789"))),
        "many classes": page.render(madeup.figures(folder / "c", labels=many)),
        "unfinished": page.render(madeup.figures(folder / "d", without=["trim", "benchmark"])),
    }


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_fits_fetches_nothing_and_is_legible(pages, scheme, tmp_path):
    for seen in measure(pages["simulated"], WIDTHS, tmp_path, scheme):
        assert (seen["scroll"], seen["wide"], seen["dark"]) == (seen["width"], [], scheme == DARK)
        assert seen["fetched"] == []
        assert seen["images"] >= 10 and seen["broken"] == 0
        assert seen["texts"] > 300 and seen["faint"] == []


@pytest.mark.parametrize("kind", ["measured", "many classes", "unfinished"])
def test_fits_whatever_it_tells(pages, kind, tmp_path):
    for seen in measure(pages[kind], WIDTHS, tmp_path):
        assert (seen["scroll"], seen["wide"], seen["faint"]) == (seen["width"], [], [])


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("<p style='width:400px'>too wide for a phone</p>", "wide"),
        ("<div style='overflow-x:auto'><p style='width:900px'>scrolls in itself</p></div>", "wide"),
        ("<p style='color:#999;background:#fff'>hardly legible</p>", "faint"),
        ("<img src='http://127.0.0.1:9/pixel.png' alt=''>", "fetched"),
    ],
    ids=["wide", "scrolling", "faint", "fetching"],
)
def test_that_faults_are_seen(pages, fault, found, tmp_path):
    [seen] = measure(pages["simulated"].replace("<footer>", fault + "<footer>"), [390], tmp_path)
    assert seen[found] != []


def test_page_itself_forbids_scripts_and_fetching(pages, tmp_path):
    """Unlike the tests above, with the page's own policy in force."""
    script = "<script>document.title = 'ran'</script>"
    (tmp_path / "page.html").write_text(pages["simulated"].replace("</head>", script + "</head>"), encoding="utf-8")
    dom = start(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri())
    assert "<title>ran</title>" not in dom and "<title>made-up on" in dom


@pytest.mark.parametrize("width", [1280, 390])
def test_screenshot(pages, width, tmp_path):
    """That there is something to see, in the colors of the scheme, and that nothing lies beyond the right margin."""
    file, backgrounds = tmp_path / "page.html", []
    file.write_text(pages["simulated"], encoding="utf-8")
    for scheme in (LIGHT, DARK):
        shot = tmp_path / "shot.png"
        start(tmp_path, scheme, f"--window-size={width},1600", f"--screenshot={shot}", file.as_uri())
        with Image.open(shot) as picture:
            seen = picture.convert("RGB")
        assert seen.size == (width, 1600)
        assert len(seen.getcolors(1 << 20)) > 50
        backgrounds.append(seen.getpixel((2, 2)))
        assert seen.crop((width - 8, 0, width, 1600)).getcolors() == [(8 * 1600, backgrounds[-1])]
    assert min(backgrounds[0]) > 230 and max(backgrounds[1]) < 60


def test_without_a_browser(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browser.__wrapped__()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no browser on this machine"):
        browser.__wrapped__()

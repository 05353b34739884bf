"""The report: what it tells, what it must never tell, and that it needs nothing but itself."""

import copy
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from boards.evidence import EVIDENCE
from pipeline import gates, summary
from pipeline.report import charts, figures, page
from pipeline.stages import report
from tests import madeup


@pytest.fixture
def told(tmp_path):
    return madeup.figures(tmp_path)


class Page(HTMLParser):
    """What the tests ask of a page: the text of elements by class or tag, and every address that would be fetched."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html: str):
        super().__init__()
        self.open, self.fetched, self.texts, self.tags = [], [], [], []
        self.feed(html)
        assert self.open == [], "elements were left open"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        for name, value in attributes.items():
            if name in ("src", "srcset", "data", "poster", "action", "background") or (name == "href" and tag != "a"):
                self.fetched.append(value)
            if name == "style":
                self.fetched += re.findall(r"url\(([^)]*)\)", value)
        if tag not in self.VOID:
            self.open.append((tag, set((attributes.get("class") or "").split())))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "style":
            self.fetched += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", data)
        self.texts.append((list(self.open), data))

    def text(self, name: str | None = None) -> str:
        """Text within elements of a tag or class (default: the whole page), spaces collapsed."""
        inside = [data for path, data in self.texts if not any(tag == "style" for tag, _ in path)
                  and (name is None or any(name == tag or name in classes for tag, classes in path))]  # fmt: skip
        return " ".join(" ".join(inside).split())

    def outside(self) -> list:
        return [address for address in self.fetched if not str(address).startswith("data:")]


# -- what the page tells -----------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_summary():
    assert (figures.ACCURACIES, figures.MISMATCHES) == (summary.ACCURACIES, summary.MISMATCHES)


def test_headline(told):
    seen = Page(page.render(told))
    assert seen.text("h1") == "made-up on TUL PYNQ-Z2"
    # QONNX and reference 1,200 each, two modes of the C simulation 2,400, board 1,200 streamed and 10,000 one by one
    assert "16,000 output codes were compared" in seen.text("verdict")
    assert "at 4 hops. 0 differ." in seen.text("verdict")
    assert "the exported file, executed in float64" in seen.text("hops")
    assert "85.83 %" in seen.text("key")  # 103 of 120


def test_one_differing_code_is_not_called_equal(tmp_path):
    folders, manifests = madeup.run(tmp_path)
    manifests["benchmark"]["metrics"]["board_mismatches"]["value"] = 1
    told = figures.collect(folders, manifests, name="x", recipe="", board=madeup.BOARD, place="simulated")
    verdict = Page(page.render(told)).text("verdict")
    assert "1 of 16,000 output codes differ" in verdict
    assert "0 differ." not in verdict


@pytest.mark.parametrize("hop", range(4))
def test_a_hop_that_compared_nothing_is_no_proof(told, hop):
    hops = copy.deepcopy(told["hops"])
    assert figures._verdict(hops)["state"] == "equal"
    hops[hop]["compared"] = 0
    assert figures._verdict(hops)["state"] == "unfinished"
    hops[hop].update(run=False, compared=None, mismatches=None)
    assert figures._verdict(hops)["state"] == "unfinished"


def test_banner_says_when_no_fpga_was_involved(tmp_path):
    assert "No FPGA was involved." in Page(page.render(madeup.figures(tmp_path / "a"))).text("banner")
    assert "No FPGA" not in page.render(madeup.figures(tmp_path / "b", place="lab"))


def test_stand_in_on_a_real_board_is_still_a_stand_in(tmp_path):
    folders, manifests = madeup.run(tmp_path, place="lab")
    path = folders["package"] / "package/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"simulated": True}))
    told = figures.collect(folders, manifests, name="x", recipe="", board=madeup.BOARD, place="lab")
    assert "No FPGA was involved." in page.render(told)


def test_latencies_are_told_of_real_boards_only(tmp_path):
    real = Page(page.render(madeup.figures(tmp_path / "a", place="lab")))
    assert "311.2" in real.text("table") and "µs" in real.text("table")
    folders, manifests = madeup.run(tmp_path / "b")
    path = folders["benchmark"] / "result.json"
    result = json.loads(path.read_text())
    times = json.loads((tmp_path / "a/benchmark/result.json").read_text())["times"]["latency"]
    path.write_text(json.dumps(result | {"times": {"host_simulation": times}}))
    told = figures.collect(folders, manifests, name="x", recipe="", board=madeup.BOARD, place="simulated")
    text = Page(page.render(told)).text()
    assert "311.2" not in text and "µs" not in text
    assert "No times are given." in text


@pytest.mark.parametrize("stage", figures.STAGES)
def test_what_was_not_run_is_said(tmp_path, stage):
    whole = Page(page.render(madeup.figures(tmp_path / "a"))).text()
    seen = Page(page.render(madeup.figures(tmp_path / "b", without=[stage]))).text()
    assert seen.count("not run") > whole.count("not run") == 0


def test_nothing_run(tmp_path):
    told = madeup.figures(tmp_path, without=list(figures.STAGES))
    seen = Page(page.render(told))
    assert "Unfinished." in seen.text("verdict")
    assert "0 differ" not in seen.text()
    assert not re.search(r"\d\s*%", seen.text("main").replace("95 %", ""))


def test_every_accuracy_has_its_evidence(tmp_path):
    html = page.render(madeup.figures(tmp_path, place="lab"))
    table = html[html.index('class="data accuracies') : html.index("</table>", html.index('class="data accuracies'))]
    tags = re.findall(r'class="tag (\w+)"', table)
    assert tags == ["trained", "trained", "trained", "simulated", "measured"]


def test_tables_of_numbers_carry_evidence(told):
    """In the caption for the whole table, or in every row of its body."""
    html = page.render(told)
    for table in re.findall(r"<table.*?</table>", html, re.S):
        caption = re.search(r"<caption>.*?</caption>", table, re.S)
        rows = re.findall(r"<tr.*?</tr>", table[table.index("<tbody") :], re.S)
        assert (caption and 'class="tag' in caption[0]) or all('class="tag' in row for row in rows), table[:200]


def test_words_of_evidence_are_explained(told):
    text = Page(page.render(told)).text("main")
    assert all(f"{word} {meaning}" in text for word, meaning in EVIDENCE.items())


def test_untold_evidence_is_refused(told):
    told["hops"][0]["evidence"] = "guessed"
    with pytest.raises(Exception, match="guessed"):
        page.render(told)


def test_shut_gate_does_not_look_open(told):
    told["chain"][0]["gates"][0]["passed"] = 1  # truthy is not passed
    html = page.render(told)
    assert re.search(r'<li class="shut"><b>no picture in two splits</b><span class="sr">: shut', html)


def test_layers_before_and_after_in_the_order_they_run(told):
    rows = told["size"]["layers"]
    assert [row["name"] for row in rows] == list(madeup.LAYERS)
    assert rows[0]["out_channels"] == [16, 11]
    assert told["size"]["other"] == [200, 200]  # BatchNorm
    assert [layer["name"] for layer in told["trimming"]["layers"]] == [n for n in madeup.LAYERS if n != "classifier"]


def test_failed_board_is_told(tmp_path):
    folders, manifests = madeup.run(tmp_path)
    del manifests["benchmark"]["metrics"]["accuracy_test"], manifests["benchmark"]["metrics"]["board_mismatches"]
    (folders["benchmark"] / "result.json").write_text('{"status": "error", "error": {"text": "no TLAST in 10 s"}}')
    told = figures.collect(folders, manifests, name="x", recipe="", board=madeup.BOARD, place="simulated")
    seen = Page(page.render(told))
    assert "The board’s script stopped: no TLAST in 10 s" in seen.text("bad")
    assert "Unfinished." in seen.text("verdict")


def test_trimming_switched_off(tmp_path):
    assert "Trimming was switched off" in page.render(madeup.figures(tmp_path, method="none"))


def test_many_classes_are_told_without_a_matrix(tmp_path):
    labels = [f"class-{i}" for i in range(40)]
    html = page.render(madeup.figures(tmp_path, labels=labels))
    assert 'class="confusion' not in html
    assert "for 10 of 40 classes" in Page(html).text()


# -- the board's answers -----------------------------------------------------------------------------------------------


def test_confusions(tmp_path):
    told = madeup.figures(tmp_path, samples=20, wrong=3)
    answers = told["answers"]
    # samples 0, 1, 2 of classes 0, 1, 2 are answered 1, 2 and 3 classes further on
    matrix = np.array([entry["row"] for entry in answers["classes"]])
    expected = 2 * np.eye(10, dtype=int)
    for label in range(3):
        expected[label, label] -= 1
        expected[label, 2 * label + 1] += 1
    assert matrix.tolist() == expected.tolist()
    assert [(p["sample"], p["label"], p["answer"]) for p in answers["wrong"]] == [
        (0, "airplane", madeup.LABELS[1]), (1, madeup.LABELS[1], "cat"), (2, "bird", "dog")
    ]  # fmt: skip
    assert [p["label"] for p in answers["right"]] == madeup.LABELS
    assert [p["sample"] for p in answers["right"][:4]] == [10, 11, 12, 3]


def test_pictures_are_what_went_over_the_wire(tmp_path):
    told = madeup.figures(tmp_path)
    with np.load(tmp_path / "export/golden.npz") as golden:
        assert np.array_equal(told["answers"]["wrong"][0]["pixels"], golden["input_codes"][0])
    few_bits = np.array([[[[0], [1], [7]]]], dtype=np.uint8)
    np.savez(tmp_path / "export/golden.npz", labels=np.array([0]), input_codes=few_bits, input_scale_log2=np.int64(-3))
    answers = figures._answers({"export": tmp_path / "export"}, {"status": "ok", "predictions": [0]},
                               {"labels": ["a"], "preprocess": {"size": [1, 3], "color": "gray"}})  # fmt: skip
    assert answers["right"][0]["pixels"].ravel().tolist() == [0, 36, 255]


def test_answers_of_another_set_are_refused(tmp_path):
    folders, manifests = madeup.run(tmp_path)
    path = folders["benchmark"] / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"predictions": result["predictions"][1:]}))
    with pytest.raises(figures.ReportError, match="answered 119 samples and golden has 120"):
        figures.collect(folders, manifests, name="x", recipe="", board=madeup.BOARD, place="simulated")


def test_damaged_artifact_is_named(tmp_path):
    folders, manifests = madeup.run(tmp_path)
    (folders["plan"] / "plan.json").write_text("{")
    with pytest.raises(figures.ReportError, match=r"plan\.json"):
        figures.collect(folders, manifests, name="x", recipe="", board=madeup.BOARD, place="simulated")


# -- a page of its own -------------------------------------------------------------------------------------------------


def test_nothing_is_fetched(told):
    seen = Page(page.render(told))
    assert seen.outside() == []
    assert len(seen.fetched) > 10  # the pictures, inline
    assert not [tag for tag, _ in seen.tags if tag in ("script", "iframe", "object", "embed", "base")]


@pytest.mark.parametrize(
    "fault",
    ['<img src="https://example.org/x.png">', '<link href="x.css">', "<style>@import 'x.css';</style>",
     '<p style="background:url(x.png)"></p>'],
)  # fmt: skip
def test_that_the_test_above_sees_what_is_fetched(told, fault):
    assert Page(page.render(told).replace("<footer>", fault + "<footer>")).outside() != []


def test_class_names_are_text(told):
    html = page.render(told)
    assert "automobile <b>" not in html
    assert "automobile &lt;b&gt;&amp;amp;" in html


def test_equal_runs_give_equal_pages_whenever_and_wherever(tmp_path):
    folders, manifests = madeup.run(tmp_path / "here")
    elsewhere, later = madeup.run(tmp_path / "there")
    for manifest in later.values():
        manifest.update(seconds=99.0, started="2040-01-01T00:00:00+00:00",
                        command="slimgate run /root/made-up.toml --build-dir=/mnt/build --verify --debug")  # fmt: skip
    first, second = (
        page.render(figures.collect(*run, name="x", recipe=madeup.RECIPE, board=madeup.BOARD, place="simulated"))
        for run in ((folders, manifests), (elsewhere, later))
    )
    assert first == second
    for private in (str(tmp_path), "/home/", "somebody", "12.345", "2031", "/tmp"):
        assert private not in first


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("slimgate run runs/digits.toml", "slimgate run runs/digits.toml"),
        ("slimgate run x.toml --until report --set trim.ratio=0.6", "slimgate run x.toml --set trim.ratio=0.6"),
        ("slimgate run /home/me/x.toml --build-dir /data/b --place lab", "slimgate run x.toml --place lab"),
        ("slimgate run x.toml --build-dir=/b --set data.train=/home/me/pictures",
         "slimgate run x.toml --set data.train=pictures"),
        ("slimgate --debug run 'two words.toml' --verify", "slimgate run 'two words.toml'"),
    ],
)  # fmt: skip
def test_command_without_private_paths(said, told):
    assert figures._command({"data": {"command": "old"}, "benchmark": {"command": said}}) == told


# -- charts ------------------------------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@example(201.0, -1.0, 3)
@given(numbers, numbers, st.integers(3, 9))
def test_ticks_hold_the_range(a, b, most):
    low, high = min(a, b), max(a, b)
    marks = charts.ticks(low, high, most)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert marks[0] <= low + slack and marks[-1] >= high - slack
    assert 2 <= len(marks) <= most
    assert marks == sorted(set(marks))


@given(st.floats(1e-9, 1e6), st.floats(1, 1e9))
def test_decades_hold_the_range(low, times):
    marks = charts.decades(low, low * times)
    assert marks[0] <= low * 1.001 and marks[-1] >= low * times * 0.999
    assert len(marks) >= 2 and marks == sorted(set(marks))


def test_bars_are_as_tall_as_the_scores():
    svg = charts.bars([0.5, 1.0, 0.25], [0, 0, 2], label='"quoted" <label>', highest=1.0)
    found = re.findall(r'class="(\w+)" x="([\d.]+)".*?y="([\d.]+)" height="([\d.]+)"', svg)
    assert [(kind, float(y), float(height)) for kind, _, y, height in found] == [
        ("kept", 50, 50), ("kept", 0, 100), ("removed", 75, 25)
    ]  # fmt: skip
    assert "removed in step 2" in svg and "<label>" not in svg


def test_bars_without_any_relevance():
    assert 'height="0.00"' in charts.bars([0.0], [0], label="x", highest=0.0)


def test_curve_breaks_where_training_began_anew():
    line = {"values": [None, 1.0, 0.5, 2.0, 1.5], "style": "main"}
    svg = charts.curve([line], [0, 1, 2], points=5, label="x", starts=[0, 3], chosen=[4])
    assert re.search(r'class="main" d="([^"]*)"', svg)[1].count("M") == 2
    assert svg.count('class="start"') == 1 and svg.count("<circle") == 1


def test_curve_of_one_epoch_and_of_a_loss_of_zero():
    svg = charts.curve([{"values": [0.0], "style": "main"}], [0.1, 1.0], points=1, label="x", logarithmic=True)
    assert "nan" not in svg and "inf" not in svg


# -- the stage ---------------------------------------------------------------------------------------------------------


def context(tmp_path):
    folders, manifests = madeup.run(tmp_path)
    (tmp_path / "out").mkdir()
    made = SimpleNamespace(
        inputs=folders, manifest=manifests.__getitem__, board=madeup.BOARD, place="simulated", folder=tmp_path / "out",
        recipe=SimpleNamespace(name="made-up", to_toml=lambda: madeup.RECIPE), gates=[],
    )  # fmt: skip
    made.gate = lambda name, passed, detail, **more: made.gates.append(gates.check(name, passed, detail, **more))
    return made


def test_stage_writes_the_page(tmp_path):
    ctx = context(tmp_path)
    report.run(ctx)
    assert ctx.gates[0]["passed"] is True
    assert "<h1>made-up on TUL PYNQ-Z2</h1>" in (ctx.folder / "report.html").read_text()


@pytest.mark.parametrize("stage, file", [("benchmark", "result.json"), ("package", "package/manifest.json")])
def test_gate_is_shut_on_a_result_of_another_design(tmp_path, stage, file):
    ctx = context(tmp_path)
    path = ctx.inputs[stage] / file
    path.write_text(path.read_text().replace(madeup.DIGEST, "0" * 64))
    with pytest.raises(gates.GateFailed, match="one design"):
        report.run(ctx)
    assert not (ctx.folder / "report.html").exists()


def test_missing_benchmark_stops_the_stage(tmp_path):
    ctx = context(tmp_path)
    (ctx.inputs["benchmark"] / "result.json").unlink()
    with pytest.raises(figures.ReportError, match=r"result\.json"):
        report.run(ctx)

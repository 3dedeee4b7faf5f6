"""`stylegen report`: a run as one page that needs nothing else."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tiny import data_zip, fake_run, invoke, row, train_arguments

from stylegen.tools import curves
from stylegen.tools.page import _preset_of, _settings
from stylegen.tools.run_folder import bands, read_config
from stylegen.training.dataset import open_dataset
from stylegen.training.sheet import data_sheet

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert(1)</script>\"'&"


def made(run):
    invoke(["report", str(run)])
    return (run / "report.html").read_text(encoding="utf-8")


def figures(page):
    """What the page's script gets; NaN, which JSON has not, is an error."""
    text = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


def preview(run, kimg, size=(96, 48), mode="RGB", seed=0):
    (run / "previews").mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    Image.fromarray(pixels).save(run / "previews" / f"kimg-{kimg:010.3f}.png")


def full_run(folder):
    """A run with all that a page can show."""
    extra = {"health/diversity": 0.9, "metrics/fid_low": 1.0, "metrics/fid_high": 3.0}
    rows = [row(k, **extra, **{"loss/g": k, "metrics/fid": 2 + k, "gpu/heat": k % 7, EVIL: k}) for k in range(1, 31)]
    run = fake_run(folder, rows, log=f"Error: {EVIL}")
    with open(run / "stats.jsonl", "a") as file:
        file.write('{"kimg": 31, "loss')
    (run / "alarms.jsonl").write_text(json.dumps({"kimg": 12.5, "kind": "collapse", "sentence": f"Modes {EVIL}"}))
    sheet = {"name": EVIL, "digest": "abc", "pictures": 9, "size": [32, 32], "full_size": [64, 64], "channels": 3}
    classes = {"label_size": 2, "label_kind": "classes", "classes": [[EVIL, 6], ["cat", 3]], "unbalanced": 2.0}
    (run / "data.json").write_text(json.dumps(sheet | classes))
    for kimg in (0, 5, 30):
        preview(run, kimg, mode="RGBA" if kimg else "RGB")
    shutil.copy(run / "previews" / "kimg-000000.000.png", run / "reals.png")
    return run


def test_the_page_needs_nothing_else_and_repeats(tmp_path):
    run = full_run(tmp_path / "run")
    page = made(run)
    assert made(run) == page
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]
    addresses = set(re.findall(r"\b(?:https?:)?//[\w.]+[^\s\"'`]*", re.sub(r"base64,[^\"]*", "", page)))
    assert {address for address in addresses if "." in address} <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
    }
    assert {source[:5] for source in re.findall(r'(?:src|href)="([^"#]*)', page) if source} == {"data:"}
    assert "default-src 'none'" in page
    assert page.count("<img") == page.count(' alt="') == 4


def test_curves(tmp_path):
    data = figures(made(full_run(tmp_path / "run")))
    panels = {panel["title"]: [series["name"] for series in panel["series"]] for panel in data["panels"]}
    assert panels["losses"] == ["loss/d", "loss/g"]
    assert not {"learning rate", "diversity of pictures"} & set(panels), "the same all along"
    assert panels["other: gpu"] == ["gpu/heat"]
    assert [EVIL] in panels.values()
    fid = next(panel for panel in data["panels"] if panel["title"] == "FID")["series"][0]
    assert fid["y"][:2] == [3, 4]
    assert fid["low"] == [1] * 30
    assert not any("metrics/fid_low" in names for names in panels.values())
    assert data["alarms"] == [[12.5, "collapse"]]
    assert data["bands"] == [
        [0, 7, "8x8", False],
        [7, 8, "16x16", False],
        [8, 15, "16x16", True],
        [15, 23, "16x16", False],
        [23, 24, "32x32", False],
        [24, 30, "32x32", True],
    ]


def test_what_files_say_stays_text(tmp_path):
    page = made(full_run(tmp_path / "<b>run"))
    assert page.count("<script") == 2
    assert "<b>run" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;" in page


def test_what_the_page_tells(tmp_path):
    page = made(full_run(tmp_path / "run"))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    told = "30 of 100 kimg", "32x32, 75% faded in", "failed", "The run ended with an error", "lr 0.003", "cat 3"
    for line in told:
        assert line in text, line
    assert "12.5 26&nbsp;s collapse Modes" in text
    assert "Shown: all 3 previews" in text
    assert "32x32, reduced from 64x64" in text


def test_a_run_that_has_just_started(tmp_path):
    page = made(fake_run(tmp_path / "run"))
    assert figures(page)["panels"] == []
    for line in ("No previews yet", "No figures yet", "No alarms were raised", "0 of 100 kimg"):
        assert line in page
    (tmp_path / "run" / "stats.jsonl").write_text(json.dumps(row(1)) + '\n{"ki')
    assert len(figures(made(tmp_path / "run"))["panels"]) >= 2, "one row is not the same all along"


def test_values_that_are_not_finite(tmp_path):
    values = [1.0, math.nan, math.inf, 2.0]
    run = fake_run(tmp_path, [row(k, **{"loss/g": v, "x": math.nan}) for k, v in enumerate(values, 1)])
    panels = {panel["title"]: panel for panel in figures(made(run))["panels"]}
    assert panels["losses"]["series"][1]["y"] == [1, None, None, 2]
    assert panels["other: x"]["label"].endswith("never finite")


def test_thousands_of_rows_are_thinned_out_with_their_extremes():
    points = [(float(k), math.sin(k)) for k in range(20000)]
    points[777], points[9001], points[15000] = (777.0, 99.0), (9001.0, None), (15000.0, -99.0)
    few = curves.thinned(points)
    assert 300 < len(few) <= curves.MOST_POINTS
    assert {points[777], points[9001], points[15000], points[0], points[-1]} <= set(few)
    assert few == sorted(few)
    assert max(np.diff([x for x, _ in few])) < 400, "evenly"
    steps = [(float(k), 1.0 if k < 5000 else 2.0) for k in range(10000)]
    steps[100] = (100.0, 1e9)
    assert {y for _, y in curves.smoothed(steps)} == {1, 2}


def test_many_previews_fit(tmp_path):
    run = fake_run(tmp_path, [row(k) for k in range(1, 41)])
    for k in range(41):
        preview(run, k, size=(512, 256), seed=k)
    page = made(run)
    labels = re.findall(r'data-label="([\d.]+) kimg', page)
    assert "Shown: 32 of 41 previews" in page
    assert (len(labels), labels[0], labels[-1]) == (32, "0", "40")
    assert len(set(np.diff([float(label) for label in labels]))) <= 2, "evenly"
    assert 1e6 < len(page) < 6e6
    assert page.count(" hidden ") == 31
    (run / "previews" / "kimg-000040.000.png").write_bytes(b"\x89PNG half")
    assert made(run).count("data-label=") == 31, "half a picture is left out"


def test_settings_beside_those_of_the_preset(tmp_path):
    html = _settings(read_config(fake_run(tmp_path, kimg=123)))
    differing = html[: html.index("<details>")]
    assert re.findall(r"<td>(.*?)</td>", differing) == ["schedule.total_kimg", "123", "600"]
    assert "<mark>total_kimg</mark>" in html
    assert html.count("<mark>") == 2
    config = json.loads((tmp_path / "config.json").read_text()) | {"preset": "own"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _preset_of(read_config(tmp_path)) == {}
    assert "does not know" in made(tmp_path)


def test_open_and_out(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or False)
    out = tmp_path / "x.html"
    result = invoke(["report", str(fake_run(tmp_path / "run")), "--out", str(out), "--open"])
    assert opened == [out.as_uri()]
    assert "No browser" in result.stderr
    assert not (tmp_path / "run" / "report.html").exists()


def test_no_run_is_one_line(tmp_path):
    assert "no run at" in invoke(["report", str(tmp_path)], 2).stderr
    assert "no run at" in invoke(["report", str(tmp_path / "nothing")], 2).stderr
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read" in invoke(["report", str(tmp_path)], 1).stderr


def test_data_sheet(tmp_path):
    facts = data_sheet(open_dataset(data_zip(tmp_path / "a.zip", count=40, classes=3), size=(8, 8)))
    assert (facts["name"], facts["pictures"], facts["channels"]) == ("a.zip", 40, 3)
    assert (facts["size"], facts["full_size"]) == ([8, 8], [16, 16])
    assert (facts["label_kind"], facts["label_size"]) == ("classes", 3)
    assert facts["classes"] == [["0", 14], ["1", 13], ["2", 13]]
    assert facts["unbalanced"] == round(14 / 13, 3)
    plain = data_zip(tmp_path / "b.zip")
    assert data_sheet(open_dataset(plain))["label_kind"] == "none"
    dataset = open_dataset(plain)
    dataset.labels = np.zeros((40, 5), np.float32)
    assert (data_sheet(dataset)["label_kind"], data_sheet(dataset)["label_size"]) == ("vectors", 5)
    dataset = open_dataset(plain)
    dataset.labels, dataset.class_names = np.repeat([0, 2], 20), ["cat", "none", "dog"]
    facts = data_sheet(dataset)
    assert (facts["classes"], facts["unbalanced"]) == ([["cat", 20], ["none", 0], ["dog", 20]], 1)


def test_a_real_run(tmp_path):
    run = tmp_path / "run"
    invoke(train_arguments(data_zip(tmp_path / "data.zip", classes=2), run, "--cond"))
    assert json.loads((run / "data.json").read_text())["classes"] == [["0", 20], ["1", 20]]
    page = made(run)
    for text in ("network-000000.safetensors", "data.zip", "Finished at 0.1", "all 2 previews", "Real pictures"):
        assert text in page
    assert bands([row(1)]) == [(0.0, 1, "8x8", False)]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_a_browser_draws_it_without_complaint(tmp_path):
    run = full_run(tmp_path / "run")
    made(run)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, profile, (run / "report.html").as_uri()], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert done.stdout.count('<article class="panel">') == len(figures((run / "report.html").read_text())["panels"])
    assert 'class="alarmhead"' in done.stdout

"""The page of `stylegen report`: one HTML file with everything in it."""

import base64
import hashlib
import json
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from stylegen import __version__
from stylegen.config import Config, size_text, to_dict

from . import curves
from .run_folder import PANELS, Row, bands, duration_text, stage_text

LOG_LINES = 40
MOST_CLASSES = 60
FOLDER = Path(__file__).parent
HEALTH = (
    "health/diversity",
    "health/r_t",
    "signs/real",
    "health/grad_norm_d",
    "health/grad_norm_g",
    "health/ema_distance",
    "augment/p",
)


def page(run: dict[str, Any]) -> str:
    """The HTML of what `report.gather` found. The same run gives the same text."""
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    # Only this script runs and nothing is fetched, whatever the texts of a run hold.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    name = escape(run["name"])
    sections = [
        ("curves", "Curves", _curves(run)),
        ("pictures", "Pictures", _pictures(run)),
        ("health", "Health", _health(run)),
        ("data", "Data", _data(run)),
        ("settings", "Settings", _settings(run["config"])),
        ("networks", "Networks", _networks(run)),
        ("log", "Log", _log(run)),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{html}</section>'
        for key, title, html in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} - stylegen</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>{_head(run, name)}<nav aria-label="Parts of this page">{links}</nav></header>
<main>{body}</main>
<footer>Made by <code>stylegen report</code>, version {escape(__version__)}.</footer>
<script type="application/json" id="figures">{_json(run)}</script>
<script>{script}</script>
</body>
</html>
"""


def _json(run: dict[str, Any]) -> str:
    rows = run["rows"]
    data = {
        "panels": curves.panels(rows),
        "bands": bands(rows),
        "alarms": [[alarm["kimg"], str(alarm.get("kind", "alarm"))] for alarm in run["alarms"]],
        "last": rows[-1]["kimg"] if rows else 0,
    }
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _head(run: dict[str, Any], name: str) -> str:
    facts = run["outline"]
    done = min(facts["kimg"] / facts["total_kimg"], 1.0)
    figures = [
        ("progress", f"{facts['kimg']:g} of {facts['total_kimg']:g} kimg"),
        ("stage", stage_text(facts["resolution"], facts["alpha"])),
        ("images / s", "" if facts["images_per_sec"] is None else f"{facts['images_per_sec']:.4g}"),
        ("trained for", "" if facts["elapsed_sec"] is None else duration_text(facts["elapsed_sec"])),
        ("left at this rate", duration_text(facts["eta_sec"]) if facts["eta_sec"] else ""),
        ("preset", facts["preset"]),
        ("data", facts["data"] or ""),
        ("last change", time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["changed"]))),
    ]
    cells = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in figures if value)
    kind = "sentence bad" if facts["state"] == "failed" or facts["health"] != "ok" else "sentence"
    return (
        f'<h1>{name} <span class="state {facts["state"]}">{facts["state"]}</span></h1>'
        f'<div class="bar" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * done:.0f}"><i style="width:{100 * done:.2f}%"></i></div>'
        f'<dl class="figures">{cells}</dl><p class="{kind}">{escape(_sentence(run))}</p>'
    )


def _sentence(run: dict[str, Any]) -> str:
    """The state of health."""
    facts, rows = run["outline"], run["rows"]
    if facts["state"] == "failed":
        return f"The run ended with an error: {facts['error']}"
    if run["alarms"]:
        count = len(run["alarms"])
        return f"{'One alarm' if count == 1 else f'{count} alarms, the last one'}: {facts['health']}. {facts['alarm']}"
    if not rows:
        return "No figures yet: the first are written at the first tick."
    value = rows[-1].get("health/diversity")
    diverse = f" Pictures are {value:.2f} times as diverse as real ones." if isinstance(value, float) else ""
    return f"No alarms.{diverse}"


def _curves(run: dict[str, Any]) -> str:
    rows = run["rows"]
    if not rows:
        return "<p>None yet: a run writes its first figures at its first tick.</p>"
    still = "".join(f"<li><b>{escape(name)}</b> {value:g}</li>" for name, value in curves.constants(rows).items())
    still = f'<p>The same all along:</p><ul class="inline">{still}</ul>' if still else ""
    table = _table(
        ("figure", "last", "lowest", "highest"),
        ([escape(name), _number(last), _number(low), _number(high)] for name, last, low, high in curves.latest(rows)),
    )
    shares = (("1", "all"), (".5", "last half"), (".1", "last tenth"))
    choices = "".join(
        f'<label><input type="radio" name="share" value="{value}"{" checked" if value == "1" else ""}> {text}</label>'
        for value, text in shares
    )
    return (
        f'<div class="tools"><fieldset><legend>Show</legend>{choices}</fieldset>'
        '<p class="note">Shades are resolutions, hatched while one fades in. Thin: each report; thick: running median. '
        "Point at a curve, or focus it and use the arrow keys, to read it.</p></div>"
        '<noscript><p>Curves need JavaScript; the figures are in the table below.</p></noscript><div id="panels"></div>'
        f"{still}<details><summary>All figures as a table</summary>{table}</details>"
    )


def _pictures(run: dict[str, Any]) -> str:
    shown, made, steps = run["previews"], run["previews_made"], bands(run["rows"])
    figures = []
    for k, (kimg, (source, width, height)) in enumerate(shown):
        stage = next((text for _, end, text, _ in steps if kimg <= end), "")
        label = f"{kimg:g} kimg" + (f", {stage}" if stage and kimg else "")
        hidden = "" if k == len(shown) - 1 else " hidden"
        figures.append(
            f'<img src="{source}" width="{width}" height="{height}"{hidden} data-label="{escape(label)}" '
            f'alt="Generated pictures after {escape(label)}">'
        )
    html = "<p>No previews yet: a run makes its first at its start.</p>"
    if shown:
        last = len(shown) - 1
        count = f"all {made} previews" if len(shown) == made else f"{len(shown)} of {made} previews, evenly picked"
        html = (
            f'<figure id="previews"><figcaption>Generated from the same latents: <output>{kimg:g} kimg</output>'
            f'</figcaption><div class="sheet">{"".join(figures)}</div>'
            f'<div class="player"><button type="button">Play</button><input type="range" min="0" max="{last}" '
            f'value="{last}" aria-label="preview"></div><p class="note">Shown: {count}.</p></figure>'
        )
    if run["reals"]:
        source, width, height = run["reals"]
        html += (
            f'<figure><figcaption>Real pictures</figcaption><div class="sheet"><img src="{source}" width="{width}" '
            f'height="{height}" alt="Real pictures of the data set"></div></figure>'
        )
    return f'<div class="pair">{html}</div>'


def _health(run: dict[str, Any]) -> str:
    rows, alarms = run["rows"], run["alarms"]
    html = "<p>No alarms were raised.</p>"
    if alarms:
        lines = []
        for alarm in alarms:
            kind, sentence = (escape(str(alarm.get(key, ""))) for key in ("kind", "sentence"))
            lines.append([f"{alarm['kimg']:g}", _when(rows, alarm["kimg"]), kind, sentence])
        html = _table(("kimg", "after", "alarm", "what was seen"), lines)
    last = rows[-1] if rows else {}
    titles = {key: title for title, keys in PANELS.items() for key in keys}
    figures = [
        [key, _number(last[key]), "; ".join(filter(None, (titles[key], curves.NOTES.get(titles[key]))))]
        for key in HEALTH
        if key in last
    ]
    return html + (_table(("last figure", "value", "meaning"), figures) if figures else "")


def _when(rows: list[Row], kimg: float) -> str:
    """How long the run had trained at some kimg."""
    seconds = next((row.get("elapsed_sec") for row in rows if row["kimg"] >= kimg), None)
    return "" if seconds is None else duration_text(seconds).replace(" ", "&nbsp;")


def _data(run: dict[str, Any]) -> str:
    sheet, facts = run["sheet"], run["outline"]
    if not sheet:
        return f"<p>{escape(facts['data'] or 'The name of the data')}: the run has no data.json, which says more.</p>"
    size, full = (size_text(tuple(sheet[key])) for key in ("size", "full_size"))
    colours = {1: "grey", 3: "RGB", 4: "RGBA"}.get(sheet["channels"], f"{sheet['channels']} channels")
    labels = {"none": "none", "vectors": f"vectors of {sheet['label_size']} numbers"}
    lines = [
        ("name", sheet["name"]),
        ("pictures", f"{sheet['pictures']:,}"),
        ("size", size if size == full else f"{size}, reduced from {full}"),
        ("colours", colours),
        ("labels", labels.get(sheet["label_kind"], f"{sheet['label_size']} classes")),
        ("digest", sheet["digest"]),
    ]
    classes = sheet.get("classes", [])
    if classes:
        lines.append(("unbalanced", f"the largest class is {sheet['unbalanced']:g} times the smallest"))
    html = _table((), ([f"<th scope=row>{key}</th>", escape(str(value))] for key, value in lines))
    most = max((count for _, count in classes), default=0)
    bars = "".join(
        f'<li><span title="{name}">{name}</span><i style="width:{100 * count / most:.1f}%"></i><b>{count:,}</b></li>'
        for name, count in ((escape(str(name)), count) for name, count in classes[:MOST_CLASSES])
    )
    more = f"<li>and {len(classes) - MOST_CLASSES} more classes</li>" if len(classes) > MOST_CLASSES else ""
    chart = f'<ul class="classes" aria-label="pictures a class">{bars}{more}</ul>' if bars else ""
    return f'<div class="pair">{html}{chart}</div>'


def _settings(config: Config) -> str:
    ours, theirs = to_dict(config), _preset_of(config)
    differ, tables = [], []
    for section, values in ours.items():
        if not isinstance(values, dict):
            continue
        lines = []
        for key, value in values.items():
            usual = theirs[section][key] if theirs else value
            changed = usual != value and key not in ("data_digest", "precision")  # which follow from data and machine
            line = [escape(key), escape(_value(value)), f"<s>{escape(_value(usual))}</s>" if changed else ""]
            lines.append([f"<mark>{text}</mark>" if changed and k < 2 else text for k, text in enumerate(line)])
            if changed:
                differ.append([f"{section}.{key}", *map(escape, (_value(value), _value(usual)))])
        inside = _table(("field", "value", f"in {escape(config.preset)}"), lines)
        tables.append(f"<details><summary>{section}</summary>{inside}</details>")
    if not theirs:
        html = f"<p>Started from {escape(config.preset)}, which this version does not know.</p>"
    elif differ:
        html = f"<p>Other than in the preset {escape(config.preset)}:</p>" + _table(("field", "here", "preset"), differ)
    else:
        html = f"<p>Those of the preset {escape(config.preset)}.</p>"
    return f'{html}<div class="settings">{"".join(tables)}</div>'


def _preset_of(config: Config) -> dict[str, Any]:
    """The settings that the run's preset has for its pictures; nothing where this version has no such preset."""
    from stylegen.config import resolution_of
    from stylegen.errors import UserError
    from stylegen.presets import preset, resolve

    g = config.generator
    size = resolution_of(g, g.levels - 1)
    try:
        return to_dict(resolve(preset(config.preset, size, g.channels, g.label_size, config.schedule.gpus)))
    except UserError:
        return {}


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item:g}" for key, item in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(_value, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _networks(run: dict[str, Any]) -> str:
    if not run["networks"]:
        return "<p>None yet: a run writes its first at its first snapshot.</p>"
    lines = []
    for network in run["networks"]:
        metrics = network.get("metrics")
        told = "; ".join(map(str, metrics.values())) if isinstance(metrics, dict) else ""
        size = network.get("resolution")
        stage = stage_text(size_text(tuple(size)), network.get("alpha")) if size else ""
        kimg = network.get("kimg", "")
        cells = (network["file"], _number(kimg), stage, f"{network['bytes'] / 1e6:.1f} MB", told)
        lines.append([escape(str(cell)) for cell in cells])
    return _table(("file", "kimg", "trained to", "size", "measured"), lines)


def _log(run: dict[str, Any]) -> str:
    lines = run["log"]
    if not lines:
        return "<p>Empty.</p>"
    kinds = {"Error:": "bad", "Warning:": "warn"}
    shown = []
    for line in lines[-LOG_LINES:]:
        kind = next((kind for start, kind in kinds.items() if line[20:].startswith(start)), "")
        shown.append(f'<span class="{kind}">{escape(line)}</span>' if kind else escape(line))
    left = f'<p class="note">The last {LOG_LINES} of {len(lines)} lines.</p>' if len(lines) > LOG_LINES else ""
    text = "\n".join(shown)
    return f'{left}<pre tabindex="0" aria-label="the end of {run["log_name"]}">{text}</pre>'


def _table(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table of HTML cells; a cell that brings its own <th> stays as it is."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    rows = "".join(
        "<tr>" + "".join(cell if cell.startswith("<th") else f"<td>{cell}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    head = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _number(value: Any) -> str:
    if value is None:
        return "not finite"
    return f"{value:.5g}" if isinstance(value, int | float) else escape(str(value))

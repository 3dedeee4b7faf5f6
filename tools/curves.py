"""The curves of a run's page: which columns stand together, and few enough points of each."""

import statistics
from typing import Any

from stylegen.config import METRICS

from .run_folder import PANELS, Row, is_number

Points = list[tuple[float, float | None]]  # (kimg, value); None: not finite

MOST_POINTS = 600  # of a curve
SMOOTH_FROM = 60  # points from which a running median is drawn too
POSITION = {"kimg", "images_seen", "level", "resolution", "alpha", "elapsed_sec"}  # what is not a curve
NOTES = {
    "losses": "without penalties",
    "mean scores of D": "how real D finds real pictures and those of G",
    "mean sign of D's scores of real pictures": "r_t: near 1 for long on little data, D knows it by heart",
    **{title: "bars: 90% intervals" for title, (key, *_) in PANELS.items() if key.removeprefix("metrics/") in METRICS},
    "FID": "lower is better; bars: 90% intervals",
    "KID": "lower is better; bars: 90% intervals",
    "diversity of pictures": "1: as different from each other as real ones",
    "gradient penalties": "before their weights",
}
INCLUDE = {  # what the vertical axis shows in any case
    "mean sign of D's scores of real pictures": (0.0, 1.0),
    "diversity of pictures": (0.0, 1.0),
    "probability of augmentation": (0.0,),
    "images / s": (0.0,),
}
GUIDES = {"mean scores of D": 0.0, "mean sign of D's scores of real pictures": 0.0, "diversity of pictures": 1.0}


def panels(rows: list[Row]) -> list[dict[str, Any]]:
    """The panels of a run as the page's script takes them: known columns first, then all other numbers.

    A panel: title, note, log (whether a logarithmic axis helps), positive (whether it is possible), include, guide,
    label (the panel in a sentence), series. A series: name, x and y, sx and sy (its running median), low and high (the
    ends of intervals) or None.
    """
    columns = _points(rows)
    drawn = {title: keys for title, keys in _grouped(columns).items() if not _still(keys, columns)}
    return [_panel(title, keys, columns) for title, keys in drawn.items()]


def constants(rows: list[Row]) -> dict[str, float]:
    """Columns that have one value all along, as have those of the same panel, and it: no curves."""
    columns = _points(rows)
    groups = [keys for keys in _grouped(columns).values() if _still(keys, columns)]
    return {key: value for keys in groups for key in keys for _, value in columns[key][:1] if value is not None}


def latest(rows: list[Row]) -> list[tuple[str, float | None, float, float]]:
    """(column, last value or None where it is not finite, lowest, highest) of every curve."""
    found = []
    for name, points in _points(rows).items():
        if values := [value for _, value in points if value is not None]:
            found.append((name, points[-1][1], min(values), max(values)))
    return found


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` of the points, evenly, with the lowest and the highest of each part and every gap's first."""
    if len(points) <= most:
        return points
    parts = (most - 2) // 3
    kept = {0, len(points) - 1}
    for part in range(parts):
        span = range(len(points) * part // parts, len(points) * (part + 1) // parts)
        values = {i: value for i in span if (value := points[i][1]) is not None}
        kept |= {min(values, key=values.__getitem__), max(values, key=values.__getitem__)} if values else set()
        kept |= set([i for i in span if points[i][1] is None][:1])
    return [points[i] for i in sorted(kept)]


def smoothed(points: Points) -> Points:
    """A running median over a twenty-fifth of the points, those that are finite, at up to 200 of them.

    Not a mean: it keeps the steps of growth steps, and a single wild report does not move it.
    """
    reach = len(points) // 50
    picked = sorted({round(k * (len(points) - 1) / 199) for k in range(200)})
    medians: Points = []
    for i in picked:
        near = [value for _, value in points[max(i - reach, 0) : i + reach + 1] if value is not None]
        medians.append((points[i][0], statistics.median(near) if near else None))
    return medians


def _points(rows: list[Row]) -> dict[str, Points]:
    """Each column of numbers as (kimg, value)."""
    columns = sorted({name for row in rows for name, value in row.items() if type(value) in (int, float)} - POSITION)
    return {
        name: [(row["kimg"], row[name] if is_number(row[name]) else None) for row in rows if name in row]
        for name in columns
    }


def _grouped(columns: dict[str, Points]) -> dict[str, list[str]]:
    """Title -> columns: PANELS, then what is left, by the part of the names before the slash."""
    groups = {title: there for title, keys in PANELS.items() if (there := [key for key in keys if key in columns])}
    taken = {key for keys in groups.values() for key in keys}
    for name in columns:
        base = name.removesuffix("_low").removesuffix("_high")
        if name not in taken and (base == name or base not in columns):
            groups.setdefault(f"other: {name.partition('/')[0]}", []).append(name)
    return groups


def _still(keys: list[str], columns: dict[str, Points]) -> bool:
    """Whether no value ever changes, or is not finite; fewer than three points do not tell."""
    values = [[value for _, value in columns[key]] for key in keys]
    return all(len(column) > 2 and len(set(column)) == 1 and column[0] is not None for column in values)


def _panel(title: str, keys: list[str], columns: dict[str, Points]) -> dict[str, Any]:
    values = sorted(value for key in keys for _, value in columns[key] if value is not None)
    positive = bool(values) and values[0] > 0
    part = len(values) // 20
    wide = positive and (values[-1] > 30 * statistics.median(values) or values[-1 - part] > 30 * values[part])
    return {
        "title": title,
        "note": NOTES.get(title, ""),
        "log": wide and title not in INCLUDE,
        "positive": positive,
        "include": INCLUDE.get(title, ()),
        "guide": GUIDES.get(title),
        "label": f"{title} against kimg: " + "; ".join(_sentence(key, columns[key]) for key in keys),
        "series": [_series(key, columns) for key in keys],
    }


def _sentence(name: str, points: Points) -> str:
    values = [value for _, value in points if value is not None]
    if not values:
        return f"{name} never finite"
    return f"{name} from {min(values):.4g} to {max(values):.4g}, last {values[-1]:.4g}"


def _series(name: str, columns: dict[str, Points]) -> dict[str, Any]:
    points = columns[name]
    many = len(points) >= SMOOTH_FROM
    bounds = {end: dict(columns.get(f"{name}_{end}", ())) for end in ("low", "high")}
    few = thinned(points)
    median = smoothed(points) if many else []
    return {
        "name": name,
        "x": [_short(x) for x, _ in few],
        "y": [_short(y) for _, y in few],
        "sx": [_short(x) for x, _ in median],
        "sy": [_short(y) for _, y in median],
        **{end: [_short(table.get(x)) for x, _ in few] if table else None for end, table in bounds.items()},
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")

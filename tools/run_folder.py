"""What a run folder tells, while the run goes on too. Nothing here changes or locks the folder of a run."""

import json
import math
import os
import statistics
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stylegen.config import METRICS
from stylegen.errors import UserError

if TYPE_CHECKING:
    from stylegen.config import Config

Row = dict[str, Any]

# Curves that belong together: what a panel shows -> columns of stats.jsonl.
PANELS: dict[str, tuple[str, ...]] = {
    "losses": ("loss/d", "loss/g"),
    "mean scores of D": ("scores/real", "scores/fake"),
    "mean sign of D's scores of real pictures": ("signs/real", "health/r_t"),
    **{name.upper() if name in ("fid", "kid") else name: (f"metrics/{name}",) for name in METRICS},
    "diversity of pictures": ("health/diversity",),
    "gradient norms": ("health/grad_norm_d", "health/grad_norm_g"),
    "gradient penalties": ("penalty/r1", "penalty/r2", "penalty/gp"),
    "distance of G to its average": ("health/ema_distance",),
    "probability of augmentation": ("augment/p",),
    "learning rate": ("lr",),
    "pictures a step": ("batch",),
    "images / s": ("images_per_sec",),
    "seconds that a measurement took": ("metrics/seconds",),
}
STATS, STATE, LOG, CONFIG = "stats.jsonl", "state.ckpt", "log.txt", "config.json"
SIGNS_OF_LIFE = (STATS, STATE, LOG, CONFIG)


def read_lines(path: Path) -> list[Row]:
    """The objects of a JSONL file that have a kimg; half a last line, of a run that is writing it, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and is_number(row.get("kimg")):
            rows.append(row)
    return rows


def read_stats(path: Path) -> list[Row]:
    """The rows of a stats.jsonl. Raises UserError where there are none."""
    if rows := read_lines(path):
        return rows
    raise UserError(f"{path} has no statistics yet; a run writes its first row at its first tick")


def read_log(run: Path) -> list[str]:
    """The lines of a run's log, as far as they were written."""
    path = run / LOG
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def read_config(run: Path) -> "Config":
    """A run's configuration. Raises UserError, OSError."""
    from stylegen.config import Config, from_dict

    try:
        return from_dict(Config, json.loads((run / CONFIG).read_text(encoding="utf-8")))
    except ValueError as error:  # a UserError too
        raise UserError(f"{run / CONFIG} cannot be read: {error}") from error


def is_number(value: Any) -> bool:
    """Whether a value of a row is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def bands(rows: list[Row]) -> list[tuple[float, float, str, bool]]:
    """The stages that a run has gone through: (from kimg, to kimg, resolution, whether it fades in) in order."""
    found: list[tuple[float, float, str, bool]] = []
    start = 0.0
    for row in rows:
        alpha = row.get("alpha")
        stage = str(row.get("resolution", "")), alpha is not None and is_number(alpha) and alpha < 1
        if found and found[-1][2:] == stage:
            found[-1] = (found[-1][0], row["kimg"], *stage)
        else:
            found.append((start, row["kimg"], *stage))
        start = row["kimg"]
    return found


def outline(run: Path) -> dict[str, Any]:
    """How a run stands, in types that JSON can hold. Raises UserError for a run that cannot be read, OSError.

    preset, data (a name, or None where nothing tells), resolution, alpha, kimg, total_kimg, images_per_sec and eta_sec
    (at that rate; both None where unknown), elapsed_sec, changed (seconds since 1970), state ("running", "stopped",
    "finished" or "failed"), error (of a failed one), health ("ok" or the last alarm), alarm (its sentence).
    """
    from stylegen.config import size_text
    from stylegen.training.schedule import stage_at

    config, rows, log = read_config(run), read_lines(run / STATS), read_log(run)
    last = rows[-1] if rows else {}
    seen = round(1000 * last["kimg"]) if rows else _images_of_state(run)
    stage, total = stage_at(config, seen), config.schedule.total_kimg
    rates = [row["images_per_sec"] for row in rows[-5:] if is_number(row.get("images_per_sec"))]
    rate = statistics.median(rates) if rates else None
    error = _last_error(log)
    if is_locked(run):
        state = "running"
    else:
        state = "failed" if error else "finished" if seen >= 1000 * total else "stopped"
    alarms = read_lines(run / "alarms.jsonl")
    return {
        "preset": config.preset,
        "data": _data_name(run),
        "resolution": size_text(stage.resolution),
        "alpha": stage.alpha,
        "kimg": seen / 1000,
        "total_kimg": total,
        "images_per_sec": rate,
        "eta_sec": max(1000 * total - seen, 0) / rate if rate else None,
        "elapsed_sec": last.get("elapsed_sec"),
        "changed": changed(run),
        "state": state,
        "error": error if state == "failed" else None,
        "health": f"{alarms[-1].get('kind', 'alarm')} at {alarms[-1]['kimg']:g} kimg" if alarms else "ok",
        "alarm": str(alarms[-1].get("sentence", "")) if alarms else None,
    }


def changed(run: Path) -> float:
    """When a run last wrote something, in seconds since 1970. Raises OSError."""
    return max((run / name).stat().st_mtime for name in SIGNS_OF_LIFE if (run / name).exists())


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine is in `stylegen.files.exclusive` of a folder.

    Linux is asked without touching the lock: a run that starts at that moment finds it free. Elsewhere it is held,
    shared, for the instant that the question takes.
    """
    if sys.platform == "win32":
        return False
    locks = Path("/proc/locks")
    if locks.exists():
        # Devices are left out: those of /proc/locks are not those of stat() on btrfs and overlays.
        inode = str(folder.stat().st_ino)
        held = [line.split() for line in locks.read_text().splitlines()]
        return any(line[1] == "FLOCK" and line[5].rpartition(":")[2] == inode for line in held)
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def stage_text(resolution: str, alpha: float | None) -> str:
    """A stage in words."""
    return resolution if alpha in (None, 1) else f"{resolution}, {alpha:.0%} faded in"


def duration_text(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, length), (smaller, part) in pairwise(units):
        if seconds >= length:
            whole, rest = divmod(seconds, length)
            more = f" {rest // part:.0f} {smaller}" if unit != "min" and rest >= part else ""
            return f"{whole:.0f} {unit}{more}"
    return f"{seconds:.0f} s"


def _last_error(log: list[str]) -> str | None:
    last = log[-1] if log else ""
    _, found, error = last.partition(" Error: ")
    return error if found and len(last) - len(error) - len(found) == len("2000-01-01 00:00:00") else None


def _images_of_state(run: Path) -> int:
    from stylegen.training.state import saved_config

    return saved_config(run / STATE)[1] if (run / STATE).exists() else 0


def _data_name(run: Path) -> str | None:
    sheet = read_sheet(run)
    networks = sorted(run.glob("network-*.safetensors"))
    return str(sheet["name"]) if sheet.get("name") else provenance(networks[-1]).get("data") if networks else None


def read_sheet(run: Path) -> dict[str, Any]:
    """A run's data.json; nothing where there is none, or half of one."""
    try:
        sheet = json.loads((run / "data.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return sheet if isinstance(sheet, dict) else {}


def provenance(network: Path) -> dict[str, Any]:
    """Where a network comes from; nothing where its file does not tell."""
    from stylegen.checkpoint import parse_network, read_metadata

    try:
        return parse_network(network, read_metadata(network))[1]
    except (UserError, FileNotFoundError):
        return {}

"""What a run tells: progress bar, log.txt, stats.jsonl, TensorBoard, pictures."""

import contextlib
import io
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stylegen import images as pictures
from stylegen.config import Config, resolution_of, size_text
from stylegen.files import naming, write_atomic
from stylegen.latents import latents, one_hot
from stylegen.networks.layers import upscale

from .dataset import Dataset
from .schedule import Stage, stage_at, total_images
from .state import TrainState

MAX_SHEET_PX = 1024
SHOWN = {"loss/d": "loss/d", "loss/g": "loss/g", "signs/real": "r_t", "health/diversity": "diversity"}


class Reporter:
    """Keeps the means of the statistics since the last report and writes them where people and programs look.

    Files are opened for each line, so that a full disk is one OSError, which names the file. What cannot be shown,
    because the terminal is gone, is left out.
    """

    def __init__(self, config: Config, run_dir: Path, images_seen: int):
        self.run_dir, self.started, self.total = run_dir, time.monotonic(), total_images(config)
        rows = cut_rows(run_dir / "stats.jsonl", images_seen)
        self.elapsed_before = rows[-1]["elapsed_sec"] if rows else 0.0
        self.events, self.terminal = _Events(run_dir, images_seen), _Terminal()
        self.bar = tqdm(
            total=self.total,
            initial=min(images_seen, self.total),
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            file=self.terminal,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )
        self._restart(images_seen)

    def log(self, line: str, *, show: bool = True) -> None:
        """A line to the terminal and to log.txt, there with the time."""
        if show:
            self.bar.write(line, file=self.terminal)
        append(self.run_dir / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n".encode())

    def add(self, config: Config, stage: Stage, stats: dict[str, Tensor], images_seen: int) -> None:
        """Counts an iteration in."""
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value.detach().double(), count + 1)
        self.bar.set_description_str(stage_text(config, stage), refresh=False)
        self.bar.update(min(images_seen, self.total) - self.bar.n)

    def report(self, stage: Stage, images_seen: int) -> dict[str, Any]:
        """Writes the means since the last report, and returns the row."""
        now = time.monotonic()
        rate = (images_seen - self.last_image) / max(now - self.last_time, 1e-9)
        row: dict[str, Any] = {
            "kimg": images_seen / 1000,
            "images_seen": images_seen,
            "level": stage.level,
            "resolution": size_text(stage.resolution),
            "alpha": stage.alpha,
            "batch": stage.batch,
            "lr": stage.lr,
            "images_per_sec": round(rate, 3),
            "elapsed_sec": round(self.seconds, 1),
        }
        means = {name: float(total) / count for name, (total, count) in self.sums.items()}
        row |= {name: float(f"{value:.6g}") for name, value in (means | self.noted).items()}
        append(self.run_dir / "stats.jsonl", f"{json.dumps(row)}\n".encode())
        self.events.add({name: v for name, v in row.items() if name not in ("images_seen", "resolution")}, images_seen)
        self._restart(images_seen)
        return row

    def show(self, row: dict[str, Any], alarms: list[str]) -> None:
        """Puts a row's main figures, and the alarms that stand, at the end of the bar."""
        shown = {short: f"{row[name]:.3g}" for name, short in SHOWN.items() if name in row}
        self.bar.set_postfix(shown | ({"ALARM": "+".join(alarms)} if alarms else {}), refresh=False)

    def note(self, figures: dict[str, float], seconds: float) -> None:
        """Puts figures into the next report, and leaves the seconds that they took out of its rate."""
        self.noted |= figures
        self.last_time += seconds

    @property
    def seconds(self) -> float:
        """How long the run has trained, in all its parts."""
        return self.elapsed_before + time.monotonic() - self.started

    def close(self) -> None:
        """Ends the progress bar; errors that follow start on a line of their own."""
        self.bar.close()

    def _restart(self, images_seen: int) -> None:
        self.sums: dict[str, tuple[Any, int]] = {}
        self.noted: dict[str, float] = {}
        self.last_time, self.last_image = time.monotonic(), images_seen


def stage_text(config: Config, stage: Stage) -> str:
    """The stage in words: "16x16", or "16x16 fading in 40%"."""
    text = size_text(stage.resolution)
    return text if stage.alpha == 1 else f"{text} fading in {stage.alpha:.0%}"


def sheet_shape(config: Config) -> tuple[int, int]:
    """(columns, rows) of the preview and of reals.png."""
    height, width = resolution_of(config.generator, config.generator.levels - 1)
    columns, rows = (min(max(MAX_SHEET_PX // side, 3), most) for side, most in ((width, 16), (height, 8)))
    return columns, min(config.generator.label_size, 10) or rows


@torch.no_grad()
def preview(state: TrainState, path: Path) -> None:
    """A sheet of G_ema's pictures of fixed latents (seeds 0, 1, ...), enlarged to the final resolution.

    Conditional networks show a class a row. Same latents as `stylegen generate`, untruncated.
    """
    config, stage = state.config, stage_at(state.config, state.images_seen)
    columns, rows = sheet_shape(config)
    seeds = list(range(columns * rows))
    z = latents(seeds, config.generator.latent_size).to(state.device)
    size = config.generator.label_size
    labels = one_hot([seed // columns % size for seed in seeds], size).to(state.device) if size else None
    made = []
    for start in range(0, len(seeds), 16):
        part = slice(start, start + 16)
        of = None if labels is None else labels[part]
        images = state.G_ema(z[part], of, resolution=stage.resolution, alpha=stage.alpha)
        made.append(pictures.to_uint8(images).cpu())
    whole = torch.cat(made)
    while whole.shape[2] < resolution_of(config.generator, config.generator.levels - 1)[0]:
        whole = upscale(whole)
    pictures.save_image(pictures.grid(whole, columns, rows), path)


def save_reals(config: Config, dataset: Dataset, path: Path) -> None:
    """A sheet of real pictures at the final resolution, in the order of the data."""
    columns, rows = sheet_shape(config)
    count = min(columns * rows, len(dataset))
    reals = torch.from_numpy(np.stack([dataset.read(i) for i in range(count)]))
    pictures.save_image(pictures.grid(reals, columns, rows), path)


class _Terminal:
    """Standard error, which may go away without ending the run: Ctrl-C on `stylegen train ... | tee` ends tee first.

    In a file each state of the progress bar is a line of its own.
    """

    def write(self, text: str) -> None:
        if not sys.stderr.isatty():
            text = text.strip()
            text += "\n" if text else ""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class _Events:
    """TensorBoard's event file of this process, where tensorboard is installed.

    Its own writer works in a thread, which answers a full disk with a traceback, and loses what a kill finds unwritten.
    """

    def __init__(self, run_dir: Path, images_seen: int):
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:  # an optional extra
            self.path = None
            return
        self.Event, self.Summary, self.RecordWriter = event_pb2.Event, summary_pb2.Summary, RecordWriter
        now = time.time()
        self.path = run_dir / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{os.getpid()}"
        # TensorBoard drops what an earlier process, since killed, has told about this step and later ones.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(file_version="brain.Event:2", wall_time=now)
        self._write(session_log=start, wall_time=now, step=images_seen + 1)

    def add(self, scalars: dict[str, float], images_seen: int) -> None:
        """A point of each curve."""
        if self.path:
            values = [self.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
            self._write(summary=self.Summary(value=values), wall_time=time.time(), step=images_seen)

    def _write(self, **fields: Any) -> None:
        assert self.path
        record = io.BytesIO()
        self.RecordWriter(record).write(self.Event(**fields).SerializeToString())
        append(self.path, record.getvalue())


def append(path: Path, data: bytes) -> None:
    """Adds `data` to a file. Raises OSError, which names the file."""
    with naming(path), open(path, "ab") as file:
        file.write(data)


def cut_rows(path: Path, images_seen: int) -> list[dict[str, Any]]:
    """Drops the rows after `images_seen`, which the resumed run writes again; returns the others."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # half a line, from a run that was killed
            continue
        if row["images_seen"] <= images_seen:
            rows.append(row)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows

"""Video files and numbered pictures, written frame by frame: memory does not grow with their length."""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UsageError, UserError
from .files import atomic_folder, atomic_path
from .images import save_image, to_pil

Write = Callable[[Tensor], None]

GIF_FPS = 50  # the most that common viewers play
# Suffix -> (encoder, its pixels, options of it, options of the file). H.264's CRF 17 is hard to tell from lossless;
# x264's tree of macroblocks makes other bytes now and then, of the same frames, where it is computed with AVX-512.
FORMATS: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {
    ".mp4": ("libx264", "yuv420p", {"crf": "17", "x264-params": "mbtree=0"}, {"movflags": "faststart"}),
    ".gif": ("gif", "pal8", {}, {"loop": "0"}),
    ".webp": ("libwebp_anim", "bgra", {"lossless": "1"}, {"loop": "0"}),
}


def check_video(path: str | Path, fps: float) -> None:
    """Raises UserError for a name that means no format, a rate that the format has not, or a missing encoder.

    Of a folder: where it holds anything but the pictures of an earlier video, which are replaced.
    """
    suffix = Path(path).suffix.lower()
    if not suffix:
        others = [other.name for other in Path(path).glob("*") if not re.fullmatch(r"frame-\d{6}\.png", other.name)]
        if others:
            raise UserError(f"{path} holds {others[0]}, which is no picture of a video; give a new folder")
        return
    if suffix not in FORMATS:
        raise UsageError(f"{path}: a video is {', '.join(FORMATS)}, or a folder of numbered PNGs, which has no suffix")
    if suffix == ".gif" and fps > GIF_FPS:
        raise UsageError(f"a GIF has at most {GIF_FPS} frames a second, not {fps:g}; write .mp4 or .webp")
    _encoder(suffix)


@contextmanager
def open_video(path: str | Path, fps: float) -> Iterator[Write]:
    """Yields write(frame uint8 [C, H, W]), frames of one size. The file is there when all is written, or not at all.

    .mp4 is H.264 (4:2:0; of an odd side the last line is repeated), .gif has a palette a frame, .webp is lossless and
    keeps an alpha channel: the others show it on white. No suffix: a folder of frame-000000.png and so on. Raises
    UserError as `check_video` does, OSError.
    """
    path = Path(path)
    check_video(path, fps)
    if path.suffix:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            yield from _encoded(temporary, path.suffix.lower(), Fraction(fps).limit_denominator(1001))
    else:
        with atomic_folder(path) as folder:
            numbers = iter(range(10**6))
            yield lambda frame: save_image(frame, folder / f"frame-{next(numbers):06d}.png")


def _encoded(path: Path, suffix: str, fps: Fraction) -> Iterator[Write]:
    av = _encoder(suffix)
    encoder, pixels, options, file_options = FORMATS[suffix]
    with av.open(str(path), "w", format=suffix[1:], options=file_options) as container:
        stream: Any = None
        graph: Any = None
        count = 0

        def encode(frame: Any) -> None:
            container.mux(stream.encode(frame))

        def write(image: Tensor) -> None:
            nonlocal stream, graph, count
            shown = np.asarray(_shown(image, suffix))
            frame = av.VideoFrame.from_ndarray(shown, format="rgba" if shown.shape[2] == 4 else "rgb24")
            if suffix != ".gif":  # converted by the encoder, the same frames do not give the same bytes
                frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = count, 1 / fps
            if stream is None:
                stream = container.add_stream(encoder, rate=fps, options=options)
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
                graph = _palettes(av, frame) if suffix == ".gif" else None
            for ready in _through(av, graph, frame) if graph else [frame]:
                encode(ready)
            count += 1

        yield write
        if stream is not None:
            for ready in _through(av, graph, None) if graph else []:
                encode(ready)
            encode(None)


def _shown(image: Tensor, suffix: str) -> Any:
    """A PIL picture that the format can show."""
    if suffix == ".mp4":
        _, height, width = image.shape
        image = F.pad(image[None].float(), (0, width % 2, 0, height % 2), mode="replicate")[0].to(torch.uint8)
    picture = to_pil(image)
    if suffix == ".webp":
        return picture.convert("RGBA")
    if len(image) in (2, 4):
        white = picture.convert("RGBA")
        white.paste((255, 255, 255, 255), (0, 0, *white.size))
        white.alpha_composite(picture.convert("RGBA"))
        picture = white
    return picture.convert("RGB")


def _palettes(av: Any, frame: Any) -> Any:
    """A filter graph that gives every frame the 256 colours that suit it."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format="rgb24", time_base=frame.time_base)
    split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=none"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _through(av: Any, graph: Any, frame: Any) -> Iterator[Any]:
    """What comes out of `graph` when `frame` goes in, None at the end."""
    graph.push(frame)
    while True:
        try:
            ready = graph.pull()
        except (BlockingIOError, av.error.EOFError):
            return
        ready.pict_type = 0
        yield ready


def _encoder(suffix: str) -> Any:
    """PyAV, which brings its encoders along. Raises UserError where it, or the format's, is missing."""
    remedy = "pip install 'stylegen[video]', or write a folder of PNGs: a name without suffix"
    try:
        av = importlib.import_module("av")
        av.codec.Codec(FORMATS[suffix][0], "w")
    except ImportError as error:
        raise UserError(f"{suffix} files need PyAV, which is not installed: {remedy}") from error
    except ValueError as error:
        raise UserError(f"this PyAV has no {FORMATS[suffix][0]}, which {suffix} files need: {remedy}") from error
    return av

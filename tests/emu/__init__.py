"""The CUDA kernels on the CPU: csrc/*.cu compiled as C++ against an emulation of the CUDA execution model."""

import ctypes
import math
import random
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .build import build, missing

__all__ = ["DTYPES", "Emulator", "build", "missing"]

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]  # in the order of csrc/types.h
ACC = {dtype: torch.float64 if dtype == torch.float64 else torch.float32 for dtype in DTYPES}
SCHEDULES = 3  # forward, reverse, random
GUARD = 64  # bytes around every tensor
BIAS_ACT, CHANNEL_SUM, UPFIRDN2D, ADAIN_FORWARD, ADAIN_BACKWARD, PIXEL_NORM = range(6)  # as in driver.cpp


class Emulator:
    """The operators of csrc/*.h on tensors, [N, C, H, W] in either memory order.

    Every call is run under all three schedules, which must agree to the bit. Tensors start at random offsets from a
    16-byte boundary where `aligned` is false, and have NaNs around them, so that a kernel that reads outside of them
    computes NaNs, and one that writes there is found out. Errors are AssertionErrors. Calls are appended to `record`,
    if given, in the format that the sanitized programs replay.
    """

    def __init__(
        self,
        library: Path,
        *,
        dtypes: Sequence[torch.dtype] = tuple(DTYPES),
        most: int = 12_000,
        record: list[bytes] | None = None,
    ) -> None:
        self.call = ctypes.CDLL(str(library)).emu_call
        self.call.restype = ctypes.c_char_p
        self.record = record
        self.dtypes = dtypes  # that checks may use,
        self.most = most  # ... and how many elements
        self.random = random.Random(0)
        self.aligned = True

    def bias_act(
        self,
        x: Tensor | None,
        b: Tensor | None,
        act: int,
        order: int,
        ref: Tensor | None,
        g: Tensor | None,
        gg: Tensor | None,
        numbers: Sequence[float],  # alpha, gain, clamp
    ) -> Tensor:
        like = next(t for t in (x, ref, g) if t is not None)
        ints = [like.numel(), *_channels(like), DTYPES.index(like.dtype), act, order]
        return self._run(BIAS_ACT, ints, numbers, [x, b, ref, g, gg], [_like(like)])[0]

    def channel_sum(self, v: Tensor) -> Tensor:
        ints = [v.numel(), *_channels(v), DTYPES.index(v.dtype)]
        return self._run(CHANNEL_SUM, ints, [], [v], [_small(v, v.shape[1])])[0]

    def pixel_norm(self, x: Tensor, g: Tensor | None, eps: float) -> Tensor:
        return self._run(PIXEL_NORM, _shape(x), [eps], [x, g], [_like(x)])[0]

    def upfirdn2d(
        self,
        x: Tensor,
        fx: Tensor,
        fy: Tensor | None,
        size: Sequence[int],  # height and width of the result
        up: Sequence[int],  # this and the next two: (x, y)
        down: Sequence[int],
        padding: Sequence[int],
        edge: float,
        gain: float,
    ) -> Tensor:
        taps = [fx.shape[-1], len(fx if fy is None else fy)]
        ints = [*_shape(x), *size, *taps, *up, *down, *padding]
        y = _like(x, [*x.shape[:2], *size])
        return self._run(UPFIRDN2D, ints, [edge, gain], [x], [y], [fx, fy])[0]

    def adain_forward(self, x: Tensor, small: Sequence[Tensor | None], alpha: float, eps: float) -> list[Tensor]:
        """y, mean and rstd; `small` is noise, strength, bias and style."""
        statistics = [_small(x, *x.shape[:2]) for _ in range(2)]
        ints = [*_shape(x), small[0] is not None and len(small[0]) > 1]
        return self._run(ADAIN_FORWARD, ints, [alpha, eps], [x, *small], [_like(x), *statistics], [None] * 5)

    def adain_backward(
        self,
        g: Tensor,
        x: Tensor,
        small: Sequence[Tensor | None],
        statistics: Sequence[Tensor],
        alpha: float,
        eps: float,
    ) -> list[Tensor]:
        """dx, dbias, and where there are noise and style dstrength and dstyle."""
        _, strength, bias, style = small
        ints = [*_shape(x), small[0] is not None and len(small[0]) > 1]
        outputs = [t if t is None else torch.empty_like(t) for t in (strength, bias, style)]
        inputs = [x, *small, None, *statistics, g]
        dx, dstrength, dbias, dstyle = self._run(ADAIN_BACKWARD, ints, [alpha, eps], inputs, [_like(x), *outputs])
        return [t for t in (dx, dbias, dstrength, dstyle) if t is not None]

    def _run(
        self,
        op: int,
        ints: Sequence[int],
        reals: Sequence[float],
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        more_inputs: Sequence[Tensor | None] = (),
    ) -> list[Tensor]:
        tensors = [*inputs, *outputs, *more_inputs]
        offsets = [self._offset(t) for t in tensors]
        seed = self.random.randrange(1000)
        results = []
        for schedule in range(SCHEDULES):
            guarded = [_guarded(t, offset) for t, offset in zip(tensors, offsets, strict=True)]
            written = range(len(inputs), len(inputs) + len(outputs))
            for i in written:
                _fill(guarded[i])
            before = [None if pair is None else pair[0].clone() for pair in guarded]
            if self.record is not None:
                self.record.append(_recorded(op, schedule, seed, ints, reals, guarded, offsets))
            pointers = [None if pair is None else pair[1].data_ptr() for pair in guarded]
            error = self.call(
                op,
                schedule,
                seed,
                (ctypes.c_int64 * len(ints))(*ints),
                (ctypes.c_double * len(reals))(*reals),
                (ctypes.c_void_p * len(pointers))(*pointers),
            )
            assert error is None, error.decode()
            for i, (pair, old) in enumerate(zip(guarded, before, strict=True)):
                if pair is not None and old is not None:
                    _check_guards(pair, old, i in written)
            results.append([pair[1] if (pair := guarded[i]) else None for i in written])
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert a is None or b is None or torch.equal(_bytes(a), _bytes(b)), "the schedule changes the result"
        return results[0]

    def _offset(self, tensor: Tensor | None) -> int:
        if tensor is None or self.aligned:
            return 0
        return self.random.randrange(16 // tensor.element_size()) * tensor.element_size()


def _like(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    memory_format = torch.channels_last if _channels_last(x) else torch.contiguous_format
    return torch.empty(x.shape if shape is None else shape, dtype=x.dtype, memory_format=memory_format)


def _small(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=ACC[x.dtype])


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _channels(x: Tensor) -> list[int]:
    """Their number, and how many elements apart they are."""
    return [x.shape[1], 1 if _channels_last(x) else math.prod(x.shape[2:])]


def _shape(x: Tensor) -> list[int]:
    return [*x.shape, _channels_last(x), DTYPES.index(x.dtype)]


def _guarded(tensor: Tensor | None, offset: int) -> tuple[Tensor, Tensor] | None:
    """A buffer of NaNs, and within it a copy of `tensor` (of the same strides) that starts `offset` bytes askew."""
    if tensor is None:
        return None
    size = tensor.numel() * tensor.element_size()
    buffer = torch.full((2 * GUARD + offset + size,), 0xFF, dtype=torch.uint8)
    inner = buffer[GUARD + offset : GUARD + offset + size].view(tensor.dtype)
    inner = inner.as_strided(tensor.shape, tensor.stride()) if size else inner.reshape(tensor.shape)
    return buffer, inner.copy_(tensor)


def _fill(pair: tuple[Tensor, Tensor] | None) -> None:
    """What a kernel forgets to write is a NaN."""
    if pair is not None:
        pair[0].fill_(0xFF)


def _check_guards(pair: tuple[Tensor, Tensor], before: Tensor, written: bool) -> None:
    buffer, inner = pair
    if written:
        start = inner.data_ptr() - buffer.data_ptr()
        end = start + inner.numel() * inner.element_size()
        before[start:end] = buffer[start:end]
    assert torch.equal(buffer, before), "a write outside of an output"


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


def _recorded(
    op: int,
    schedule: int,
    seed: int,
    ints: Sequence[int],
    reals: Sequence[float],
    guarded: Sequence[tuple[Tensor, Tensor] | None],
    offsets: Sequence[int],
) -> bytes:
    """One call in the format that driver.cpp's main reads."""
    parts = [struct.pack("=3i", op, schedule, seed)]
    parts += [struct.pack(f"=q{len(ints)}q", len(ints), *ints), struct.pack(f"=q{len(reals)}d", len(reals), *reals)]
    parts.append(struct.pack("=q", len(guarded)))
    for pair, offset in zip(guarded, offsets, strict=True):
        if pair is None:
            parts.append(struct.pack("=q", -1))
            continue
        size = pair[1].numel() * pair[1].element_size()
        data = pair[0][GUARD + offset : GUARD + offset + size].numpy().tobytes()
        parts += [struct.pack("=qq", offset, size), data]
    return b"".join(parts)

"""The compiled kernels: whether they are there, when they are used, and what every operator's registration shares.

Each operator is defined here or beside its public function as torch.ops.stylegen.NAME, with a plain-PyTorch
implementation for every device and memory layout. The compiled module, where there is one, puts its kernels above
that for the CPU and for CUDA. Nothing is ever compiled at import or at the first call.
"""

import contextlib
import contextvars
import importlib
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

library = torch.library.Library("stylegen", "DEF")

# Sums, statistics and everything small (biases, styles, noise, and their gradients) are kept in these.
ACC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}

_reference = contextvars.ContextVar("stylegen_reference", default=False)


def define(schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Defines torch.ops.stylegen.NAME by its schema, with a plain implementation and one on shapes alone.

    Returns how to call it: past autograd, which is written in Python and slower than the smallest kernels, where no
    gradient can be wanted.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"stylegen::{name}", fake, lib=library)
    op = getattr(torch.ops.stylegen, name).default
    below_autograd = getattr(torch._C, "_AutoDispatchBelowAutograd", None)  # not public: do without where it is gone
    if below_autograd is None:
        return op

    def call(*args: Any) -> Any:
        wanted = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if wanted or torch.compiler.is_compiling():
            return op(*args)
        with below_autograd():
            return op(*args)

    return call


def differentiable(name: str, backward: Callable, setup_context: Callable) -> None:
    """Gives torch.ops.stylegen.NAME its gradient (see torch.library.register_autograd)."""
    torch.library.register_autograd(f"stylegen::{name}", backward, setup_context=setup_context, lib=library)


def enabled() -> bool:
    """Whether the public functions use compiled kernels here: they are built, and no `reference()` is around."""
    return module is not None and not referenced()


def referenced() -> bool:
    """Whether this runs inside `reference()`."""
    return _reference.get()


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Inside it, every public operator runs its plain-PyTorch reference, as it does where no kernel is built."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def covers(x: Tensor, *numbers: float) -> bool:
    """Whether the compiled kernels serve `x`. They take numbers as float, which would show in a result in double."""
    if not enabled() or x.device.type not in devices or x.dtype not in ACC:
        return False
    return x.dtype != torch.float64 or all(struct.unpack("f", struct.pack("f", v))[0] == v for v in numbers)


def fast_products(x: Tensor) -> bool:
    """Whether the compiled matrix products serve `x` and are made for this processor."""
    flag = {torch.float32: "fast_products_f32", torch.bfloat16: "fast_products_bf16"}.get(x.dtype, "")
    return x.device.type == "cpu" and enabled() and bool(getattr(module, flag, False))


def small(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    """`tensor` as the kernels take everything small beside pictures `x`."""
    return None if tensor is None else tensor.to(ACC[x.dtype])


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory order of results: channels_last if pictures `x` have the channels innermost, otherwise contiguous."""
    innermost = x.ndim == 4 and not x.is_contiguous() and x.stride(1) == 1
    return torch.channels_last if innermost else torch.contiguous_format


def empty(x: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Like `x`, dense in the memory order of results."""
    size = x.shape if size is None else size
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def settle(y: Tensor, x: Tensor) -> Tensor:
    """A plain result as the kernels would return it: in `x`'s dtype and memory order, and never `x` itself."""
    return y.to(x.dtype).clone(memory_format=memory_format(x))


def gradients(
    function: Callable, inputs: Sequence[Tensor | None], needed: Sequence[bool], outer: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of function(*inputs) (a tuple of tensors) by plain autograd, None where not needed.

    For use in a backward formula: differentiable again where that is asked for.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that a tensor that is passed twice gets its two gradients.
        views = [t.view_as(t) if t is not None and need else t for t, need in zip(inputs, needed, strict=True)]
        pairs = [(y, g) for y, g in zip(function(*views), outer, strict=True) if g is not None and y.requires_grad]
        wanted = [t for t, need in zip(views, needed, strict=True) if t is not None and need]
        found: Iterator[Tensor | None] = iter([None] * len(wanted))
        if pairs and wanted:
            ys, gs = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(ys, wanted, gs, create_graph=create_graph, allow_unused=True))
        return [next(found) if t is not None and need else None for t, need in zip(views, needed, strict=True)]


def _load() -> tuple[Any, str]:
    """(the compiled module, ""), or (None, why not)."""
    try:
        found = importlib.import_module("stylegen._native")
    except ImportError as error:
        return None, str(error)
    if getattr(found, "interface", 1) != _INTERFACE:
        return None, "built from other sources than these; install stylegen again"
    wish = os.environ.get("STYLEGEN_ISA", found.isa)
    if wish != found.isa:
        warnings.warn(
            f"STYLEGEN_ISA={wish} is not an instruction set of this processor that stylegen is compiled for "
            f"(baseline, avx2, avx512, avx512bf16); it uses {found.isa}",
            stacklevel=2,
        )
    return found, ""


_INTERFACE = 2  # raised, here and in csrc/binding.cpp, whenever an operator's arguments change
module, failure = _load()
# Kinds of devices that have compiled kernels.
devices = () if module is None else ("cpu", "cuda") if module.cuda_archs else ("cpu",)

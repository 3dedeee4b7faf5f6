"""Workers that train one network together: who they are, what they add up, and who does not answer.

Any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT will do: `stylegen train --gpus`, torchrun.
"""

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stylegen.errors import UserError

from .watchdog import watching

if TYPE_CHECKING:
    from .state import TrainState

T = TypeVar("T")
_stores: Any = dist  # which has stores that its types do not know

BUCKET = 2**24  # elements that travel at once
TIMEOUT_SEC = 1800.0


class LostWorker(UserError):
    """Others of the crew do not answer."""


class Crew:
    """The workers of a run; by itself, one that works alone. `now`: what this one is doing, and since when."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None, timeout: float = TIMEOUT_SEC):
        self.rank, self.size, self.store, self.timeout = rank, size, store, timeout
        self.host = socket.gethostname()
        self.now = ("starting", time.time())
        self._times = itertools.count()

    @property
    def chief(self) -> bool:
        """Whether this worker writes the files and speaks."""
        return self.rank == 0

    def begin(self, doing: str) -> None:
        """Says what this worker does now."""
        self.now = (doing, time.time())

    def add(self, tensors: list[Tensor]) -> Callable[[], None]:
        """Starts to replace `tensors`, float32 and alike on all workers, by their sums; call the result before use.

        The sum is taken in float32 and in the same order each time.
        """
        if self.size == 1:
            return lambda: None
        self.begin("adding up gradients")
        under_way = []
        for bucket in _buckets([_in_memory_order(tensor) for tensor in tensors]):
            flat = torch.cat(bucket)
            with self.contact():
                under_way.append((dist.all_reduce(flat, async_op=True), flat, bucket))

        def wait() -> None:
            for work, flat, bucket in under_way:
                with self.contact():
                    assert work
                    work.wait()
                torch._foreach_copy_(bucket, flat.split([len(piece) for piece in bucket]))
            self.begin("computing")

        return wait

    def all_sum(self, x: Tensor) -> Tensor:
        """The sum of x over the workers, differentiable as often as wanted by the sum of all their losses."""
        with self.contact():
            return _AllSum.apply(x)

    def gather(self, x: Tensor) -> Tensor:
        """Everyone's rows [n, ...], one worker after another: [sum of n, ...]; differentiable like `all_sum`."""
        counts = torch.zeros(self.size, device=x.device)
        counts[self.rank] = len(x)
        numbers = [int(count) for count in self.all_sum(counts)]
        pieces = [x if rank == self.rank else x.new_zeros(count, *x.shape[1:]) for rank, count in enumerate(numbers)]
        return self.all_sum(torch.cat(pieces))

    def share_state(self, state: "TrainState") -> None:
        """Everyone gets the first worker's state."""
        if self.size == 1:
            return
        self.begin("sharing the state")
        assert self.store
        tensors, key = state.tensors(), f"state {next(self._times)}"
        if self.chief:
            outline = [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]
            self.store.set(key, json.dumps([state.images_seen, outline]))
        with self.contact():
            images_seen, outline = json.loads(self.store.get(key))
        found = {}
        for name, shape, kind in outline:
            found[name] = torch.empty(shape, dtype=getattr(torch, kind), device=state.device)
            if self.chief:
                found[name].copy_(tensors[name])
            with self.contact():
                dist.broadcast(found[name], 0)
        if not self.chief:
            state.restore(found, images_seen)

    def one_by_one(self, what: str, make: Callable[[], T]) -> T:
        """What `make` makes, first for the first worker of each host: what it leaves on disk serves the others."""
        local = int(os.environ.get("LOCAL_RANK", 0)) if self.size > 1 else 0
        key = f"{what} on {os.environ.get('GROUP_RANK', 0)}"
        while local and self.store and not self.store.check([key]):
            time.sleep(0.1)
        made = make()
        if not local and self.store:
            self.store.set(key, "there")
        return made

    def roll_call(self, place: str, facts: dict[str, str], timeout: float) -> None:
        """Waits until all workers have come to `place`, with the same facts.

        Raises LostWorker that names the ranks and hosts that have not come in `timeout` seconds, or UserError for those
        that bring other facts.
        """
        if self.size == 1:
            return
        assert self.store
        keys = [f"{place}/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps({"host": self.host, "facts": facts}))
        try:
            self.store.wait(keys, timedelta(seconds=timeout))
        except RuntimeError as error:
            missing = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
            if not missing:
                raise self._lost(f"rank {self.rank} on {self.host} lost the launcher: {_line(error)}") from error
            names = ", ".join(self._name(rank) for rank in missing)
            raise self._lost(
                f"{names} did not answer within {timeout:g} s (at {place}; {self.size - len(missing)} of {self.size} "
                "workers did); see what that process says, and whether its host reaches the others"
            ) from error
        for rank, key in enumerate(keys):
            theirs = json.loads(self.store.get(key))
            for name, value in theirs["facts"].items():
                if value != facts[name]:
                    raise UserError(
                        f"rank {rank} on {theirs['host']} has another {name} than rank {self.rank} on {self.host} "
                        f"({value}, {facts[name]}); all workers need the same data, options and stylegen"
                    )

    def preflight(self, device: torch.device, facts: dict[str, str]) -> None:
        """A first sum over all workers, before anything depends on it. Raises as `roll_call` does."""
        if self.size == 1:
            return
        self.roll_call("the first sum", facts, self.timeout)
        total = torch.ones(1, device=device)
        with self.contact():
            dist.all_reduce(total)
        if int(total) != self.size:
            raise self._lost(f"{self.size} workers add up to {int(total)}; the network between them is at fault")

    def report(self) -> bool:
        """Publishes what this worker is doing, for the others' messages; returns whether one of them has given up."""
        if not self.store or self.size == 1:
            return False
        self.store.set(f"now/{self.rank}", json.dumps({"host": self.host, "doing": self.now[0], "at": self.now[1]}))
        return self.store.check(["lost"])

    @contextmanager
    def contact(self) -> Iterator[None]:
        """What goes wrong inside with the others becomes a LostWorker that names who was doing what."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(
                f"rank {self.rank} on {self.host} lost contact with the other workers ({_line(error)}){self._others()}"
            ) from error

    def _lost(self, why: str) -> LostWorker:
        """To raise; those who are stuck learn of it too, from their watchdogs."""
        with suppress(RuntimeError):
            if self.store:
                self.store.set("lost", "")
        return LostWorker(why)

    def _others(self) -> str:
        lines = []
        for rank in range(self.size):
            try:
                if rank == self.rank or not self.store or not self.store.check([f"now/{rank}"]):
                    continue
                found = json.loads(self.store.get(f"now/{rank}"))
            except RuntimeError:
                break
            since = time.time() - found["at"]
            lines.append(f"rank {rank} on {found['host']} was {found['doing']} for {since:.0f} s")
        return f"; {'; '.join(lines)}" if lines else ""

    def _name(self, rank: int) -> str:
        """ "rank 3 on host b", as far as it has told."""
        assert self.store
        for place in ("the start", "the first sum"):
            if self.store.check([f"{place}/{rank}"]):
                return f"rank {rank} on {json.loads(self.store.get(f'{place}/{rank}'))['host']}"
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        for neighbour in range(rank // local * local, min(rank // local * local + local, self.size)):
            if self.store.check([f"the start/{neighbour}"]):
                return f"rank {rank} on {json.loads(self.store.get(f'the start/{neighbour}'))['host']}"
        return f"rank {rank} on node {rank // local}, none of whose workers has come"


ALONE = Crew()


def launched() -> bool:
    """Whether a launcher has started this process as one of a crew."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def joined(device: torch.device, timeout: float, call: Callable[[Crew], T]) -> T:
    """Calls with the crew that the environment speaks of, connected by NCCL (CUDA) or gloo.

    Raises what the call raises, LostWorker and UserError; then the process should end at once.
    """
    crew = Crew(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None, timeout)
    with watching(crew):
        _connect(crew, device)
        found = call(crew)
    with crew.contact():  # together: who leaves early takes others' sums away
        dist.barrier()
        dist.destroy_process_group()
    return found


def _connect(crew: Crew, device: torch.device) -> None:
    # The launcher's store, or the first worker's own: as torch's env:// has it, but without waiting for all in silence.
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = crew.chief and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = min(crew.timeout, 300.0)
    try:
        server = _stores.TCPStore(host, port, crew.size, serves, timedelta(seconds=patience), wait_for_workers=False)
    except RuntimeError as error:
        raise LostWorker(f"rank {crew.rank} cannot reach the launcher at {host}:{port}: {_line(error)}") from error
    crew.store = _stores.PrefixStore(f"stylegen/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", server)
    crew.roll_call("the start", {"number of workers": str(crew.size)}, patience)
    group: dict[str, Any] = {"rank": crew.rank, "world_size": crew.size, "timeout": timedelta(seconds=crew.timeout)}
    with crew.contact():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_stores.PrefixStore("group", crew.store), **group)


def share_statistics(network: nn.Module, crew: Crew) -> None:
    """Has the layers that look at the whole batch look at all workers' parts of it."""
    for module in network.modules():
        if crew.size > 1 and hasattr(module, "crew"):
            setattr(module, "crew", crew)  # noqa: B010 (which layers have it is their matter)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllSum.apply(gradient)


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor as they lie, [numel], sharing its memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(map(len, bucket)) + len(tensor) > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket


def _line(error: BaseException) -> str:
    """The first line of an error of torch's, without the place in its sources."""
    first = re.sub(r"^\[\S*\.cpp:\d+\] ", "", str(error).strip().partition("\n")[0])
    return first.partition(". This may")[0][:200] or type(error).__name__

"""Starting from what another network has learnt."""

from pathlib import Path

from torch import Tensor

from stylegen.checkpoint import load_network, load_tensors
from stylegen.errors import UserError

from .saver import saved_states
from .state import TrainState


def transfer(state: TrainState, source: str) -> str:
    """Gives a fresh state the weights of `source`: a run folder (G, its average and D), or a network (G alone).

    Tensors of another shape, as the levels that the source has not or those that labels enter, stay as drawn. Returns
    what was taken and what was not, in one line. Raises UserError where it is nothing, OSError.
    """
    found, kind = _weights(source)
    lines = []
    for prefix, network in (("G", state.G), ("G_ema", state.G_ema), ("D", state.D)):
        own = network.state_dict()
        theirs = found.get(prefix, {})
        fitting = {name: theirs[name] for name in own if name in theirs and theirs[name].shape == own[name].shape}
        if theirs and not any(own[name].ndim > 1 for name in fitting):
            raise UserError(
                f"--init-from {source}: nothing in it fits {prefix} of this run; use its preset and settings"
            )
        network.load_state_dict(own | fitting)
        if prefix != "G_ema":
            lines.append(f"{len(fitting)} of {len(own)} tensors of {prefix}{_unlike(own, theirs)}")
    without = "" if found.get("D") else "; D starts from nothing, as a network file holds none: give a run folder"
    return f"Starting from {kind} {source}: {', '.join(lines)}{without}"


def _unlike(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """How many tensors have another shape there, and one of them, for those who took another preset or --set."""
    unlike = [name for name in own if name in theirs and theirs[name].shape != own[name].shape]
    if not unlike:
        return ""
    here, there = ("x".join(map(str, tensors[unlike[0]].shape)) for tensors in (own, theirs))
    return f" ({len(unlike)} have other shapes there: {unlike[0]} is {here}, and {there} there)"


def _weights(source: str) -> tuple[dict[str, dict[str, Tensor]], str]:
    """(network -> its tensors by name, what the source is)."""
    if states := saved_states(Path(source)):
        tensors, _ = load_tensors(states[0])
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition("/")
            found.setdefault(prefix, {})[rest] = tensor
        return found, "the run"
    network = load_network(source)[0].state_dict()
    return {"G": network, "G_ema": network}, "the network"

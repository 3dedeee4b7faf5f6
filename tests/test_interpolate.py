"""`stylegen interpolate`: what its paths pass through, what it writes and refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import invoke

from stylegen import paths
from stylegen.checkpoint import load_network
from stylegen.images import to_uint8
from stylegen.latents import class_averages, latents, one_hot
from stylegen.tools.interpolate import EASINGS


def frames(network, out, *options, seeds="0-2", fps="4", seconds="1", code=0):
    """uint8 [n, H, W, C] of the numbered pictures, or the message where it should fail."""
    command = ["interpolate", "--network", str(network), "--seeds", seeds, "--fps", fps, "--seconds", seconds]
    result = invoke([*command, "--out", str(out), *map(str, options)], code)
    if code:
        return result.stderr
    return np.stack([np.asarray(Image.open(path)) for path in sorted(out.iterdir())]).astype(int)


def made(network, seeds, psi=0.7, klass=None):
    G, _ = load_network(network)
    labels = None if klass is None else one_hot([klass] * len(seeds), G.config.label_size)
    with torch.inference_mode():
        w = G.mapping(latents(seeds, 8), labels)
        w = G.truncate(w, psi, 8, None if labels is None else class_averages(G, labels))
        return to_uint8(G.synthesis(w)).permute(0, 2, 3, 1).numpy().astype(int)


def close(a, b):
    return abs(a - b).max() <= 1


@pytest.mark.parametrize(
    "options", [[], ["--curve", "linear"], ["--space", "z"], ["--space", "w", "--ease", "in-out"], ["--batch", "1"]]
)
def test_keys_are_passed_through(networks, tmp_path, options):
    shown = frames(networks["rgb"], tmp_path / "a", *options, seconds="1.25")
    assert len(shown) == 5
    assert close(shown[[0, 2, 4]], made(networks["rgb"], [0, 1, 2]))
    loop = frames(networks["rgb"], tmp_path / "b", *options, "--loop", seeds="0-1")
    assert close(loop[[0, 2]], made(networks["rgb"], [0, 1]))
    assert not close(loop[1], loop[0])


def test_progan_goes_through_z(networks, tmp_path):
    shown = frames(networks["progan"], tmp_path / "a", seconds="1.25")
    assert len({frame.tobytes() for frame in shown}) == 5
    message = frames(networks["progan"], tmp_path / "b", "--space", "w", code=1)
    assert "a progan network has no w; its paths lie in --space z" in message
    message = frames(networks["progan"], tmp_path / "b", "--sweep-layers", code=1)
    assert "--sweep-layers needs styles; a progan network has none" in message


def test_grid_and_scale(networks, tmp_path):
    shown = frames(networks["rgb"], tmp_path, "--grid", "2x1", "--scale", "2", seeds="0-3", fps="3")
    assert shown.shape == (3, 32, 64, 3)
    assert close(shown[0, ::2, :32:2], made(networks["rgb"], [0])[0])
    assert close(shown[0, 1::2, 33::2], made(networks["rgb"], [2])[0])
    assert close(shown[2, ::2, 32::2], made(networks["rgb"], [3])[0])


def test_truncation_sweep(networks, tmp_path):
    shown = frames(networks["rgb"], tmp_path, "--sweep-trunc", "-1:1", seeds="4", fps="5")
    for frame, psi in zip(shown, (-1, -0.5, 0, 0.5, 1), strict=True):
        assert close(frame, made(networks["rgb"], [4], psi)[0])


def test_class_morph(networks, tmp_path):
    options = ["--sweep-classes", "cat,2", "--grid", "2x1"]  # the name "2" is that of class 1
    shown = frames(networks["classes"], tmp_path, *options, seeds="4-5", fps="3")
    assert close(shown[0, :, 16:], made(networks["classes"], [5], klass=0)[0])
    assert close(shown[2, :, :16], made(networks["classes"], [4], klass=1)[0])


def test_layer_sweep(networks, tmp_path):
    shown = frames(networks["rgb"], tmp_path / "a", "--sweep-layers", "--loop", seeds="0-1")
    assert close(shown[[0, 2]], made(networks["rgb"], [0, 1]))
    G, _ = load_network(networks["rgb"])
    with torch.inference_mode():
        w = G.truncate(G.mapping(latents([0, 1], 8)), 0.7)
        half = to_uint8(G.synthesis(torch.cat([w[:1, :3], w[1:, 3:]], 1)))[0].permute(1, 2, 0).numpy().astype(int)
    assert close(shown[1], half)


def test_only_some_layers_move(networks, tmp_path):
    shown = frames(networks["rgb"], tmp_path, "--styles", "2-3", seeds="0-1", fps="2")
    G, _ = load_network(networks["rgb"])
    with torch.inference_mode():
        w = G.truncate(G.mapping(latents([0, 1], 8)), 0.7).clone()
        w[0, 2:4] = w[1, 2:4]
        assert close(shown[1], to_uint8(G.synthesis(w[:1]))[0].permute(1, 2, 0).numpy().astype(int))


def test_walks_close(networks, tmp_path):
    shown = frames(networks["classes"], tmp_path / "a", "--walk", "2", "--class", "dog", seeds="3", fps="24")
    steps = [abs(a - b).mean() for a, b in zip(shown, np.roll(shown, -1, 0), strict=True)]
    assert steps[-1] < 2 * np.median(steps)  # from the last frame to the first as between any others
    again = frames(networks["classes"], tmp_path / "b", "--walk", "2", "--class", "dog", seeds="3", fps="24")
    assert (shown == again).all()


def test_constant_speed(networks, tmp_path):
    options = ["--sweep-layers", "--loop"]  # layers differ in how much they change
    plain = frames(networks["rgb"], tmp_path / "a", *options, seeds="0-1", fps="40")
    even = frames(networks["rgb"], tmp_path / "b", *options, "--constant-speed", "pixels", seeds="0-1", fps="40")

    def spread(shown):
        steps = np.linalg.norm((shown[1:] - shown[:-1]).reshape(len(shown) - 1, -1), axis=1)
        return steps.std() / steps.mean()

    assert spread(even) < spread(plain) / 2


@pytest.mark.parametrize(
    ("kind", "options", "code", "message"),
    [
        ("rgb", ["--grid", "2x1"], 2, "every cell takes as many seeds; --grid makes 2, and there are 3 seeds"),
        ("rgb", ["--walk", "1"], 2, "--walk takes one seed a cell; --grid makes 1, and there are 3 seeds"),
        ("rgb", ["--sweep-trunc", "-1:1:3"], 2, "'-1:1:3' is not A:B, such as -1:1"),
        ("rgb", ["--grid", "3x1"], 2, "give two seeds or more, or --walk"),
        ("rgb", ["--walk", "1", "--sweep-layers"], 2, "--walk and --sweep-layers are different paths; give one"),
        ("rgb", ["--curve", "slerp"], 2, "--curve slerp is not one of w's; it has cubic, linear"),
        ("rgb", ["--space", "z", "--styles", "0"], 2, "--styles picks layers of w; give --space w"),
        ("rgb", ["--styles", "0-9"], 2, "no range of this network's layers, 0 to 5"),
        ("rgb", ["--sweep-trunc", "1"], 2, "'1' is not A:B, such as -1:1"),
        ("rgb", ["--sweep-classes", "0,1"], 2, "this network has no classes"),
        ("rgb", ["--scale", "64", "--grid", "999x999"], 2, "pixels; take fewer cells"),
        ("rgb", ["--walk", "1", "--styles", "0"], 2, "--styles means nothing to --walk; leave it out"),
        ("rgb", ["--sweep-layers", "--ease", "in"], 2, "--ease means nothing to --sweep-layers; leave it out"),
        ("rgb", ["--sweep-trunc", "0:1", "--curve", "cubic"], 2, "--curve means nothing to --sweep-trunc"),
        ("rgb", ["--fps", "0"], 2, "is not in the range"),
        ("rgb", ["--out", "a.mov"], 2, "a video is .mp4, .gif, .webp, or a folder of numbered PNGs"),
    ],
)
def test_wrong_options(networks, tmp_path, kind, options, code, message):
    assert message in frames(networks[kind], tmp_path / "out", *options, code=code)
    assert not (tmp_path / "out").exists()


def test_easings_are_those_of_paths():
    assert tuple(paths.EASINGS) == EASINGS


def test_latents_without_seeds(networks, tmp_path):
    np.savez(tmp_path / "w.npz", w=np.zeros((2, 6, 8), np.float32))
    file = str(tmp_path / "w.npz")
    assert frames(networks["rgb"], tmp_path / "a", seeds=file).shape == (4, 16, 16, 3)
    assert "these latents have no z" in frames(networks["rgb"], tmp_path / "b", "--space", "z", seeds=file, code=1)
    walk = frames(networks["rgb"], tmp_path / "b", "--walk", "1", "--grid", "2x1", seeds=file, code=1)
    assert "--walk starts from seeds; these latents have none" in walk

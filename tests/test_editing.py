"""Directions, arithmetic and blends: what they find, move and make."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import GENERATOR, invoke

from stylegen.checkpoint import digest, load_network, save_network
from stylegen.config import GeneratorConfig
from stylegen.editing import attribute, blend, evaluate, load_directions, pca, sample_w, save_directions, sefa
from stylegen.errors import UserError
from stylegen.networks import build_generator


@pytest.fixture
def G():
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(**GENERATOR)).eval().requires_grad_(False)


ALL = list(range(6))


def test_sefa_finds_what_the_affines_amplify(G):
    axis = torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(1)), dim=0)
    for layer in G.synthesis.layers[2:4]:
        layer.style.weight.copy_(layer.style.weight + 20 * torch.outer(torch.ones(len(layer.style.weight)), axis))
    found = sefa(G, 3, [2, 3])
    assert found.unit.shape == (3, 8)
    torch.testing.assert_close(found.unit @ found.unit.T, torch.eye(3), atol=1e-5, rtol=0)
    assert abs(float(found.unit[0] @ axis)) > 0.99
    assert abs(float(sefa(G, 1, [0, 1]).unit[0] @ axis)) < 0.99
    A = torch.cat([G.synthesis.layers[k].style.weight * G.synthesis.layers[k].style.coef for k in (2, 3)])
    gains = (A @ found.unit.T).norm(dim=0)
    assert gains[0] > gains[1] > gains[2]


def test_pca_is_that_of_w(G):
    found, w = pca(G, 8, ALL), sample_w(G)
    variances = torch.linalg.eigvalsh(torch.cov(w.T)).flip(0).sqrt()
    torch.testing.assert_close(found.deviation, variances, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(((w - w.mean(0)) @ found.unit.T).std(0), found.deviation, rtol=1e-4, atol=1e-6)


def test_attributes_are_learnt_from_examples(G):
    w = sample_w(G, 400)
    axis = torch.nn.functional.normalize(torch.randn(8, generator=torch.Generator().manual_seed(2)), dim=0)
    side = (w - w.mean(0)) @ axis
    found = attribute(G, w[side > 0], w[side < 0], ALL)
    moved = (w + found.unit[0] - w.mean(0)) @ axis
    assert (moved > side).all()  # towards those that have it
    far = found.move(w[:1, None].repeat(1, 6, 1), 0, 2.0, [1])
    assert torch.equal(far[0, 0], w[0])
    assert float((far[0, 1] - w[0]).norm()) == pytest.approx(2 * float(found.deviation[0]), rel=1e-4)
    back = attribute(G, w[side < 0], w[side > 0], ALL)
    torch.testing.assert_close(back.unit, -found.unit, atol=1e-3, rtol=1e-3)


def test_files_of_directions(G, tmp_path):
    found = pca(G, 2, [1, 2], "abc")
    save_directions(tmp_path / "a.npz", found)
    again = load_directions(tmp_path / "a.npz", G, ["abc"])
    assert torch.equal(again.unit, found.unit)
    assert (again.layers, again.method, again.network) == ([1, 2], "pca", "abc")
    np.savez(tmp_path / "w.npz", w=np.zeros(3))
    for path, networks, message in [
        ("a.npz", ["def"], "belongs to another network, abc; this one is def: find its own"),
        ("w.npz", ["abc"], "is not a file of directions"),
        ("none.npz", ["abc"], "there is no file"),
    ]:
        with pytest.raises(UserError, match=message):
            load_directions(tmp_path / path, G, networks)


def test_arithmetic():
    def latent(term):
        return torch.full((1 if isinstance(term, int) else 2, 3, 2), 10.0 if isinstance(term, str) else float(term))

    for text, value in [
        ("3", 3),
        ("mean(1, 2, 3) - mean(4,5,6) + mean(7, 8, 9)", 5),
        ("'a.npz' - 4", 6),
        ("1 + 0.5 * (6 - 2)", 3),
        ("-2 + 3", 1),
        (" mean(1, 'a b.npz') ", 5.5),
    ]:
        found = evaluate(text, latent)
        assert found.shape == (3, 2)
        assert float(found[0, 0]) == value
    for text in (
        "",
        "1 -",
        "a",
        "__import__('os')",
        "mean()",
        "0.5",
        "1 ** 2",
        "[1]",
        "mean(1, key=2)",
        "True",
        "1 / 2",
        "max(1, 2)",
    ):
        with pytest.raises(UserError, match="--expr"):
            evaluate(text, latent)


def test_layer_swaps(G):
    torch.manual_seed(1)
    other = build_generator(GeneratorConfig(**GENERATOR)).eval().requires_grad_(False)
    swapped = blend(G, other, 8)
    ours, theirs = G.state_dict(), other.state_dict()
    for name, value in swapped.state_dict().items():
        coarse = not name.startswith("synthesis") or any(
            part in name for part in ("const", "layers.0.", "layers.1.", "to_rgb.0.")
        )
        assert torch.equal(value, (ours if coarse else theirs)[name]), name
    smooth = blend(G, other, 8, 2.0).state_dict()
    name = "synthesis.layers.2.bias"
    G.synthesis.layers[2].bias.fill_(0)
    other.synthesis.layers[2].bias.fill_(1)
    share = float(blend(G, other, 8, 2.0).state_dict()[name][0])
    assert share == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)
    assert torch.equal(smooth["map.dense.0.weight"], ours["map.dense.0.weight"])
    with pytest.raises(UserError, match=r"--swap-at 32: this network has levels of 4, 8, 16"):
        blend(G, other, 32)
    wider = build_generator(GeneratorConfig(**GENERATOR | {"fmap_base": 128}))
    with pytest.raises(UserError, match="differ in their configurations"):
        blend(G, wider, 8)


# ---- the commands ----


def command(name, network, out, *options, code=0):
    return invoke([name, "--network", str(network), "--out", str(out), *options], code)


@pytest.mark.parametrize("kind", ["rgb", "classes"])
@pytest.mark.parametrize("method", ["sefa", "pca"])
def test_directions_and_edit(networks, tmp_path, kind, method):
    klass = ["--class", "1"] if kind == "classes" else []
    options = [
        "--method",
        method,
        "--count",
        "2",
        "--seeds",
        "0-2",
        "--strength",
        "-2:2:5",
        "--layers",
        "coarse",
        *klass,
    ]
    command("directions", networks[kind], tmp_path / "d", *options)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        "direction-0.png",
        "direction-1.png",
        "directions.npz",
    ]
    sheet = np.asarray(Image.open(tmp_path / "d" / "direction-1.png"))
    assert sheet.shape == (3 * 16, 5 * 16, 3)
    file = f"{tmp_path / 'd' / 'directions.npz'}:1"
    command(
        "edit", networks[kind], tmp_path / "e", "--seeds", "0-2", "--direction", file, "--strength", "-2:2:5", *klass
    )
    assert (np.asarray(Image.open(tmp_path / "e" / "sheet.png")) == sheet).all()
    plain = ["generate", "--network", str(networks[kind]), "--seeds", "1", "--out", str(tmp_path / "g"), *klass]
    invoke(plain)
    middle = np.asarray(Image.open(tmp_path / "g" / "seed0001.png")).astype(int)
    assert abs(sheet[16:32, 32:48] - middle).max() <= 1
    assert np.load(tmp_path / "e" / "latents.npz")["w"].shape == (15, 6, 8)


def test_examples_and_expressions(networks, tmp_path):
    command("directions", networks["rgb"], tmp_path / "d", "--with", "1,2,3", "--without", "4-6", "--seeds", "0")
    assert (tmp_path / "d" / "direction-0.png").exists()
    command("edit", networks["rgb"], tmp_path / "a", "--expr", "7")
    invoke(["generate", "--network", str(networks["rgb"]), "--seeds", "7", "--npz", "--out", str(tmp_path / "g")])
    found, single = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a/result.png", "g/seed0007.png"))
    assert abs(found - single).max() <= 1
    file = str(tmp_path / "g" / "latents.npz")
    command("edit", networks["rgb"], tmp_path / "b", "--expr", f"'{file}' - mean(1, 2) + mean(1, 2)")
    assert Image.open(tmp_path / "b" / "sheet.png").size == (4 * 16, 16)
    back = np.load(tmp_path / "b" / "latents.npz")["w"]
    np.testing.assert_allclose(back, np.load(file)["w"], atol=1e-5)


def test_blend(networks, tmp_path):
    A, _ = load_network(networks["rgb"])
    torch.manual_seed(5)
    B = build_generator(A.config)
    save_network(tmp_path / "b.safetensors", B, {})
    out = tmp_path / "deep" / "c.safetensors"
    invoke(["blend", str(networks["rgb"]), str(tmp_path / "b.safetensors"), "--swap-at", "8", "--out", str(out)])
    C, provenance = load_network(out)
    assert provenance["parents"] == [digest(A), digest(B)]
    assert torch.equal(C.synthesis.layers[5].bias, B.synthesis.layers[5].bias)
    invoke(["generate", "--network", str(networks["rgb"]), "--seeds", "7", "--npz", "--out", str(tmp_path / "g")])
    file = str(tmp_path / "g" / "latents.npz")
    invoke(["generate", "--network", str(out), "--seeds", file, "--out", str(tmp_path / "h")])
    message = invoke(
        ["blend", str(networks["rgb"]), str(networks["gray"]), "--swap-at", "8", "--out", str(out)], 1
    ).stderr
    assert "differ in their configurations" in message


def test_what_cannot_be_edited(networks, tmp_path):
    out, rgb = tmp_path / "out", networks["rgb"]
    command("directions", rgb, tmp_path / "d", "--count", "1", "--seeds", "0")
    file = str(tmp_path / "d" / "directions.npz")
    for name, kind, options, code, message in [
        ("directions", "progan", [], 1, "a progan network has no styles"),
        ("directions", "rgb", ["--with", "1"], 2, "--with and --without belong together"),
        ("directions", "rgb", ["--with", "1,2", "--without", "2,1"], 1, "are the same on average"),
        ("directions", "rgb", ["--count", "9"], 2, "styles of 8 have no more directions"),
        ("directions", "rgb", ["--layers", "6"], 2, "no range of this network's layers, 0 to 5"),
        ("edit", "rgb", [], 2, "give either --direction, with --seeds, or --expr"),
        ("edit", "rgb", ["--direction", file], 2, "--direction moves pictures; give their --seeds"),
        ("edit", "rgb", ["--seeds", "1", "--direction", file + ":1"], 2, "has directions 0 to 0"),
        ("edit", "gray", ["--seeds", "1", "--direction", file], 1, "belongs to another network"),
        ("edit", "rgb", ["--expr", "1 +"], 2, "--expr '1 +' cannot be read"),
        ("edit", "rgb", ["--expr", "2 * (3 - 4)"], 2, "multiplies latents"),
        ("edit", "rgb", ["--expr", "1 + 2", "--strength", "0:2"], 2, "--strength means nothing without --direction"),
        (
            "directions",
            "rgb",
            ["--with", "1", "--without", "2", "--count", "3"],
            2,
            "--count means nothing to examples",
        ),
        ("edit", "rgb", ["--seeds", "1", "--direction", file, "--strength", "1:2:1"], 2, "is not A:B:STEPS"),
    ]:
        assert message in command(name, networks[kind], out, *options, code=code).stderr
        assert not out.exists()

"""`stylegen metrics` as a user meets it, and what lies beneath: fakes, remembered reals, path lengths."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import data_zip, error_line, invoke, train_arguments
from torch import Tensor

from stylegen.checkpoint import save_network
from stylegen.config import GeneratorConfig
from stylegen.errors import UserError
from stylegen.images import to_uint8
from stylegen.latents import latents
from stylegen.metrics import evaluate
from stylegen.metrics.evaluate import Source, embed, fakes, kept, remembered, seeds_of
from stylegen.metrics.features import load
from stylegen.metrics.path_length import EPSILON, KINDS, center, path_lengths, reduce, slerp
from stylegen.networks import build_generator

SMALL = {"levels": 3, "latent_size": 8, "style_size": 8, "mapping_width": 8, "mapping_layers": 2, "fmap_base": 64}
FIGURES = ["FID-pixels", "KID-pixels", "precision", "recall", "density", "coverage", "diversity", "diversity of reals"]


def network(path: Path, provenance: dict | None = None, **options: Any) -> Path:
    torch.manual_seed(0)
    G = build_generator(GeneratorConfig(**(SMALL | options)))
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.normal_(parameter)
    save_network(path, G, provenance or {})
    return path


def source(seed: int = 0, **options: Any) -> Source:
    torch.manual_seed(0)
    G = build_generator(GeneratorConfig(**(SMALL | options))).eval()
    return Source(G, {"resolution": (16, 16), "alpha": 1.0}, None, seed)


def measure(*arguments: object, num: int = 40) -> dict:
    fixed = ["--features", "pixels", "--num", str(num), "--device", "cpu", "--json"]
    return json.loads(invoke(["metrics", *map(str, arguments), *fixed]).stdout)


def refused(*arguments: object, code: int = 1) -> str:
    return error_line(invoke(["metrics", *map(str, arguments), "--features", "pixels", "--device", "cpu"], code).stderr)


def test_network_against_data(tmp_path: Path) -> None:
    G, data = network(tmp_path / "g.safetensors"), data_zip(tmp_path / "data.zip")
    facts = measure(G, "--against", data, "--ppl", "all", "--pairs", "12")
    assert list(facts["figures"]) == [
        *FIGURES,
        *(f"PPL-pixels {kind}" for kind in KINDS),
    ]
    assert (facts["fakes"], facts["reals"], facts["size"], facts["mirror"]) == (40, 40, "16x16", False)
    for name, figure in facts["figures"].items():
        assert figure["low"] <= figure["value"] <= figure["high"], name
        assert (figure["spread"] is not None) == name.startswith("KID"), name
    assert facts["figures"]["FID-pixels"]["value"] > 0
    assert all(facts["figures"][f"PPL-pixels {kind}"]["value"] > 0 for kind in KINDS)
    text = invoke(
        ["metrics", str(G), "--against", str(data), "--features", "pixels", "--num", "40", "--device", "cpu"]
    ).stdout
    assert f"FID-pixels          {facts['figures']['FID-pixels']['value']:10.4g}" in text


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    G, data = network(tmp_path / "g.safetensors"), data_zip(tmp_path / "data.zip")
    arguments = (G, "--against", data, "--ppl", "w-full", "--pairs", "12", "--reals", "30")
    first, again, other = measure(*arguments), measure(*arguments), measure(*arguments, "--seed", "1")
    assert first["figures"] == again["figures"]
    assert first["reals"] == 30
    for name in first["figures"]:
        assert first["figures"][name]["value"] != other["figures"][name]["value"] or name in (
            "precision",
            "recall",
            "density",
            "coverage",
        )


def test_equal_folders_have_no_distance(tmp_path: Path) -> None:
    facts = measure(data_zip(tmp_path / "a.zip", seed=1), "--against", data_zip(tmp_path / "b.zip", seed=1))
    assert facts["figures"]["FID-pixels"]["value"] == pytest.approx(0, abs=1e-6)
    assert facts["figures"]["precision"]["value"] == facts["figures"]["recall"]["value"] == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 128, (20, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    facts = measure(folder, "--against", data_zip(tmp_path / "c.zip"))
    assert (facts["fakes"], facts["reals"], facts["size"]) == (20, 40, "8x8")
    assert facts["figures"]["FID-pixels"]["value"] > 1
    assert "--ppl needs a network" in refused(folder, "--against", tmp_path / "c.zip", "--ppl", "z-end", code=2)


def test_mirrored_reals(tmp_path: Path) -> None:
    G, data = network(tmp_path / "g.safetensors"), data_zip(tmp_path / "data.zip")
    assert measure(G, "--against", data, "--mirror")["reals"] == 80
    features = load("pixels")
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    vectors = embed(features, [images], mirror=True)
    assert torch.equal(vectors, torch.cat([features(images), features(images.flip(3))]))


def test_a_run_says_whether_its_reals_are_mirrored(tmp_path: Path) -> None:
    data = data_zip(tmp_path / "data.zip", size=(32, 32))
    invoke(train_arguments(data, tmp_path / "run", "--mirror"))
    facts = measure(tmp_path / "run", "--against", data)
    assert (facts["mirror"], facts["reals"]) == (True, 80)
    assert measure(tmp_path / "run", "--against", data, "--no-mirror")["reals"] == 40


def test_classes(tmp_path: Path) -> None:
    G = network(tmp_path / "g.safetensors", {"class_names": ["cat", "dog", "cow"]}, label_size=3)
    data = data_zip(tmp_path / "data.zip", count=60, classes=3)
    whole, dog = measure(G, "--against", data), measure(G, "--against", data, "--class", "dog")
    assert (whole["reals"], dog["reals"], dog["class"]) == (60, 20, "dog")
    assert dog["figures"] == measure(G, "--against", data, "--class", "1")["figures"] != whole["figures"]
    assert "is not a class" in refused(G, "--against", data, "--class", "hen", code=2)
    plain = data_zip(tmp_path / "plain.zip")
    assert "the network has 3 classes and" in refused(G, "--against", plain)
    assert "has no class '1'; it has no labels" in refused(plain, "--against", plain, "--class", "1", code=2)


def test_a_growing_network_is_measured_at_its_level(tmp_path: Path) -> None:
    G = network(tmp_path / "g.safetensors", {"resolution": [8, 8], "alpha": 0.5})
    assert measure(G, "--against", data_zip(tmp_path / "data.zip"))["size"] == "8x8"


@pytest.mark.parametrize("options", [{"channels": 1}, {"channels": 4}, {"family": "progan", "pixel_norm": True}])
def test_other_networks(tmp_path: Path, options: dict) -> None:
    mode = {1: "L", 4: "RGBA"}.get(options.get("channels", 3), "RGB")
    G, data = network(tmp_path / "g.safetensors", **options), data_zip(tmp_path / "data.zip", mode=mode)
    assert math.isfinite(
        measure(G, "--against", data, "--ppl", "z-end", "--pairs", "10")["figures"]["FID-pixels"]["value"]
    )
    if "family" in options:
        assert "needs styles, which a progan network has not; ask for z-full" in refused(
            G, "--against", data, "--num", 20, "--ppl", "w-full"
        )


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    G, data = network(tmp_path / "g.safetensors"), data_zip(tmp_path / "data.zip")
    assert "no network 'nowhere'" in refused("nowhere", "--against", data, code=2)
    assert "no data at" in refused(G, "--against", "nowhere", code=2)
    assert "which can train at" in refused(G, "--against", data_zip(tmp_path / "small.zip", size=(8, 8)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.ckpt").touch()
    assert "a run without a network yet" in refused(tmp_path / "run", "--against", data)
    result = invoke(["metrics", str(G), "--against", str(data), "--features", "vgg"], 1)
    assert "no features 'vgg'" in error_line(result.stderr)


def test_reals_are_remembered_by_content(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Tensor:
        made.append(1)
        return torch.full((2, 3), float(len(made)))

    first = remembered(tmp_path / "new", ("a", 1), make)
    assert torch.equal(remembered(tmp_path / "new", ("a", 1), make), first)
    assert not torch.equal(remembered(tmp_path / "new", ("a", 2), make), first)
    for file in (tmp_path / "new").iterdir():
        file.write_bytes(b"broken")
    remembered(tmp_path / "new", ("a", 1), make)
    (tmp_path / "file").touch()
    remembered(tmp_path / "file", ("a", 1), make)  # nowhere to write: no error
    assert len(made) == 4


def test_fakes_are_the_pictures_of_their_seeds() -> None:
    it = source(5, noise=False)
    batches = list(fakes(it, 7, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    z = latents(seeds_of(5, 7), 8)
    with torch.no_grad():
        expected = to_uint8(it.G(z))
    assert (torch.cat(batches).int() - expected.int()).abs().max() <= 1
    assert seeds_of(5, 3) == seeds_of(5, 7)[:3] != seeds_of(6, 3)


def test_slerp_stays_on_the_sphere_at_even_speed() -> None:
    a, b = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = [slerp(a, b, torch.full((5, 1), t, dtype=torch.float64)) for t in (0.0, 0.25, 0.5, 1.0)]
    for point in points:
        torch.testing.assert_close(point.norm(dim=1), torch.full((5,), 4.0, dtype=torch.float64))
    torch.testing.assert_close(points[0], 4 * a / a.norm(dim=1, keepdim=True))
    torch.testing.assert_close(points[3], 4 * b / b.norm(dim=1, keepdim=True))
    torch.testing.assert_close((points[1] - points[0]).norm(dim=1), (points[2] - points[1]).norm(dim=1))


def test_path_lengths_of_a_linear_network() -> None:
    """G(w) = w as a picture: each path's squared length is |w1 - w0|^2 over the number of values, wherever it is."""

    class Linear(torch.nn.Module):
        config = SimpleNamespace(family="stylegan", latent_size=12)

        def __init__(self) -> None:
            super().__init__()
            self.some = torch.nn.Parameter(torch.zeros(1))

        def mapping(self, z: Tensor, labels: Tensor | None) -> Tensor:
            return z[:, None].expand(-1, 2, -1)

        def synthesis(self, w: Tensor, **_: Any) -> Tensor:
            return w[:, 0].reshape(-1, 3, 2, 2) * 1000

    G = Linear()
    it = Source(G, {}, None, 3)
    z = latents(seeds_of(3, 20), 12)
    expected = (z[1::2] - z[0::2]).square().mean(1).double() * 500**2
    for kind in ("w-full", "w-end"):
        found = torch.cat(list(path_lengths(it, load("pixels"), kind, 10, 4)))
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
    assert EPSILON == 1e-4


def test_batches_do_not_matter_to_path_lengths() -> None:
    it = source(noise=False)
    one, two = (torch.cat(list(path_lengths(it, load("pixels"), "z-full", 6, batch))) for batch in (6, 4))
    torch.testing.assert_close(one, two, rtol=0.05, atol=1e-2)


def test_the_crop_and_the_reduction_are_the_papers() -> None:
    image = torch.arange(16.0 * 16).reshape(1, 1, 16, 16)
    assert torch.equal(center(image), image[:, :, 6:14, 4:12])
    assert reduce(torch.zeros(1, 3, 1024, 1024)).shape[2:] == (256, 256)
    assert reduce(image) is image


def test_lengths_outside_the_percentiles_do_not_count() -> None:
    lengths = torch.cat([torch.full((998,), 2.0), torch.tensor([-1e9, 1e9])]).double()
    assert kept(lengths).unique().tolist() == [2.0]
    figure = evaluate.path_length(lengths, level=0.9, seed=0)
    assert (figure.value, figure.low, figure.high) == (2.0, 2.0, 2.0)


def test_path_lengths_know_their_networks() -> None:
    with pytest.raises(UserError, match="ask for z-end"):
        next(path_lengths(source(family="progan", pixel_norm=True), load("pixels"), "w-end", 2, 2))

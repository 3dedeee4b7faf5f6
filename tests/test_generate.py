"""`stylegen generate` and `stylegen info` as a user meets them: files, bytes, exit codes, lines."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import GENERATOR, KINDS

from stylegen.checkpoint import load_network, outline
from stylegen.config import (
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from stylegen.images import to_uint8
from stylegen.latents import class_averages, latents, one_hot
from stylegen.tools.cli import cli
from stylegen.training.state import fresh


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="stylegen")


def generate(network, out, *options, seeds="0-2"):
    return run("generate", "--network", network, "--seeds", seeds, "--out", out, "--device", "cpu", *options)


def made(network, out, *options, seeds="0-2"):
    """Pictures [N, H, W] or [N, H, W, C] of a command that works."""
    result = generate(network, out, *options, seeds=seeds)
    assert result.exit_code == 0, result.output
    return np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("seed*"))])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def one_line(result, code):
    """The message of a command that failed as it should."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == result.stderr.splitlines()[-1:]
    return errors[0]


def test_pictures_are_those_of_the_network(networks, tmp_path):
    pictures = made(networks["rgb"], tmp_path, seeds="0-2,42")
    assert sorted(contents(tmp_path)) == ["seed0000.png", "seed0001.png", "seed0002.png", "seed0042.png"]
    G, _ = load_network(networks["rgb"])
    with torch.inference_mode():
        expected = to_uint8(G(latents([0, 1, 2, 42], 8), psi=0.7, cutoff=8)).permute(0, 2, 3, 1).numpy()
    assert abs(pictures.astype(int) - expected).max() <= 1
    assert pictures.std() > 10


def test_same_command_gives_the_same_bytes(networks, tmp_path):
    options = ("--noise-mode", "random", "--npz")
    made(networks["rgb"], tmp_path / "a", *options)
    made(networks["rgb"], tmp_path / "b", *options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("noise", ["const", "random"])
def test_batches_agree_within_one_grey_level(networks, tmp_path, noise):
    options = ("--noise-mode", noise)
    one = made(networks["rgb"], tmp_path / "1", "--batch", "1", *options, seeds="0-8").astype(int)
    four = made(networks["rgb"], tmp_path / "4", "--batch", "4", *options, seeds="0-8")
    assert abs(one - four).max() <= 1
    assert len({picture.tobytes() for picture in one}) == 9


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("rgb", (16, 16, 3)),
        ("classes", (16, 16, 3)),
        ("rgba", (32, 16, 4)),
        ("gray", (16, 16)),
        ("progan", (16, 16, 3)),
        ("progan-classes", (16, 16, 3)),
    ],
)
def test_every_kind_of_network(networks, tmp_path, kind, shape):
    assert made(networks[kind], tmp_path).shape == (3, *shape)


def test_truncation_and_noise_modes_matter(networks, tmp_path):
    looks = [[], ["--trunc", "1"], ["--trunc-cutoff", "2"], ["--noise-mode", "none"], ["--noise-mode", "random"]]
    pictures = [made(networks["rgb"], tmp_path / str(i), *options) for i, options in enumerate(looks)]
    assert len({picture.tobytes() for picture in pictures}) == len(looks)
    all_layers = made(networks["rgb"], tmp_path / "all", "--trunc", "0", "--trunc-cutoff", "all")
    assert (all_layers[0] == all_layers[1]).all()  # everything is the mean


def test_growing_network_shows_what_it_is_trained_to(networks, tmp_path):
    G, _ = load_network(networks["growing"])
    with torch.inference_mode():
        expected = to_uint8(G(latents([0, 1, 2], 8), psi=0.7, resolution=16, alpha=0.25)).permute(0, 2, 3, 1)
    assert abs(made(networks["growing"], tmp_path / "a").astype(int) - expected.numpy()).max() <= 1
    assert made(networks["growing"], tmp_path / "b", "--resolution", "8x8").shape == (3, 8, 8, 3)
    above = generate(networks["growing"], tmp_path / "c", "--resolution", "32")
    assert above.exit_code == 0
    assert "trained up to 16x16 so far" in above.stderr
    message = one_line(generate(networks["growing"], tmp_path / "d", "--resolution", "64"), 2)
    assert "64x64 is not a level of this network; it has 4x4, 8x8, 16x16, 32x32" in message


def test_classes(networks, tmp_path):
    network = networks["classes"]
    by_name = made(network, tmp_path / "dog", "--class", "dog")
    index_1 = made(network, tmp_path / "1", "--class", "1")
    assert (by_name != index_1).any()
    assert (made(network, tmp_path / "2", "--class", "2") == index_1).all()  # names come first: "2" is the second
    drawn = generate(network, tmp_path / "drawn", "--npz")
    assert "seed s makes class s mod 3" in drawn.stderr
    saved = np.load(tmp_path / "drawn" / "latents.npz")
    assert saved["classes"].tolist() == [0, 1, 2]
    assert (tmp_path / "drawn" / "seed0002.png").read_bytes() == (tmp_path / "dog" / "seed0002.png").read_bytes()
    G, _ = load_network(network)
    labels = one_hot([0, 1, 2], 3)
    with torch.inference_mode():
        own, w = class_averages(G, labels), G.mapping(latents([0, 1, 2], 8), labels)
        expected = G.truncate(w, 0.7, 8, own), G.truncate(w, 0.7, 8)
    np.testing.assert_allclose(saved["w"], expected[0], rtol=1e-5, atol=1e-6)
    made(network, tmp_path / "all", "--npz", "--trunc-to", "all")
    np.testing.assert_allclose(np.load(tmp_path / "all" / "latents.npz")["w"], expected[1], rtol=1e-5, atol=1e-6)
    assert "it has 0 to 2 or cat, 2, dog" in one_line(generate(network, tmp_path / "x", "--class", "3"), 2)
    assert "this network has no classes" in one_line(generate(networks["rgb"], tmp_path / "x", "--class", "0"), 2)


def test_classes_keep_their_own_averages(networks, tmp_path):
    means = made(networks["classes"], tmp_path, "--seeds", "0-5", "--trunc", "0", "--trunc-cutoff", "all")
    assert (means[:3] == means[3:]).all()
    assert len({mean.tobytes() for mean in means}) == 3
    G, _ = load_network(networks["classes"])
    labels = one_hot([2, 0, 2], 3)
    with torch.inference_mode():
        z = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
        expected = torch.stack([G.mapping(z, label.expand(20_000, -1))[:, 0].mean(0) for label in labels])
    np.testing.assert_allclose(class_averages(G, labels), expected, atol=0.05 * float(expected.std()))
    assert class_averages(G, labels[:0]).shape == (0, 8)


def test_saved_latents(networks, tmp_path):
    made(networks["rgb"], tmp_path, "--npz", "--batch", "2")
    saved = np.load(tmp_path / "latents.npz")
    assert saved["seeds"].tolist() == [0, 1, 2]
    assert np.array_equal(saved["z"], latents([0, 1, 2], 8).numpy())
    assert saved["w"].shape == (3, 6, 8)
    made(networks["progan"], tmp_path / "progan", "--npz")
    assert set(np.load(tmp_path / "progan" / "latents.npz")) == {"seeds", "z", "network"}


@pytest.mark.parametrize("kind", ["rgb", "classes", "progan-classes"])
def test_latents_files_are_seeds(networks, tmp_path, kind):
    pictures = made(networks[kind], tmp_path / "a", "--npz", "--batch", "1")
    again = made(networks[kind], tmp_path / "b", "--batch", "1", seeds=tmp_path / "a" / "latents.npz")
    assert (again == pictures).all()
    bare = {"w": np.load(tmp_path / "a" / "latents.npz").get("w"), "z": latents([0, 1, 2], 8).numpy()}
    if kind == "rgb":  # a w for all layers; pictures without a seed
        np.savez(tmp_path / "w.npz", w=bare["w"][:, 0])
        result = generate(networks[kind], tmp_path / "c", seeds=tmp_path / "w.npz")
        assert result.exit_code == 0
        assert result.stderr == ""
        said = generate(networks[kind], tmp_path / "c", "--trunc", "0.5", seeds=tmp_path / "w.npz").stderr
        assert "--trunc means nothing to the w of" in said
        assert sorted(contents(tmp_path / "c")) == ["latent0000.png", "latent0001.png", "latent0002.png"]
    np.savez(tmp_path / "z.npz", z=bare["z"])
    options = [] if kind == "rgb" else ["--class", "1"]
    assert generate(networks[kind], tmp_path / "d", *options, seeds=tmp_path / "z.npz").exit_code == 0
    from_z = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "d").iterdir())])
    assert abs(from_z.astype(int) - made(networks[kind], tmp_path / "e", *options)).max() <= 1


def test_latents_files_that_do_not_fit(networks, tmp_path):
    def fails(message, code=1, kind="rgb", **arrays):
        np.savez(tmp_path / "bad.npz", **arrays)
        assert message in one_line(generate(networks[kind], tmp_path / "x", seeds=tmp_path / "bad.npz"), code)
        assert not (tmp_path / "x").exists()

    good = np.zeros((2, 6, 8), np.float32)
    fails("its w is 2x5x8; this network takes 2x6x8", w=good[:, :5])
    fails("its z is 2x7; this network takes 2x8", z=np.zeros((2, 7)))
    fails("its seeds is 3; this network takes 2", w=good, seeds=np.arange(3))
    fails("values that are not finite", w=good + np.nan)
    fails("must be float32, not <U1", w=np.full((2, 6, 8), "a"))
    fails("holds neither z nor w", seeds=np.arange(3))
    fails("latents of another network, 0123", w=good, network="0123456789abcdef")
    fails("no class 3", kind="classes", z=np.zeros((1, 8)), classes=np.array([3]))
    fails("is not an .npz of latents", w=np.array([None]))
    (tmp_path / "text.npz").write_text("no archive")
    message = one_line(generate(networks["rgb"], tmp_path / "x", seeds=tmp_path / "text.npz"), 1)
    assert "is not an .npz of latents, as `stylegen generate --npz` writes it" in message
    assert "there is no file" in one_line(generate(networks["rgb"], tmp_path / "x", seeds=tmp_path / "none.npz"), 2)


def test_grid(networks, tmp_path):
    result = generate(networks["rgba"], tmp_path, "--grid", "2x2", "--format", "webp")
    assert result.exit_code == 0
    assert list(contents(tmp_path)) == ["grid.webp"]
    sheet = np.asarray(Image.open(tmp_path / "grid.webp"))
    assert sheet.shape == (64, 32, 4)
    single = made(networks["rgba"], tmp_path / "single")
    assert (sheet[:32, 16:] == single[1]).all()
    assert (sheet[32:, :16] == single[2]).all()
    assert (sheet[32:, 16:, 3] == 0).all()
    assert "--grid 2x1 has no room for 3 seeds" in one_line(generate(networks["rgb"], tmp_path, "--grid", "2x1"), 2)
    assert "268,435,456 pixels" in one_line(generate(networks["rgb"], tmp_path, "--grid", "99999x99999"), 2)


def test_jpeg(networks, tmp_path):
    assert made(networks["gray"], tmp_path / "gray", "--format", "jpg").shape == (3, 16, 16)
    message = one_line(generate(networks["rgba"], tmp_path / "rgba", "--format", "jpg"), 2)
    assert "JPEG has no transparency" in message
    assert not (tmp_path / "rgba").exists()


def test_progan_says_what_it_ignores(networks, tmp_path):
    result = generate(networks["progan"], tmp_path, "--trunc", "0.5", "--noise-mode", "none")
    assert "Note: --trunc, --noise-mode means nothing to a progan network." in result.stderr
    assert "Note" not in generate(networks["progan"], tmp_path).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "7-0"], "runs backwards; write 0-7"),
        (["--seeds", "a"], "write them as 0-7,42"),
        (["--grid", "4"], "is not COLUMNSxROWS, such as 4x2"),
        (["--grid", "0x3"], "is not COLUMNSxROWS"),
        (["--resolution", "big"], "is not WIDTHxHEIGHT"),
        (["--trunc-cutoff", "-1"], "neither a number of layers"),
        (["--trunc", "much"], "not a valid float"),
        (["--trunc", "nan"], "no finite number"),
        (["--batch", "0"], "not in the range"),
        (["--format", "gif"], "not one of"),
        (["--grid", "2000x1", "--format", "webp"], "too large for WEBP"),
    ],
)
def test_wrong_options(networks, tmp_path, options, message):
    assert message in one_line(generate(networks["rgb"], tmp_path / "x", *options), 2)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_missing_device(networks, tmp_path):
    result = run("generate", "--network", networks["rgb"], "--seeds", 1, "--out", tmp_path, "--device", "cuda")
    assert "--device cuda" in one_line(result, 2)


def test_broken_networks(networks, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(networks["rgb"].read_bytes()[:-1])
    for command in (lambda name: generate(name, tmp_path / "x"), lambda name: run("info", name)):
        assert "cut short" in one_line(command(cut), 1)
        assert "neither a file" in one_line(command("no-such-network"), 2)
        assert "holds no network-*.safetensors" in one_line(command(tmp_path), 1)
    assert "Not a directory" in one_line(generate(networks["rgb"], cut / "below a file"), 1)


def test_info(networks, tmp_path):
    text = run("info", networks["classes"]).output
    for line in ("family      stylegan", "pictures    16x16, RGB", "classes     cat, 2, dog"):
        assert line in text.splitlines()
    facts = json.loads(run("info", networks["rgb"], "--json").output)
    G, _ = load_network(networks["rgb"])
    assert facts["parameters"] == sum(parameter.numel() for parameter in G.parameters())
    assert facts["widths"] == {"4x4": 32, "8x8": 16, "16x16": 8}
    assert facts["bytes"] == networks["rgb"].stat().st_size
    assert facts["provenance"] == KINDS["rgb"][1]
    assert GeneratorConfig(**{key: v if not isinstance(v, list) else tuple(v) for key, v in facts["config"].items()})


def test_info_of_a_run(networks, tmp_path):
    g = GeneratorConfig(**GENERATOR)
    config = Config(
        preset="mine",
        generator=g,
        discriminator=DiscriminatorConfig(levels=3, fmap_base=32),
        schedule=ScheduleConfig(initial_level=0, hold_kimg=10, fade_kimg=10, total_kimg=90),
        loss=LossConfig(),
        optimizer=OptimizerConfig(),
    )
    state = fresh(config, torch.device("cpu"))
    state.images_seen = 15_000
    state.save(tmp_path / "state.ckpt")
    alone = run("info", tmp_path)  # before its first network
    assert alone.output.splitlines()[-1] == "run    15 of 90 kimg in fp32, at 8x8, 50% faded in"
    (tmp_path / "network-000015.safetensors").write_bytes(networks["rgb"].read_bytes())
    facts = json.loads(run("info", tmp_path, "--json").output)
    assert facts["run"]["kimg"] == 15
    assert facts["file"].endswith("network-000015.safetensors")
    message = one_line(run("info", tmp_path / "state.ckpt"), 1)
    assert "holds 'stylegen-state', not a network; give a network-*.safetensors file or a run folder" in message


def test_official_parameter_count(tmp_path):
    assert sum(p.numel() for p in outline(tmp_path, GeneratorConfig()).parameters()) == 26_219_627


def test_real_command(networks, tmp_path):
    command = [sys.executable, "-m", "stylegen.tools.cli", "generate", "--network", networks["rgb"], "--seeds", "1,5"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"Wrote 2 pictures of 16x16 to {tmp_path} in ")
    failed = subprocess.run([*command, "--out", networks["rgb"] / "below"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "Traceback" not in failed.stderr

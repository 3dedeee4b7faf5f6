"""Networks agree with the official StyleGAN1 and ProGAN code, at every level and fade that the goldens hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stylegen import legacy
from stylegen.errors import UserError
from stylegen.networks.layers import upscale

GOLDEN = Path(__file__).parent / "golden"
STYLEGAN_IMAGE = {"rtol": 0, "atol": 2e-4}  # instance norm amplifies rounding
EXACT = {"rtol": 1e-4, "atol": 1e-5}


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    kwargs = json.loads(str(arrays.pop("meta")))["kwargs"]
    return arrays, kwargs, {key[4:]: value for key, value in arrays.items() if key.startswith("var/")}


def outputs(arrays, prefix):
    rows = [(key[len(prefix) :], value) for key, value in arrays.items() if key.startswith(prefix)]
    assert rows
    return rows


def enlarge(images, size):
    while images.shape[-1] < size:
        images = upscale(images)
    return images


@pytest.mark.parametrize("name", ["sg1_g32", "sg1_g32_label", "sg1_g128_fused"])
def test_stylegan_generator(name):
    arrays, kwargs, variables = load(name)
    network = legacy.from_variables("stylegan.G", variables, kwargs)
    z, labels = torch.from_numpy(arrays["in/z"]), torch.from_numpy(arrays["in/labels"])
    with torch.no_grad():
        np.testing.assert_allclose(network.mapping(z, labels).numpy(), arrays["out/w"], **EXACT)
        for key, expected in outputs(arrays, "out/img/lod"):
            lod, truncation = key.split("/")
            psi, _, cutoff = truncation.removeprefix("psi").partition("_cutoff")
            resolution, alpha = legacy.stage_of_lod(float(lod), kwargs["resolution"])
            n = len(expected)
            images = network(
                z[:n],
                labels[:n],
                resolution=resolution,
                alpha=alpha,
                psi=float(psi),
                cutoff=int(cutoff) if cutoff else None,
            )
            assert images.shape[-1] == resolution
            np.testing.assert_allclose(
                enlarge(images, kwargs["resolution"]).numpy(), expected, err_msg=key, **STYLEGAN_IMAGE
            )


@pytest.mark.parametrize("name", ["pg_g32", "pg_g32_label10"])
def test_progan_generator(name):
    arrays, kwargs, variables = load(name)
    network = legacy.from_variables("progan.G", variables, kwargs)
    z, labels = torch.from_numpy(arrays["in/z"]), torch.from_numpy(arrays["in/labels"])
    for lod, expected in outputs(arrays, "out/img/lod"):
        resolution, alpha = legacy.stage_of_lod(float(lod), kwargs["resolution"])
        with torch.no_grad():
            images = network(z, labels, resolution=resolution, alpha=alpha)
        np.testing.assert_allclose(enlarge(images, kwargs["resolution"]).numpy(), expected, err_msg=lod, **EXACT)


@pytest.mark.parametrize("name", ["sg1_d32", "sg1_d32_label", "sg1_d128_fused", "pg_d32", "pg_d32_label10"])
def test_discriminator(name):
    arrays, kwargs, variables = load(name)
    family = {"sg1": "stylegan", "pg_": "progan"}[name[:3]]
    network = legacy.from_variables(f"{family}.D", variables, kwargs)
    images = torch.from_numpy(arrays["in/images"])
    labels = torch.from_numpy(arrays["in/labels"]) if "in/labels" in arrays else None
    for key, expected in outputs(arrays, "out/"):
        what, lod = key.split("/lod")
        resolution, alpha = legacy.stage_of_lod(float(lod), kwargs["resolution"])
        n = len(expected)
        with torch.no_grad():
            result = network(images[:n], labels if labels is None else labels[:n], resolution=resolution, alpha=alpha)
        if family == "progan":
            result = result[what.startswith("labels")]
        np.testing.assert_allclose(result.numpy(), expected, err_msg=key, **EXACT)


def test_official_layout_round_trip():
    _, kwargs, variables = load("pg_g32_label10")
    network = legacy.from_variables("progan.G", variables, kwargs)
    back = legacy.to_official("progan.G", dict(network.named_parameters()), network.config)
    assert set(back) == set(variables) - {"lod"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, variables[name])


def test_mistakes_are_named():
    _, kwargs, variables = load("sg1_d32_label")
    with pytest.raises(UserError, match="unknown kind 'stylegan3"):
        legacy.from_variables("stylegan3.D", variables, kwargs)
    with pytest.raises(UserError, match="use_wscale=False is not supported"):
        legacy.from_variables("stylegan.D", variables, kwargs | {"use_wscale": False})
    with pytest.raises(UserError, match="FromRGB_lod4/weight' is missing"):
        legacy.from_variables("stylegan.D", variables, kwargs | {"resolution": 64})
    with pytest.raises(UserError, match="has shape"):
        legacy.from_variables("stylegan.D", variables, kwargs | {"fmap_max": 8})


@pytest.fixture(scope="module")
def training_golden():
    with np.load(GOLDEN / "sg1_loss.npz") as file:
        arrays = {key: file[key] for key in file.files}
    kwargs = json.loads(str(arrays["meta"]))["G_kwargs"]
    network = legacy.from_variables("stylegan.G", {k[5:]: v for k, v in arrays.items() if k[:5] == "varG/"}, kwargs)
    return arrays, network


@pytest.mark.parametrize("cutoff", [1, 3])
@pytest.mark.parametrize("lod", ["0", "0.5"])
def test_style_mixing(training_golden, cutoff, lod):
    arrays, network = training_golden
    w1, w2 = (network.mapping(torch.from_numpy(arrays[f"in/{name}"])) for name in ("z", "z2_mixing"))
    resolution, alpha = legacy.stage_of_lod(float(lod), 16)
    with torch.no_grad():
        w = torch.cat([w1[:, :cutoff], w2[:, cutoff:]], 1)
        images = enlarge(network.synthesis(w, resolution=resolution, alpha=alpha), 16)
    np.testing.assert_allclose(images.numpy(), arrays[f"stylemix/cutoff{cutoff}/lod{lod}"], **STYLEGAN_IMAGE)


def test_running_average_of_w(training_golden):
    arrays, network = training_golden
    w_avg = torch.from_numpy(arrays["varG/dlatent_avg"]).clone()
    network.w_avg.copy_(w_avg)
    network.update_w_avg(network.mapping(torch.from_numpy(arrays["in/z"])))
    np.testing.assert_allclose(network.w_avg.numpy(), arrays["after_G_step/lod0/dlatent_avg"], **EXACT)

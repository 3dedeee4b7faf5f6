"""Network files: what is saved comes back, what is broken is named in one line, a full disk harms nothing."""

import json
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from stylegen import assets
from stylegen.checkpoint import load_network, load_tensors, read_metadata, resolve_network, save_network, save_tensors
from stylegen.config import GeneratorConfig, to_dict
from stylegen.errors import UserError
from stylegen.networks import build_generator

SMALL = {"levels": 3, "latent_size": 8, "style_size": 8, "mapping_width": 8, "mapping_layers": 2, "fmap_base": 32}


def network(**options):
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(**(SMALL | options)))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "network-000001.safetensors"
    save_network(path, network(), {"kimg": 1, "resolution": (16, 16), "alpha": 0.5})
    return path


def change(path, **metadata):
    """Rewrites a network file with other metadata; values that are not text become JSON."""
    tensors, before = load_tensors(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_tensors(path, tensors, before | texts)


def config(**changes):
    return to_dict(GeneratorConfig(**SMALL)) | changes


@pytest.mark.parametrize("family", ["stylegan", "progan"])
@pytest.mark.parametrize("options", [{}, {"channels": 4, "base": (4, 8), "label_size": 3}])
def test_network_comes_back(tmp_path, family, options):
    G = network(family=family, **options)
    save_network(tmp_path / "a.safetensors", G, {"seed": 3, "resolution": [8, 8] if not options else [8, 16]})
    back, provenance = load_network(tmp_path / "a.safetensors")
    assert back.config == G.config
    assert not back.training
    assert provenance["seed"] == 3
    assert_same(back.state_dict(), G.state_dict())


def test_tensors_come_back(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    shared = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors |= {"scalar": torch.tensor(7), "empty": torch.empty(0, 3), "bool": torch.tensor([True, False])}
    tensors |= {"strided": shared, "same memory": shared, "transposed": torch.randn(3, 2).t()}
    save_tensors(tmp_path / "a", tensors, {"key": "välue"})
    back, metadata = load_tensors(tmp_path / "a")
    assert_same(back, tensors)
    assert metadata == read_metadata(tmp_path / "a") == {"key": "välue"}
    assert_same(safetensors.torch.load_file(tmp_path / "a"), tensors)


def test_same_content_gives_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2)}
    save_tensors(tmp_path / "1", tensors, {"x": "1", "y": "2"})
    save_tensors(tmp_path / "2", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_loaded_tensors_have_memory_of_their_own(tmp_path):
    save_tensors(tmp_path / "a", {"x": torch.ones(1000)}, {})
    x = load_tensors(tmp_path / "a")[0]["x"]
    with open(tmp_path / "a", "r+b") as file:  # in place, unlike our own writing
        file.truncate(16)
    assert x.sum() == 1000
    x.zero_()


def test_every_cut_is_noticed(saved):
    data = saved.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        saved.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"is empty|cut short|not a safetensors file") as error:
            load_network(saved)
        assert str(saved) in str(error.value)
    for size in (100, len(data) - 1):
        saved.write_bytes(data[:size])
        with pytest.raises(UserError, match="cut short"):
            read_metadata(saved)


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


@pytest.mark.parametrize("form", ["pickle", "torch", "old torch"])
def test_pickles_are_refused_unread(tmp_path, capfd, form):
    path = tmp_path / "network.pkl"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"G": Bomb()}))
    else:
        torch.save({"G": Bomb()}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(UserError, match=r"is a pickle, which could run code; stylegen reads \.safetensors"):
        load_network(path)
    assert "boom" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "junk",
    [
        b"<html>not found</html>",
        (100_005).to_bytes(8, "little") + b'{"a":' + b"[" * 100_000,
        b"\x0a" + b"\0" * 7 + b'{"a":null}',
        b"\x18" + b"\0" * 7 + b'{"__metadata__":{"a":1}}',
        b"\xff" * 7 + b"\0{" + b"x" * 100,
    ],
)
def test_junk(tmp_path, junk):
    (tmp_path / "junk").write_bytes(junk)
    with pytest.raises(UserError, match=r"not a safetensors file|damaged"):
        load_network(tmp_path / "junk")


def test_trailing_bytes(saved):
    saved.write_bytes(saved.read_bytes() + b"more")
    with pytest.raises(UserError, match="damaged"):
        load_network(saved)


def test_another_programs_file(tmp_path):
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(UserError, match="of another program, not a network"):
        load_network(tmp_path / "a")
    save_tensors(tmp_path / "a", {}, {"format": "stylegen-state"})
    with pytest.raises(UserError, match="holds 'stylegen-state', not a network; give a network-"):
        load_network(tmp_path / "a")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "format version 2; this stylegen reads 1"),
        ({"config": "{"}, "metadata cannot be read"),
        ({"config": "[]"}, "must be an object"),
        ({"config": config(depth=3)}, "no field depth"),
        ({"config": config(levels="three")}, "levels is 'three'; expected int"),
        ({"config": config(family="cyclegan")}, "accepted: stylegan, progan"),
        ({"config": config(levels=99)}, "cannot grow"),
        ({"config": config(mapping_layers=10**9)}, "mapping_layers is 1000000000"),
        ({"config": config(fmap_base=10**12, fmap_max=10**12)}, "must be 1 to 65,536"),
        ({"config": config(base=(10**6, 10**6))}, "does not fit its own config"),
        ({"config": config(channels=4)}, "does not fit its own config"),
        ({"config": config(levels=4)}, "does not fit its own config"),
        ({"config": config(levels=2)}, "does not fit its own config"),
        ({"provenance": "[]"}, "provenance is not an object"),
        ({"provenance": {"resolution": 16}}, "resolution 16 is none of its levels"),
        ({"provenance": {"alpha": "x"}}, "alpha is 'x'"),
        ({"provenance": {"class_names": ["a"]}}, "class_names are not 0 names"),
    ],
)
def test_metadata_that_lies(saved, metadata, message):
    change(saved, **({"provenance": {}} | metadata))
    with pytest.raises(UserError, match=message) as error:
        load_network(saved)
    assert "\n" not in str(error.value)


def test_run_folder_means_its_newest_network(tmp_path):
    for name in ("network-000900", "network-001000", "network-000100", ".network-002000.safetensors.1.tmp", "other"):
        (tmp_path / f"{name}.safetensors").touch()
    assert resolve_network(tmp_path).name == "network-001000.safetensors"


def test_unknown_networks(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no network-\*\.safetensors"):
        resolve_network(tmp_path)
    monkeypatch.setattr(assets, "_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"neither a file nor a run folder"):
        resolve_network("birds")
    (tmp_path / "networks").mkdir()
    for name in ("people-64", "fashion-32"):
        (tmp_path / "networks" / f"{name}.safetensors").touch()
    with pytest.raises(UserError, match=r"nor an embedded one \(fashion-32, people-64\)"):
        resolve_network("birds")
    assert resolve_network("people-64") == tmp_path / "networks" / "people-64.safetensors"


def test_unwritable_folder_is_one_clear_line(tmp_path):
    with pytest.raises(OSError, match=r"No such file or directory: .*missing/a'"):
        save_tensors(tmp_path / "missing" / "a", {}, {})


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to stand for a full disk")
def test_full_disk_leaves_the_old_file(saved):
    script = """
import resource, sys, torch
from stylegen.checkpoint import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_tensors(sys.argv[1], {"x": torch.zeros(1_000_000)}, {})
except OSError as error:
    print(error.filename, error.strerror, sep=": ")
"""
    before = saved.read_bytes()
    result = subprocess.run([sys.executable, "-c", script, saved], capture_output=True, text=True, check=True)
    assert result.stdout == f"{saved}: File too large\n"
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
    load_network(saved)

"""`stylegen runs`: how every run below a folder stands."""

import json
import os
import sys

import pytest
from tiny import fake_run, invoke, row

from stylegen.files import exclusive


def listed(folder):
    return {run["name"]: run for run in json.loads(invoke(["runs", str(folder), "--json"]).stdout)}


def test_states(tmp_path):
    fake_run(tmp_path / "stopped", [row(10)], log="Stopped at 10 kimg; --resume goes on.")
    fake_run(tmp_path / "finished", [row(100)], log="Finished at 100 kimg.")
    fake_run(tmp_path / "failed", [row(10)], log="Error: loss/d became non-finite")
    fake_run(tmp_path / "deep" / "er" / "fresh")
    with exclusive(
        fake_run(tmp_path / "running", [row(k, images_per_sec=r) for k, r in ((8, 1), (9, 500), (10, 500))])
    ):
        found = listed(tmp_path)
        lines = invoke(["runs", str(tmp_path)]).stdout.splitlines()
    states = {name: run["state"] for name, run in found.items()}
    names = {"stopped", "finished", "failed", "running"}
    assert states == {name: name for name in names} | {"deep/er/fresh": "stopped"}
    assert found["failed"]["error"] == "loss/d became non-finite"
    running = found["running"]
    assert (running["kimg"], running["total_kimg"], running["preset"]) == (10, 100, "small-32")
    assert (running["resolution"], running["alpha"], running["health"]) == ("16x16", 0.25, "ok")
    assert (running["images_per_sec"], running["eta_sec"]) == (500, 180)
    assert (found["deep/er/fresh"]["kimg"], found["deep/er/fresh"]["images_per_sec"]) == (0, None)
    line = next(line for line in lines if line.startswith("running"))
    for text in ("10 of 100", "16x16, 25% faded in", "500", "3 min", "small-32", "ok"):
        assert f"  {text}" in line
    assert len(lines) == 6


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="Linux")
def test_the_lock_is_not_touched(tmp_path, monkeypatch):
    fake_run(tmp_path / "a", [row(10)])
    monkeypatch.setattr("fcntl.flock", None)
    assert listed(tmp_path)["a"]["state"] == "stopped"


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_without_proc_the_lock_is_asked(tmp_path, monkeypatch):
    from stylegen.tools import run_folder

    class Elsewhere(type(tmp_path)):
        def exists(self):
            return str(self) != "/proc/locks" and super().exists()

    monkeypatch.setattr(run_folder, "Path", Elsewhere)
    assert not run_folder.is_locked(tmp_path)
    with exclusive(tmp_path):
        assert run_folder.is_locked(tmp_path)


def test_the_last_changed_comes_first(tmp_path):
    for age, name in ((30, "b"), (7200, "c"), (10, "a")):
        run = fake_run(tmp_path / name, [row(10)])
        (run / "report.html").write_text("made now, which is no change of the run")
        for file in ("config.json", "log.txt", "stats.jsonl"):
            changed = (run / file).stat().st_mtime - age
            os.utime(run / file, (changed, changed))
    assert list(listed(tmp_path)) == ["a", "b", "c"]
    assert "  2 h ago  " in invoke(["runs", str(tmp_path)]).stdout.splitlines()[3]


def test_alarms_and_data_are_told(tmp_path):
    run = fake_run(tmp_path / "a", [row(10)])
    alarms = [
        {"kimg": k, "images_seen": 0, "kind": kind, "sentence": "Oh."} for k, kind in ((3, "x"), (7.5, "collapse"))
    ]
    (run / "alarms.jsonl").write_text("\n".join(map(json.dumps, alarms)) + '\n{"kimg": 9, "ki')
    (run / "data.json").write_text('{"name": "faces.zip"}')
    found = listed(tmp_path)["a"]
    assert (found["health"], found["alarm"], found["data"]) == ("collapse at 7.5 kimg", "Oh.", "faces.zip")


def test_a_broken_run_is_a_row(tmp_path):
    fake_run(tmp_path / "good", [row(10)])
    (fake_run(tmp_path / "bad", [row(10)]) / "config.json").write_text('{"preset": "sm')
    found = listed(tmp_path)
    assert (found["good"]["state"], found["bad"]["state"]) == ("stopped", "broken")
    assert "config.json cannot be read" in invoke(["runs", str(tmp_path)]).stdout


def test_links_in_a_circle(tmp_path):
    run = fake_run(tmp_path / "z", [row(10)])
    (tmp_path / "a").symlink_to(run)
    (run / "up").symlink_to(tmp_path)
    other = fake_run(tmp_path.parent / f"{tmp_path.name}-other" / "b", [row(10)])
    (tmp_path / "away").symlink_to(other.parent)
    assert set(listed(tmp_path)) == {"z", "away/b"}
    assert set(listed(run)) == {"z", "up/away/b"}


def test_no_run_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "no run below" in invoke(["runs", str(tmp_path)], 1).stderr
    assert "no folder at" in invoke(["runs", str(tmp_path / "nothing")], 2).stderr

"""The group: quick help, examples everywhere, one line for every mistake."""

import errno
import re
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from stylegen import __version__
from stylegen.errors import UserError
from stylegen.tools.cli import COMMANDS, cli

PROGRAM = [sys.executable, "-m", "stylegen.tools.cli"]
HEAVY = ("torch", "numpy", "PIL", "safetensors")


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command line that takes --help: the group, its commands and their subcommands."""
    yield path
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    """Runs a command that raises `error`."""

    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "broken_command", types.SimpleNamespace(broken=broken))
    monkeypatch.setitem(COMMANDS, "broken", ("broken_command", ""))
    return CliRunner().invoke(cli, ["broken"])


def test_help_is_instant() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*PROGRAM, "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3, seconds


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help_shows_examples_and_imports_nothing_heavy(path: tuple[str, ...]) -> None:
    script = f"""if True:
        import sys
        from stylegen.tools.cli import cli
        cli([*{path!r}, "--help"], standalone_mode=False)
        print("heavy:", [name for name in {HEAVY} if name in sys.modules])
        print("commands:", [name for name in {list(COMMANDS)} if "stylegen.tools." + name in sys.modules])
    """
    text = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "Examples:\n" in text
    assert f"  stylegen {' '.join(path)}".rstrip() in text, "examples are whole command lines"
    assert "heavy: []" in text
    assert f"commands: {list(path[:1])}" in text


def documented() -> list[str]:
    """The stylegen command lines in every help text, in the README and in docs/."""
    root = Path(__file__).parents[1]
    helps = [CliRunner().invoke(cli, [*path, "--help"]).stdout for path in commands()]
    fences = [
        block
        for page in [root / "README.md", *(root / "docs").rglob("*.md")]
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]
    text = "\n".join([*(text.partition("Examples:")[2] for text in helps), *fences])
    lines = re.split(r"\n|&&", re.sub(r"\\\n\s*", "", text))
    return sorted({line.strip() for line in lines if re.match(r"\s*(\.venv/bin/)?stylegen [a-z]", line)})


@pytest.mark.parametrize("line", documented())
def test_documented_commands_parse(line: str) -> None:
    command: click.Command | None = cli
    arguments = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), arguments.pop(0))
    assert command
    command.make_context("stylegen", arguments)


def test_group_help_lists_every_command() -> None:
    text = CliRunner().invoke(cli, ["--help"]).stdout
    for name, (_, line) in COMMANDS.items():
        assert f"  {name} " in text
        assert line in text


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"stylegen, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no such command 'trian'; did you mean train?"),
        (["qqq"], f"no such command 'qqq'; the commands are {', '.join(COMMANDS)}"),
        (["--bogus"], "--bogus"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("size is 7;\n accepted: 8 and more"), "size is 7; accepted: 8 and more"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/state.ckpt"),
            "runs/state.ckpt: No space left on device",
        ),
        (OSError("cannot identify image file"), "cannot identify image file"),
    ],
)
def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    result = fail_with(monkeypatch, error)
    assert (result.exit_code, result.stderr) == (1, f"Error: {line}\n")
    monkeypatch.setenv("STYLEGEN_DEBUG", "1")
    assert fail_with(monkeypatch, error).exception is error


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    result = fail_with(monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    error = AssertionError("invariant")
    assert fail_with(monkeypatch, error).exception is error


def test_a_closed_pipe_is_quiet() -> None:
    with subprocess.Popen([*PROGRAM, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""

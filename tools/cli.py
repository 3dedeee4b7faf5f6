"""The command line's group. Commands load when they are called, so `stylegen --help` imports none of them."""

import difflib
import importlib
import os
import warnings

import click

from stylegen import __version__
from stylegen.errors import UsageError, UserError
from stylegen.memory import keep_freed
from stylegen.openmp import spin_briefly

from .options import ARGUMENTS

# Command -> (module, which defines a click command of that name; the line that `stylegen --help` shows).
COMMANDS = {
    "dataset": ("stylegen.tools.dataset", "Build, show and check data sets."),
    "train": ("stylegen.tools.train", "Train a generator, or go on with a run."),
    "generate": ("stylegen.tools.generate", "Make pictures from seeds."),
    "mix": ("stylegen.tools.mix", "Give pictures some styles of others."),
    "interpolate": ("stylegen.tools.interpolate", "Go from picture to picture: videos."),
    "project": ("stylegen.tools.project", "Find the latents of a picture."),
    "directions": ("stylegen.tools.directions", "Find directions that change pictures in one way."),
    "edit": ("stylegen.tools.edit", "Move pictures along directions; calculate with latents."),
    "blend": ("stylegen.tools.blend", "Make a network of two related ones."),
    "sample": ("stylegen.tools.sample", "Make a data set of generated pictures."),
    "score": ("stylegen.tools.score", "Rank pictures by how real a discriminator finds them."),
    "metrics": ("stylegen.tools.metrics", "Measure pictures against real ones: FID, KID, precision, recall."),
    "report": ("stylegen.tools.report", "Make a page of a run: curves, pictures, alarms, data, settings."),
    "runs": ("stylegen.tools.runs", "List runs and how they stand."),
    "plot": ("stylegen.tools.plot", "Draw the curves of a run."),
    "bench": ("stylegen.tools.bench", "Measure the speed of this machine against plain PyTorch."),
    "info": ("stylegen.tools.info", "Tell what a network is: configuration, sizes, provenance."),
    "doctor": ("stylegen.tools.doctor", "Tell what is installed, and try every operator."),
}


class LazyGroup(click.Group):
    """A group over COMMANDS whose errors are one line: the user's mistakes exit 1, wrong usage 2, Ctrl-C 130."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS)
            hint = f"did you mean {' or '.join(close)}?" if close else f"the commands are {', '.join(COMMANDS)}"
            ctx.fail(f"no such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(130) from None
        except BrokenPipeError:
            raise  # click leaves quietly
        except (UserError, OSError) as error:
            if os.environ.get("STYLEGEN_DEBUG") == "1":
                raise
            kind = click.UsageError if isinstance(error, UsageError) else click.ClickException
            raise kind(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        remedy = "; a folder must go there" if isinstance(error, FileExistsError | NotADirectoryError) else ""
        return f"{error.filename}: {error.strerror}{remedy}"
    return " ".join(str(error).split()) or type(error).__name__


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="stylegen")
def cli() -> None:
    """Train StyleGAN and ProGAN generators on your own pictures, and make pictures with them.

    \b
    Examples:
      stylegen dataset build photos/ --dest faces.zip --size 256
      stylegen train faces.zip --out runs/faces --preset small-64
      stylegen train faces.zip --out runs/faces --resume
      stylegen generate --network runs/faces --seeds 0-31 --grid 8x4 --out samples
      stylegen info runs/faces

    `stylegen COMMAND --help` has each command's options and more examples.
    """


def main() -> None:
    """The `stylegen` entry point."""
    keep_freed()
    spin_briefly()
    warnings.formatwarning = lambda message, *_: f"Warning: {message}\n"  # without Python's file and line
    cli(prog_name="stylegen")


if __name__ == "__main__":
    main()

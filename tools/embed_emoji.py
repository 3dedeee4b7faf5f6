"""Rebuilds the embedded data set stylegen/assets/emoji-people-64.zip from its origin in the npm registry (needs npm).

The people are the emoji of four subgroups of Unicode's emoji list: person, person-gesture, person-role and
person-fantasy, in every skin tone that the package draws: 997 pictures. Which code points belong to a subgroup is
looked up in emojibase-data.
"""

import io
import json
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import click

from stylegen import assets
from stylegen.files import atomic_path

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
SUBGROUP_TABLE = "emojibase-data@17.0.0"
SUBGROUPS = ("person", "person-gesture", "person-role", "person-fantasy")
COUNT = 997
SIZE = 64


def fetch(package: str, folder: str) -> dict[str, bytes]:
    """The files of an npm package: path inside it -> contents. Its archive is left in `folder`."""
    command = ["npm", "pack", package, "--silent", "--pack-destination", folder]
    name = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
    with tarfile.open(Path(folder, name)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name.removeprefix("package/"): file.read() for name, file in files.items() if file}


def key(hexcode: str) -> tuple[str, ...]:
    """Code points without the variation selector, which file names have or lack at will."""
    return tuple(point for point in hexcode.lower().split("-") if point != "fe0f")


def people(emoji: list[dict[str, Any]], subgroups: dict[str, str]) -> set[tuple[str, ...]]:
    """Keys of every emoji, skin tones included, in SUBGROUPS."""
    wanted = [entry for entry in emoji if subgroups.get(str(entry.get("subgroup"))) in SUBGROUPS]
    return {key(variant["hexcode"]) for entry in wanted for variant in [entry, *entry.get("skins", [])]}


def shrink(webp: bytes) -> bytes:
    """The picture on white, averaged down to SIZE, as PNG; averaging after compositing respects alpha."""
    from PIL import Image

    picture = Image.open(io.BytesIO(webp)).convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    side = min(picture.size)  # one of them has eight empty rows more than it should
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.convert("RGB").crop((left, top, left + side, top + side)).reduce(side // SIZE)
    assert picture.size == (SIZE, SIZE), picture.size
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    return png.getvalue()


def download() -> tuple[dict[str, bytes], list[dict[str, Any]], dict[str, str]]:
    """The pictures, file name -> contents; emojibase's list of emoji; names of its subgroups by their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        table, files = fetch(SUBGROUP_TABLE, folder), fetch(PICTURES, folder)
    pictures = {name: data for name, data in sorted(files.items()) if name.startswith("assets/")}
    return pictures, json.loads(table["en/data.json"]), json.loads(table["meta/groups.json"])["subgroups"]


def write_archive(path: Path, pictures: list[bytes], comment: str) -> None:
    """NVIDIA's data set format without labels; fixed dates, so that the same pictures give the same bytes."""
    entries = {f"{i // 1000:05d}/img{i:08d}.png": data for i, data in enumerate(pictures)}
    entries["dataset.json"] = b'{"labels": null}'
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.comment = comment.encode()
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data)


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False), required=False)
def embed_emoji(out: Path | None) -> None:
    """Rebuild the embedded data set of emoji people (to OUT; by default where the package keeps it).

    \b
    Examples:
      python -m stylegen.tools.embed_emoji
      python -m stylegen.tools.embed_emoji people.zip
    """
    from tqdm import tqdm

    folder = Path(assets.__file__).parent
    out = out or folder / "emoji-people-64.zip"
    files, emoji, subgroups = download()
    wanted = people(emoji, subgroups)
    chosen = [name for name in files if key(Path(name).stem) in wanted]
    assert len(chosen) == COUNT, f"{len(chosen)} people in {PICTURES}, expected {COUNT}"
    pictures = [shrink(files[name]) for name in tqdm(chosen, desc="people", unit="img")]
    write_archive(out, pictures, (folder / "emoji-people-64.txt").read_text(encoding="utf-8"))
    click.echo(f"{out}: {COUNT} pictures, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    embed_emoji()

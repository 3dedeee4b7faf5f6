"""Emoji data sets at 64x64 for experiments with pictures that a network has not seen. Needs npm.

people-rest.zip: the data set emoji-people-64 without sixteen people, drawn among those that come in six skins.
people-held-out.zip: the sixteen, one after the other, six skins each.
people-few.zip, people-others.zip: all people again, 200 that were drawn among them and the others.
other-emoji.zip: all emoji but people and parts of them: faces, animals, food, places, things and signs.
noise.zip: as many pictures as are held out, every pixel by itself.
"""

import random
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from stylegen.tools.embed_emoji import SIZE, SUBGROUPS, download, key, shrink, write_archive
from stylegen.training import png

HELD_OUT, SKINS, FEW = 16, 6, 200
PEOPLE = 1  # the group of people and parts of them in Unicode's list


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    files, emoji, subgroups = download()
    by_key = {key(Path(name).stem): name for name in files}
    people: dict[str, list[str]] = {}
    others = []
    for entry in emoji:
        variants = [key(variant["hexcode"]) for variant in [entry, *entry.get("skins", [])]]
        names = [by_key[found] for found in variants if found in by_key]
        if subgroups.get(str(entry.get("subgroup"))) in SUBGROUPS:
            people[entry["label"]] = names
        elif entry.get("group", PEOPLE) != PEOPLE:
            others += names
    full = sorted(label for label, names in people.items() if len(names) == SKINS)
    held = sorted(random.Random(0).sample(full, HELD_OUT))
    click.echo(f"held out: {', '.join(held)}")
    sets = {
        "people-rest": sorted(name for label, names in people.items() if label not in held for name in names),
        "people-held-out": [name for label in held for name in sorted(people[label])],
        "other-emoji": sorted(others),
    }
    everyone = [*sets["people-rest"], *sets["people-held-out"]]
    random.Random(0).shuffle(everyone)
    sets |= {"people-few": everyone[:FEW], "people-others": everyone[FEW:]}
    folder.mkdir(parents=True, exist_ok=True)
    for title, names in sets.items():
        pictures = [shrink(files[name]) for name in tqdm(names, desc=title, unit="img")]
        write_archive(folder / f"{title}.zip", pictures, f"{len(names)} Fluent Emoji (Microsoft, MIT), on white")
    drawn = np.random.RandomState(0).randint(0, 256, (HELD_OUT * SKINS, SIZE, SIZE, 3), np.uint8)
    write_archive(folder / "noise.zip", [png.encode(pixels) for pixels in drawn], "noise")


if __name__ == "__main__":
    main()

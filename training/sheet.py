"""What a data set is, as a run keeps it beside its statistics."""

from typing import Any

import numpy as np

from .dataset import Dataset


def data_sheet(dataset: Dataset) -> dict[str, Any]:
    """The facts of a data set as JSON can hold them; decodes no picture.

    name (of the file or folder), digest, pictures, size and full_size [height, width] in pixels, channels, label_size,
    label_kind ("none", "classes" or "vectors"). Classes also have classes, [name, pictures] each, and unbalanced, how
    many times as large the largest is as the smallest that has any.
    """
    facts: dict[str, Any] = {
        "name": dataset.path.name,
        "digest": dataset.digest,
        "pictures": len(dataset),
        "size": list(dataset.size),
        "full_size": list(dataset.full_size),
        "channels": dataset.channels,
        "label_size": dataset.label_size,
        "label_kind": "none" if dataset.labels is None else "vectors" if dataset.labels.ndim == 2 else "classes",
    }
    if dataset.labels is not None and dataset.labels.ndim == 1:
        counts = np.bincount(dataset.labels, minlength=dataset.label_size).tolist()
        names = [*(dataset.class_names or []), *map(str, range(len(dataset.class_names or []), len(counts)))]
        facts["classes"] = [list(pair) for pair in zip(names, counts, strict=True)]
        facts["unbalanced"] = round(max(counts) / min(filter(None, counts)), 3)
    return facts

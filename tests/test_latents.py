"""Seeds mean what they mean in the official tools."""

import numpy as np
import pytest
import torch

from stylegen.errors import UserError
from stylegen.latents import latents, one_hot, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("5", [5]),
        ("0-3,42", [0, 1, 2, 3, 42]),
        ("42,0-1", [42, 0, 1]),
        (" 1 - 3 , 9 ", [1, 2, 3, 9]),
        ("3,1-4,3", [3, 1, 2, 4]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a number or a range"),
        ("1,,2", "'' is not a number"),
        ("-1", "'-1' is not a number"),
        ("1-2-3", "write them as 0-7,42"),
        ("1.5", "write them as 0-7,42"),
        ("7-0", "runs backwards; write 0-7"),
        ("4294967296", "seeds are 0 to 4294967295"),
        ("0-4294967295", "more than 1,000,000"),
        ("0-999999,2000000", "more than 1,000,000"),
    ],
)
def test_bad_seeds(text, message):
    with pytest.raises(UserError, match=message):
        parse_seeds(text)


def test_latents_are_the_official_ones():
    z = latents([0, 42, 2**32 - 1], 16)
    assert z.dtype == torch.float32
    for row, seed in zip(z, [0, 42, 2**32 - 1], strict=True):
        assert np.array_equal(row[None], np.random.RandomState(seed).randn(1, 16).astype(np.float32))
    assert latents([], 16).shape == (0, 16)


def test_one_hot():
    assert one_hot([2, 0], 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot([], 3).shape == (0, 3)
    for index in (3, -1):
        with pytest.raises(UserError, match="classes are 0 to 2"):
            one_hot([index], 3)

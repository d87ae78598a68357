"""The picture that shows what was done to the pictures."""

import numpy as np
import torch

from fastue.data.preview import preview_grid


def test_preview_shows_noise_around_grey():
    clean = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    protected = clean.clone()
    protected[0, 0, 0, 0], protected[0, 0, 0, 1] = 108, 92
    grid = np.asarray(preview_grid(clean, protected, 8, cell=4))
    left = 4 + 8  # second column: gap, a cell and a gap to its left
    cell = grid[18 : 18 + 4, left : left + 4, 0]
    assert cell[0, 0] == 255 and cell[0, 1] == 1 and cell[2, 2] == 128
    difference = grid[18 : 18 + 4, 4 + 24 : 4 + 28, 0]
    assert difference[0, 0] == difference[0, 1] == 80 and difference[2, 2] == 0

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


def test_a_caption_stands_below_in_lines_that_fit():
    clean = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    plain = np.asarray(preview_grid(clean, clean, 8, cell=64))
    caption = ["visibility: PSNR 33.0 dB", "words " * 40]
    grid = np.asarray(preview_grid(clean, clean, 8, cell=64, caption=caption))
    assert grid.shape[1] == plain.shape[1] and np.array_equal(grid[: len(plain)], plain)
    below = grid[len(plain) :]
    assert len(below) > 3 * 18 and len(below) % 18 == 0
    assert all((below[top : top + 18] < 255).any() for top in range(0, len(below), 18))
    assert (below[:, -4:] == 255).all()

"""Matching gradients: how far the gradient of a loss moves when the input is perturbed.

For each sample by itself, without a gradient of the size of the parameters, or for a whole batch.
docs/MATCHING.md has the formulas.
"""

from fastue.matching.engine import GradientTarget as GradientTarget
from fastue.matching.engine import gradient_match as gradient_match

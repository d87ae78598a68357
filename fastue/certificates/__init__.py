"""Certified learnability: noisy models are counted elsewhere; `bounds` turns the counts into certificates."""

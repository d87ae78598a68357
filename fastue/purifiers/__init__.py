"""Diffusion purifiers: a small denoiser trained on pictures of one's own, and what is sampled with it."""

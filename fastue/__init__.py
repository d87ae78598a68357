"""fastue: make image data sets unlearnable, prove it, and try to break it."""

__version__ = "0.1.0"

"""Training: the paper's runs on any data set, from a recipe file (`run`), or one of them on top of a finished model (`finetune`)."""

STAGES = ("bridging", "denoiser", "alignment")
"""Runs that go on from a finished model on other data."""

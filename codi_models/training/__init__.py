"""The paper's training stages on Bounce World: autoencoders, bridging alignment, one denoiser per modality, latent alignment."""

OWN_STAGES = ("bridging", "denoiser", "alignment")
"""Stages that can be trained on a user's own pairs."""

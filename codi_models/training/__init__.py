"""The paper's training stages on Bounce World: autoencoders, bridging alignment, one denoiser per modality, latent alignment."""

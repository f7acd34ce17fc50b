"""One latent diffusion UNet per modality (paper section 3.2), with its environment encoder and connectors (section 3.4)."""

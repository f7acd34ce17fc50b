"""The only place that knows the host's model classes: patchers, joint MODELs, nested LATENTs, VAE objects."""

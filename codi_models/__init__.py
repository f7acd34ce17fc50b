"""CoDi in PyTorch, free of any host: networks, sampling, training and evaluation."""

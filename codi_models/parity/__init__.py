"""Parity with the published network: its numbers on synthetic weights, compared tensor by tensor (`python -m codi_models parity`)."""

"""Thousands of items from one manifest: resumable, on one machine or on a Ray cluster."""

"""Evaluation of a model on Bounce World: everything is measured on generated output by the world's judge."""

VERSION = 2
"""Of what is asked and how it is read: readings of another version are made again."""

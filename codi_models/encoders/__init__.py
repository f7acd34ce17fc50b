"""Prompt encoders: text, image, video and audio to unit vectors of one shared space (paper section 3.1)."""

DERIVED_KEYS = ("position_ids", "relative_position_index", "attn_mask")
"""Endings of checkpoint keys that hold buffers which follow from the configuration; the encoders compute these and have no such keys."""

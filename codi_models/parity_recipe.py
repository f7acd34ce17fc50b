from .parity.configs import text_unet_config, unet_config  # noqa: F401
from .parity.recipe import fill, parity_weight  # noqa: F401

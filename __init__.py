"""CoDi for ComfyUI: any mix of text, image, audio and video to any of them, jointly."""

from importlib.util import find_spec

# pytest imports this file by itself, and headless use has no host: then there is nothing to register.
if __package__ and find_spec("comfy"):
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

"""The published checkpoint into a model folder: its layout, reading .pth files without running code, writing, downloading."""

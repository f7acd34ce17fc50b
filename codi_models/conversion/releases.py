"""The published files: where they lie, how large they are, and their hashes as the hub states them."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import ENCODERS_FILE, published_file

REPOSITORY = "ZinengTang/CoDi"
COMMIT = "b83a2948adeb9ee4b3dfe7af0cf70877112aa826"
"""Of 24 September 2023, the newest that is known. Files were replaced several times under one name before."""

HALF_FOLDER = "checkpoints_fp16/"
"""Half-precision files have the names of the full-precision ones, which lie at the top."""


@dataclass(frozen=True)
class Release:
    """One published file. `size` in bytes; None, and no hash, where the hub's pages that are known do not state them."""

    path: str
    size: int | None
    sha256: str | None
    about: int = 0  # bytes to reckon with where the size is not known


_VIDEO = published_file("vision_denoiser")
_AUDIO = published_file("audio_denoiser")
_TEXT = published_file("text_denoiser")
RELEASES = {
    release.path: release
    for release in (
        Release(HALF_FOLDER + ENCODERS_FILE, 3017419057, "11f6145ae32743da89cf18e59d77bfc1d4cb9d003ce3f3eba92801e1782631f8"),
        Release(HALF_FOLDER + _TEXT, 4097188355, "daca67a28fa18efdcd60a5a349f652ddf187c0cb1a7d61816f7ed51c2de84ae7"),
        Release(HALF_FOLDER + _AUDIO, 907848517, "ba09402eebf15d39861359b00064c15adca6f2b337c26f1d9a9045b6f270773f"),
        Release(HALF_FOLDER + _VIDEO, None, None, about=3_520_000_000),
        Release(ENCODERS_FILE, 6034016545, "c3b2a9bf9ce30472c7194d52de2dc14fe8e9e68abb365ec67957b3cc16f57591"),
        Release(_TEXT, 12396125125, "cc8968b436a5c40152f51d18ef7d50224b1c3bd5354e9b66695caead6a927648"),
        Release(_AUDIO, 6906944181, "c01e10afc6a823f89e58f56990cb76602dcc1e24eac36ef824b4a9a4db52a6f0"),
        Release(_VIDEO, 11190012683, "4fae8a3068450190a5c7e443ba5c5e8347a3b68bff741fa17f5a89ba0c910dfe"),
    )
}
"""By path in the repository at COMMIT."""


def recognised(name: str, size: int, sha256: str) -> str:
    """A note on a file by its name, size and hash: that it is a published one, or that it seems damaged. Empty for other files."""
    for release in RELEASES.values():
        if release.sha256 == sha256:
            return f"{name} is the published {release.path}"
        if release.size == size and release.path.rpartition("/")[2] == name:
            return (
                f"{name} has the size of the published {release.path}, but another SHA-256 ({sha256}): it seems damaged. Download it again "
                "(`python codi.py download codi`)"
            )
    return ""

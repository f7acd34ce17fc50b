"""A user's own pairs: folders with a manifest, folders of files that share a name, and webdataset tars."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..conditioning import PROMPT_KINDS, Prompt
from ..errors import CoDiError
from ..modalities import MODALITIES

MANIFEST = "manifest.jsonl"
SUFFIXES = {name: row.suffixes for name, row in MODALITIES.items()}
_KIND_OF = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
_CAPTION_FIELDS = ("caption", "text")
LONGEST_TEXT = 1 << 20  # bytes of a caption file
_LARGEST = 1 << 30  # bytes of a medium in a compressed tar


@dataclass(frozen=True)
class Source:
    """Where one medium lies: a file, a member of a tar, or a caption itself."""

    path: Path
    member: str = ""  # of a tar
    text: str | None = None
    place: tuple[int, int] | None = None
    """Offset and bytes of a member that lies in its tar as it is. Others are looked for from the tar's beginning, each time."""

    def __str__(self) -> str:
        return f"{self.path}{'/' + self.member if self.member else ''}"


@dataclass
class Record:
    """One example: what it shows in each kind."""

    name: str
    sources: dict[str, Source] = field(default_factory=dict)

    def read(self, kind: str) -> Prompt:
        """The medium as a prompt: a caption, or a file that `latents.fitted` and `Prompt.read` read. Raises CoDiError naming what cannot be
        read."""
        source = self.sources[kind]
        if source.text is not None:
            return Prompt("text", source.text)
        if not source.member:
            return _prompt(kind, source.path)
        content = _content(source)
        return (
            Prompt("text", _caption_of(content[:LONGEST_TEXT], source)) if kind == "text" else Prompt(kind, _Member(content, str(source)))
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[tarfile.TarFile, bool]]:
    """A tar, and whether its members lie in it as they are, not compressed."""
    try:
        tar, plain = tarfile.open(path, "r:"), True
    except tarfile.ReadError:
        tar, plain = tarfile.open(path), False
    with tar:
        yield tar, plain


def _content(source: Source) -> bytes:
    """Bytes of a member of a tar. Raises CoDiError where they cannot be read."""
    try:
        if source.place:
            offset, size = source.place
            with open(source.path, "rb") as plain:
                plain.seek(offset)
                content = plain.read(size)
            if len(content) < size:
                raise OSError(f"{len(content)} of {size} bytes are there")
            return content
        with tarfile.open(source.path) as tar:
            member = tar.getmember(source.member)
            if member.size > _LARGEST:
                raise CoDiError(f"{source} has {member.size / 1e9:.1f} GB when it is unpacked: give a tar that is not compressed")
            file = tar.extractfile(member)
            if file is None:
                raise CoDiError(f"{source} is no plain file: pack the media themselves, not links to them")
            return file.read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise CoDiError(f"{source} cannot be read ({error}): the tar is damaged or cut off. Pack it again") from error


class _Member(io.BytesIO):
    """A file of a tar, in memory, that errors can name."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _prompt(kind: str, path: Path) -> Prompt:
    if kind != "text":
        return Prompt(kind, path)
    try:
        with open(path, "rb") as file:
            return Prompt("text", _caption_of(file.read(LONGEST_TEXT), path))
    except OSError as error:
        raise CoDiError(f"{path} cannot be read as a caption ({error}): give UTF-8 text") from error


def _caption_of(content: bytes, source: object) -> str:
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CoDiError(f"{source} cannot be read as a caption ({error}): give UTF-8 text") from error
    if not text:
        raise CoDiError(f"{source} is an empty caption: write what the example shows, or remove the file")
    return text


def find_records(data: str | Path) -> list[Record]:
    """The examples of a folder or a tar, in a fixed order: a manifest where there is one, else tars where there are any, else files that
    share a name ("a.png", "a.txt", "a.wav"; or "a_image.png", "a_text.txt", as the command `world` writes them).

    A line of the manifest is an object with any of the fields text, image, audio, video: text is the caption, or a .txt file; the others
    are files, relative to the manifest and below its folder. A field "name" is optional.
    Raises CoDiError where nothing is found, where a line cannot be understood or names a file that is not there."""
    path = Path(data)
    try:
        tar, folder = path.is_file() and tarfile.is_tarfile(path), path.is_dir()
    except OSError:  # a name too long, a folder that may not be looked into
        tar = folder = False
    if tar:
        return _from_tar(path)
    if not folder:
        raise CoDiError(
            f"no data at {str(path)[:300]}: give a folder with {MANIFEST}, with files that share a name or with webdataset tars, or a tar"
        )
    if (path / MANIFEST).is_file():
        found = _from_manifest(path / MANIFEST)
    elif tars := sorted(path.glob("*.tar")):
        found = [record for tar in tars for record in _from_tar(tar)]
    else:
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        found = _grouped((*_split(file.relative_to(path).as_posix()), Source(file)) for file in files)
    if not found:
        raise CoDiError(
            f"{path} holds no examples: give {MANIFEST}, webdataset tars, or files of these kinds that share a name: {_known()}"
        )
    return found


def paired(records: list[Record], kinds: tuple[str, ...] = PROMPT_KINDS, *, least: int = 2) -> list[Record]:
    """Records with at least `least` of the kinds. Raises CoDiError telling what there is instead where none has."""
    good = [r for r in records if sum(k in r.sources for k in kinds) >= least]
    if not good:
        counts = Counter(" + ".join(sorted(r.sources)) or "nothing" for r in records)
        held = ", ".join(f"{n} of {what}" for what, n in counts.most_common(5))
        raise CoDiError(
            f"no example shows {least} or more of {', '.join(kinds)}; there are {held}. Media of one example share a name "
            "up to the first dot (dog.png, dog.txt) or stand in one line of the manifest"
        )
    return good


def _known() -> str:
    return "; ".join(f"{kind} {', '.join(suffixes)}" for kind, suffixes in SUFFIXES.items())


def _split(path: str) -> tuple[str, str]:
    """Name up to the first dot of the file's own name, as webdataset has it, and the last suffix."""
    folder, _, file = path.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}", suffix.rsplit(".", 1)[-1]


def _grouped(found: Iterator[tuple[str, str, Source]]) -> list[Record]:
    """Records from (name, suffix, source), in order of appearance; what has an unknown suffix is left out."""
    records: dict[str, Record] = {}
    for name, suffix, source in found:
        kind = _KIND_OF.get(suffix.lower())
        if kind:
            name = name.removesuffix(f"_{kind}")  # "dog_image.png" goes with "dog.txt", and with "dog_text.txt"
            records.setdefault(name, Record(name)).sources.setdefault(kind, source)
    return list(records.values())


def _from_tar(path: Path) -> list[Record]:
    """Members grouped by name; a .json member may hold the caption."""
    found: list[tuple[str, str, Source]] = []
    try:
        with _opened(path) as (tar, plain):
            for member in tar:
                name, suffix = _split(f"{path.name}/{member.name}")
                if not member.isfile():
                    continue
                if suffix == "json" and (content := tar.extractfile(member)) is not None:
                    caption = _caption(content.read(LONGEST_TEXT))
                    if caption:
                        found.append((name, "txt", Source(path, member.name, caption)))
                else:
                    place = (member.offset_data, member.size) if plain and not member.sparse else None
                    found.append((name, suffix, Source(path, member.name, place=place)))
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise CoDiError(f"{path} cannot be read as a tar ({error}): it is damaged or cut off. Pack it again") from error
    return _grouped(iter(found))


def _caption(content: bytes) -> str:
    try:
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return ""
    values = [data.get(name) for name in _CAPTION_FIELDS] if isinstance(data, dict) else []
    return next((v.strip() for v in values if isinstance(v, str) and v.strip()), "")


def _from_manifest(path: Path) -> list[Record]:
    records = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CoDiError(f"{path} cannot be read ({error}): give UTF-8 text, one JSON object a line") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CoDiError(f"{path}, line {number} is no JSON ({error}): give one object a line") from error
        unknown = sorted(set(data) - {*PROMPT_KINDS, "name"}) if isinstance(data, dict) else []
        if not isinstance(data, dict) or unknown or not all(isinstance(v, str) for v in data.values()):
            what = f"unknown fields {unknown}" if unknown else "no object of texts"
            raise CoDiError(f"{path}, line {number}: {what}; it takes name, {', '.join(PROMPT_KINDS)}, each a text")
        record = Record(data.pop("name", f"line {number}"))
        for kind, value in data.items():
            if value.strip():
                record.sources[kind] = _manifest_source(path, number, kind, value.strip())
        records.append(record)
    return records


def _manifest_source(manifest: Path, number: int, kind: str, value: str) -> Source:
    file = manifest.parent / value
    if kind == "text" and not (value.lower().endswith(".txt") and "\n" not in value and len(value) < 1000 and file.is_file()):
        return Source(manifest, f"line {number}", value)
    inside = not PurePosixPath(value.replace("\\", "/")).is_absolute() and file.resolve().is_relative_to(manifest.parent.resolve())
    if not inside:
        raise CoDiError(f"{manifest}, line {number}: {value} lies outside the manifest's folder; give paths relative to it and below it")
    if not file.is_file():
        raise CoDiError(f"{manifest}, line {number}: there is no file {value} for {kind} in {manifest.parent}")
    return Source(file)

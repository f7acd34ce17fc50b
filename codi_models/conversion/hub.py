"""Files of a Hugging Face hub or a mirror of it over HTTP: resumed by ranges, watched for stalls, stopped at any byte.

The hub's own client is asked for its settings and its cache, which follow the usual environment variables (HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT; proxies and certificates as `requests` reads them). The transfer is made here,
because a button in the graph needs progress and a stop within a file with every version of that client."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CoDiError
from ..files import disk_refuses, unwritable

_BLOCK = 1 << 16  # at most this much of what came before a break is lost
_CONNECT_SECONDS = 10
_TRIES = 6  # in a row without a new byte
_PAUSE_SECONDS = 1.0  # before the second of them; it doubles
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

Count = Callable[[int], None]
"""Called with the number of new bytes; what it raises ends the transfer, of which everything so far is kept."""


class Unavailable(CoDiError):
    """The hub cannot be reached, or does not have what was asked for."""


class Changed(CoDiError):
    """The hub's file is not the expected one."""


class Hub:
    """One endpoint. mirror: its address; None means the hub's, or what HF_ENDPOINT says."""

    def __init__(self, mirror: str | None = None) -> None:
        self.endpoint = (mirror or _setting("ENDPOINT", "HF_ENDPOINT", "https://huggingface.co")).rstrip("/")
        if not self.endpoint.startswith(("https://", "http://")):
            raise CoDiError(f"{self.endpoint!r} is no address of a hub: give one that begins with https://")
        self.own = mirror is None
        self._session: Any = None

    def listing(self, repository: str, revision: str) -> Any:
        """What the hub says of a repository: `sha`, and `siblings` with `rfilename`, `size` and `lfs`. Raises Unavailable."""
        url = f"{self.endpoint}/api/models/{repository}/revision/{revision}"
        try:
            answer = self._get(url, params={"blobs": "true"})
            self._check(answer, f"the list of files of {repository} at {revision!r}")
            return answer.json()
        except CoDiError:
            raise
        except Exception as error:  # whatever the connection or the parser raises
            raise self._unreachable(f"the list of files of {repository} at {revision!r}", error) from error

    def download(self, repository: str, commit: str, path: str, part: Path, size: int | None, count: Count = lambda n: None) -> None:
        """Complete the file `part`, which may hold a beginning from before.

        size: bytes that the file must have; None where nobody knows. Raises Unavailable where the connection does not come back, Changed
        where the hub's file has another size, WriteError where the disk is full."""
        url, what = f"{self.endpoint}/{repository}/resolve/{commit}/{path}", f"{path} of {repository} at {commit[:12]}"
        tries = 0
        total: int | None = size
        while True:
            count(0)  # where a stop is noticed between two tries
            have = _size(part)
            if total is not None and have == total:
                return
            if total is not None and have > total:
                part.unlink()
                continue
            reason: Exception | str
            try:
                headers = {"Range": f"bytes={have}-"} if have else {}
                with self._get(url, headers=headers, stream=True) as answer:
                    if answer.status_code == 416:  # what is there is no beginning of the file
                        part.unlink()
                        reason = "the server has no such range"
                    else:
                        self._check(answer, what)
                        start, total = self._start(answer, have, size, what)
                        self._receive(answer, part, start, count)
                        reason = "the server sent less than it had announced"
                        if total is None or _size(part) == total:
                            return
            except (CoDiError, KeyboardInterrupt):
                raise
            except OSError as error:  # requests' errors are some too, most without a number
                if error.errno is not None and disk_refuses(error):
                    raise unwritable(part, error) from error
                reason = error
            except Exception as error:  # whatever the connection raises
                if not type(error).__module__.startswith(("requests", "urllib3", "http")):
                    raise
                reason = error
            tries = 0 if _size(part) > have else tries + 1
            if tries >= _TRIES:
                raise self._unreachable(what, reason)
            time.sleep(_PAUSE_SECONDS * 2 ** min(tries - 1, 4) if tries else 0)

    def cached(self, repository: str, commit: str, path: str) -> Path | None:
        """The file in the hub client's cache, which is used offline too."""
        try:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(repository, path, revision=commit)
        except Exception:  # no client, or a revision that it takes for none
            return None
        return Path(found) if isinstance(found, str) and Path(found).is_file() else None

    def _start(self, answer: Any, have: int, size: int | None, what: str) -> tuple[int, int | None]:
        """Where an answer's bytes begin, and the length of the whole file."""
        total: int | None = size
        if answer.status_code == 206 and (found := _RANGE.match(answer.headers.get("Content-Range", ""))):
            have, total = int(found[1]), int(found[2])
        else:
            have, length = 0, answer.headers.get("Content-Length")
            total = int(length) if length and not answer.headers.get("Content-Encoding") else size
        if size is not None and total is not None and total != size:
            raise Changed(
                f"{what} has {total} bytes at {self.endpoint}, expected {size}: it was replaced, or the mirror has another file. Give "
                "--revision main to take what is there now, or another --mirror"
            )
        return have, total

    @staticmethod
    def _receive(answer: Any, part: Path, start: int, count: Count) -> None:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("r+b" if part.exists() else "wb") as file:
            file.seek(start)
            file.truncate()
            for block in answer.iter_content(_BLOCK):
                file.write(block)
                count(len(block))

    def _get(self, url: str, **options: Any) -> Any:
        if _setting("HF_HUB_OFFLINE", "HF_HUB_OFFLINE", "") not in (False, "", "0"):
            raise Unavailable("HF_HUB_OFFLINE is set, and the file is not in the cache of the hub's client: unset it to download")
        try:
            import requests
        except ImportError as error:
            raise CoDiError("downloads need the package requests: `pip install requests`") from error
        if self._session is None:
            self._session = requests.Session()
            self._session.headers["Accept-Encoding"] = "identity"
            if self.own and (token := _token()):
                self._session.headers["Authorization"] = f"Bearer {token}"
        wait = float(_setting("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", 10))
        return self._session.get(url, timeout=(_CONNECT_SECONDS, wait), allow_redirects=True, **options)

    def _check(self, answer: Any, what: str) -> None:
        """Raises Unavailable for what trying again does not change, and OSError for what it may."""
        status = answer.status_code
        if status in (401, 403):
            raise Unavailable(f"{self.endpoint} refuses {what} (status {status}): set HF_TOKEN to a token that may read it")
        if status == 404:
            raise Unavailable(f"{self.endpoint} does not have {what}: check --revision and --mirror")
        if status not in (200, 206):
            raise OSError(f"status {status}")

    def _unreachable(self, what: str, reason: Exception | str) -> Unavailable:
        text = (str(reason).strip() or type(reason).__name__).splitlines()[0]
        return Unavailable(
            f"cannot fetch {what} from {self.endpoint} ({text}). Check the connection, HF_ENDPOINT and proxies, or give --mirror; what was "
            "fetched is kept, and the command goes on from there"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _setting(name: str, variable: str, default: Any) -> Any:
    """A setting of the hub's client, or the environment variable where the client is not installed."""
    try:
        from huggingface_hub import constants

        return getattr(constants, name)
    except (ImportError, AttributeError):
        return os.environ.get(variable, default)


def _token() -> str | None:
    try:
        from huggingface_hub import get_token

        return get_token()
    except ImportError:
        return os.environ.get("HF_TOKEN")

"""The streams of tries: each gives what is tried, and a function that tries it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import checkpoints
import files
import graphs
import requests_
import stops
from outcomes import HalfFile, Obscure

Try = tuple[str, Callable[[], Any]]

PARTS: dict[str, Callable[[int], Iterator[Try]]] = {
    "graphs": graphs.tries, "requests": requests_.tries, "files": files.tries, "checkpoints": checkpoints.tries, "stops": stops.tries,
}  # fmt: skip


def outcome(attempt: Callable[[], Any]) -> tuple[str, str]:
    """How a try ended, and what was said."""
    from codi.codi_models.errors import CoDiError

    try:
        attempt()
    except HalfFile as error:
        return "half file", str(error)
    except Obscure as error:
        return "obscure", str(error)
    except CoDiError as error:
        return ("clear" if len(str(error)) > 20 else "obscure"), str(error)
    except MemoryError:
        return "memory", "MemoryError"
    except Exception as error:
        return "obscure", f"{type(error).__name__}: {error}"
    return "sound", ""

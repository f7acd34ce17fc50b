"""The streams of tries: each gives what is tried, and a function that tries it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import checkpoints
import files
import graphs
import requests_
import stops
from outcomes import HalfFile, Obscure, Stopped

Try = tuple[str, Callable[[], Any]]

PARTS: dict[str, Callable[[int], Iterator[Try]]] = {
    "graphs": graphs.tries, "requests": requests_.tries, "files": files.tries, "checkpoints": checkpoints.tries, "stops": stops.tries,
}  # fmt: skip


def outcome(attempt: Callable[[], Any]) -> tuple[str, str]:
    """How a try ended, and what was said."""
    try:
        attempt()
    except HalfFile as error:
        return "half file", str(error)
    except Stopped:
        return "stopped", ""
    except Obscure as error:
        return "obscure", str(error)
    except MemoryError:
        return "memory", "MemoryError"
    except Exception as error:
        own = any(kind.__name__ == "CoDiError" for kind in type(error).__mro__)  # a host loads the pack under a name of its own
        return ("clear" if own and 20 < len(str(error)) < 3000 else "obscure"), f"{type(error).__name__}: {error}"
    return "sound", ""

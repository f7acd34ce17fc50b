"""Exceptions for what a user can act on: their text names what was given, what is accepted, and what to do."""

_LONGEST = 1500  # characters of a message


class CoDiError(ValueError):
    """Raised for input that CoDi cannot use. Nodes show its text as it is; the command line prints it and exits with 2.

    What was given stands in the text; of a text that this makes too long to be read, beginning and end are kept."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}")


class WriteError(CoDiError):
    """Raised where a file cannot be written: no room, no right, no such place."""


class TooLarge(CoDiError):
    """Raised for a request that takes more memory than there is, before anything is made for it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the device or of the machine does not suffice."""
    if isinstance(error, MemoryError | TooLarge) or type(error).__name__ == "OutOfMemoryError":  # torch's class, without loading torch
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in ("can't allocate memory", "out of memory"))

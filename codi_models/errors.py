"""The one exception for bad input: its text names what was given, what is accepted, and what to do."""


class CoDiError(ValueError):
    """Raised for input that CoDi cannot use. Nodes show its text as it is; the command line prints it and exits with 2."""

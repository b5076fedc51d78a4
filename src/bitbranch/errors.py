"""The errors a user can meet: each is one line that says what is wrong and where."""


class BitbranchError(Exception):
    """Base of every error raised on purpose; the command line turns it into one line and exit status 2."""


class FormatError(BitbranchError):
    """A ``.bb`` file, or a program made by hand, is malformed."""


class CompileError(BitbranchError):
    """A network holds something that the compiler cannot express in integers; the text names the layer."""


class InputError(BitbranchError, ValueError):
    """An argument has a wrong shape, type, range or spelling."""

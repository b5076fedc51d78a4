"""From a quantized torch network to an integer program: capture, passes, lowering; and the check of the result."""

from .driver import compile

__all__ = ["compile"]

"""Readers of real image sets. The arrays need NumPy only; :mod:`bitbranch.data.batches` needs torch."""

from .dataset import Dataset, normalize

__all__ = ["Dataset", "normalize"]

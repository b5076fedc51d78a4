"""Quantizers: one file per method, a pure function and a thin module over it; scheme strings in ``registry``."""

"""Instruction-set levels: one name holds the engine and its peers to the same instructions.

Peers built on oneDNN (PyTorch, OpenVINO) obey environment variables; ONNX Runtime, LiteRT (XNNPACK) and ncnn have no
switch of theirs and are measured on everything the processor has, level ``native``, alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError

NATIVE = "native"
ONEDNN = {
    "avx2": "AVX2",
    "avx512": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
}
"""Level to the value of ``ONEDNN_MAX_CPU_ISA``."""
LEVELS = ("scalar", *ONEDNN, NATIVE)
"""Names for ``--isa``, the narrowest first; ``scalar`` is for the engine alone."""
MEANING = {
    "scalar": "no vector instructions in the engine's kernels",
    "avx2": "AVX2 and FMA",
    "avx512": "AVX-512 F, BW, DQ, VL, without VNNI",
    "avx512_vnni": "AVX-512 with VNNI, without AMX (OpenVINO: without VPOPCNTDQ too)",
    NATIVE: "everything that the processor has, unrestricted",
}


def engine_set(level: str, available: Sequence[str]) -> str | None:
    """The widest of the engine's instruction sets that a level allows; ``None`` where it has none of its own.

    Args:
        level: one of :data:`LEVELS`, or the exact name of a set.
        available: :func:`bitbranch.runtime.engine.instruction_sets`, the widest first.

    Raises:
        InputError: neither a level nor a set of this machine.
    """
    if level in available:
        return level
    if level not in LEVELS:
        known = ", ".join(dict.fromkeys((*LEVELS, *available)))
        raise InputError(f"instruction set {level!r} is not available here; there are {known}")
    allowed = {
        NATIVE: lambda name: True,
        "avx512_vnni": lambda name: name.startswith("avx512") and "amx" not in name,
    }.get(level, lambda name: name == level)
    return next((name for name in available if allowed(name)), None)


def environment(level: str) -> dict[str, str] | None:
    """Variables that hold oneDNN's and PyTorch's own kernels to a level; ``None`` where no variable does."""
    if level == NATIVE:
        return {}
    if level not in ONEDNN:
        return None
    onednn = ONEDNN[level]
    return {
        "ONEDNN_MAX_CPU_ISA": onednn,
        "DNNL_MAX_CPU_ISA": onednn,
        "ATEN_CPU_CAPABILITY": "avx2" if level == "avx2" else "avx512",
    }

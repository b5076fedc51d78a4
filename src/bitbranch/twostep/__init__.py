"""Two-step quantization: first the activation codes, then low-bit weights that give the same codes.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018. Hashing (BWNH), which solves binary
weights in the same way but for real pre-activations, is here, too.
"""

from .batchnorm import reestimate_batchnorm
from .codes import learn_codes, strip_affine
from .convert import convert, place_codes
from .driver import LayerReport, Recipe, learn_transforms
from .hashing import hash_weights

__all__ = [
    "LayerReport",
    "Recipe",
    "convert",
    "hash_weights",
    "learn_codes",
    "learn_transforms",
    "place_codes",
    "reestimate_batchnorm",
    "strip_affine",
]

"""Configurations of runs: TOML or JSON to checked, plain objects."""

from __future__ import annotations

import difflib
import itertools
import json
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import InputError
from ..quantizers.registry import parse_scheme
from .optimization import Settings
from .stages import PORTIONS

if TYPE_CHECKING:
    from ..twostep import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

PATHS = {"network": ("file", "start", "trunk"), "data": ("path",), "teacher": ("checkpoint",)}
"""Keys of files and folders, by their tables."""

KINDS = ("train", "codes", "transforms", "hash", "hints")
"""What a phase does: train; step 1 and step 2 of two-step quantization; solve hashed weights; learn a hint."""


@dataclass(frozen=True)
class Network:
    """``[network]``: what is trained.

    Args:
        model: name of a network, see :func:`bitbranch.models.names`.
        file: a Python file with networks of one's own, see :func:`bitbranch.models.register`; it is run.
        arguments: of its function. Those for the number of classes, channels and image size come from the data if not
            given.
        start: a file to take parameters from: a checkpoint of bitbranch (``net.pt`` of another run), quantized or not,
            or a ``state_dict`` saved by torch; none starts from random parameters. Of a float checkpoint of another
            model, the parameters are taken by their names.
        trunk: a file to take the parameters of the network's trunk from, by torchvision's names: a ``state_dict`` saved
            by torch, or a float checkpoint of bitbranch. What else is in it, such as a classifier, is left.
        scheme: what it is quantized by before the first phase; none leaves it as it starts.
        first, last: schemes of the first and the last layer; ``"none"`` leaves one float.
        layers: schemes of other layers, by name or pattern such as ``"class_heads.*"``; ``"none"`` leaves them float.
    """

    model: str
    file: str = ""
    arguments: Mapping[str, object] = field(default_factory=dict)
    start: str = ""
    trunk: str = ""
    scheme: str = ""
    first: str = "w8a8"
    last: str = "w8a8"
    layers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """``[data]``: what is learned from.

    Args:
        set: name of a set, see ``bitbranch data``.
        batch: images per step, over all processes.
        path: folder of the set; none is where ``bitbranch data`` says.
        flip, shift: mirror half of the images; move each by up to so many pixels. Not given: what is usual for the set.
        workers: processes that load and augment, for each training process.
        train_images, test_images: at most so many, spread over the set; 0 takes all.
        train_split, test_split: what is learned from and measured on; not given: what is usual for the set, see
            :attr:`~bitbranch.data.sets.ImageSet.splits`. ``test_split = "val"`` keeps the test images unseen while
            settings are chosen, ``train_split = "train+val"`` uses all images for the last training.
        size: height and width that networks get, of sets of pictures; not given: what is usual for the set.
        augmentation: of pictures with boxes, see :class:`~bitbranch.data.box_batches.Augmentation`, or masks: ``scale``
            and ``colour``, see :class:`~bitbranch.data.mask_batches.MaskBatches`.
        balance: of segmentation: how far rare classes count more, from 0, not at all, to 1, by the median frequency
            over theirs.
    """

    set: str
    batch: int = 128
    path: str = ""
    flip: bool | None = None
    shift: int | None = None
    workers: int = 0
    train_images: int = 0
    test_images: int = 0
    train_split: str = ""
    test_split: str = ""
    size: tuple[int, ...] = ()
    augmentation: Mapping[str, object] = field(default_factory=dict)
    balance: float = 0.0


@dataclass(frozen=True)
class Teacher:
    """``[teacher]``: a network whose soft targets are learned, too, in phases of kind ``train`` and ``codes``.

    Args:
        checkpoint: its file; of several, the mean of their outputs is learned; none is no teacher.
        share: weight of its term; two numbers go from the first to the second over each phase.
        temperature: of the soft targets.
    """

    checkpoint: tuple[str, ...] = ()
    share: tuple[float, ...] = (0.5,)
    temperature: float = 2.0

    @property
    def shares(self) -> tuple[float, float]:
        """At the begin of a phase, and at its end."""
        return self.share[0], self.share[-1]


@dataclass(frozen=True)
class Phase(Settings):
    """``[[phase]]``: one part of a run; what it does not say comes from ``[train]``.

    Args:
        kind: one of :data:`KINDS`.
        name: for logs and reports; default: kind and number.
        epochs .. precision: see :class:`~bitbranch.training.optimization.Settings`.
        smoothing: label smoothing.
        scheme: quantize by it first; what is quantized already gets the new quantizers.
        bits: falling numbers that take the place of ``{bits}`` in ``scheme``: a phase for each.
        fix: INQ: fix this share of the weights first.
        portions: INQ: rising shares that end with 1: a phase of ``fix`` for each.
        images: of ``transforms`` and ``hash``: training images to solve with.
        samples: of ``transforms`` and ``hash``: output positions for each layer.
        affine: of ``codes``: BatchNorms keep their affine part, see :func:`bitbranch.twostep.learn_codes`.
        method, reestimate, outputs, lambdas, iterations, sweeps, z_update, hold: of ``transforms``, see
            :func:`bitbranch.twostep.learn_transforms`.
        guided, hint: of ``hints``: names of the student's and the teacher's layer.
    """

    epochs: int = 1
    lr: float = 1e-3
    kind: str = "train"
    name: str = ""
    smoothing: float = 0.0
    scheme: str = ""
    bits: tuple[int, ...] = ()
    fix: float = 0.0
    portions: tuple[float, ...] = ()
    images: int = 5000
    samples: int = 20_000
    affine: bool = False
    method: str = "tsq"
    reestimate: bool = True
    outputs: bool = True
    lambdas: tuple[float, ...] | Mapping[str, tuple[float, ...]] = (0.01, 0.1, 1.0)
    iterations: int = 2
    sweeps: int = 2
    z_update: str = "clipped"
    hold: float = 0.1
    guided: str = ""
    hint: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing is at least 0 and below 1, got {self.smoothing}")
        if not 0 <= self.fix <= 1:
            raise InputError(f"fix is 0..1, got {self.fix}")
        if self.scheme:
            parse_scheme(self.scheme.replace("{bits}", str(max(self.bits, default=8))))
        self.solving(0)  # checks it

    def solving(self, seed: int) -> Recipe:
        """How a phase of kind ``transforms`` solves layers."""
        from ..twostep import Recipe  # which trains

        names = ("method", "samples", "lambdas", "iterations", "sweeps", "z_update", "hold", "reestimate", "outputs")
        return Recipe(**{name: getattr(self, name) for name in names}, seed=seed)


@dataclass(frozen=True)
class Config:
    """A whole run.

    Args:
        network, data, teacher: see there.
        phase: the parts of the run, one after the other.
        name: of the run, for reports.
        source: of the recipe: a paper.
        seed: of everything random.
        save_every: steps between checkpoints; one is also written after each phase.
        log_every: steps between lines of the log.
        threads: of torch on a CPU, for each process; 0 tries all cores and one, and takes what is faster now.
        evaluate_every: epochs between evaluations on the test images; the last epoch of a phase always is.
    """

    network: Network
    data: Data
    phase: tuple[Phase, ...]
    teacher: Teacher = Teacher()
    name: str = ""
    source: str = ""
    seed: int = 0
    save_every: int = 500
    log_every: int = 50
    evaluate_every: int = 1
    threads: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; :func:`parse` takes it back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def load(path: Path) -> Config:
    """Read a configuration, TOML or (``.json``) JSON. Paths in it are relative to its folder.

    Raises:
        InputError: missing or malformed, an unknown or missing key, or a wrong value; names the file and the key.
    """
    try:
        return parse(read(path), path.parent)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The table in a TOML or JSON file, not checked; raises InputError where it is missing or malformed."""
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: malformed ({' '.join(str(error).split())})") from None
    return _table(content, str(path))


def toml_value(text: str) -> object:
    """A value as TOML spells it; what is none is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def parse(content: object, folder: Path = Path()) -> Config:
    """A configuration from nested dictionaries, as TOML gives them.

    Args:
        content: with the keys of :class:`Config`; ``train`` holds what the phases have in common, and is the only phase
            where there is no ``phase``.
        folder: what relative paths are relative to.

    Raises:
        InputError: an unknown or missing key, or a wrong value; names it.
    """
    if not isinstance(content, Mapping):
        raise InputError("a configuration is a table")
    if "row" in content:
        raise InputError("it has rows: run it by bitbranch table, not train")
    common = content.get("train", {})
    phases = content.get("phase", [{}])
    if not isinstance(common, Mapping) or not isinstance(phases, list):
        raise InputError("train is a table [train], and phase a list of tables [[phase]]")
    known = {f.name for f in fields(Phase)}
    _check_keys(common, known, "train.")
    expanded = [p for phase in phases for p in _expanded(_table(phase, "phase"), common)]
    expanded = [{**p, "name": p.get("name") or f"{p.get('kind', 'train')} {i}"} for i, p in enumerate(expanded, 1)]
    names = [p["name"] for p in expanded]
    for i, name in enumerate(names):  # by which logs and curves tell them apart
        others = (f"{name} ({number})" for number in itertools.count(2))
        if name in names[:i]:
            names[i] = expanded[i]["name"] = next(other for other in others if other not in names)
    rest = {key: value for key, value in content.items() if key != "train"}
    config = read_as(Config, {**rest, "phase": expanded}, "")
    _check_plain(config.network.arguments, "network.arguments")
    _check_plain(config.data.augmentation, "data.augmentation")
    plain = config.as_dict()
    for name, keys in PATHS.items():
        for key in keys:
            path = plain[name][key]
            several = isinstance(path, list)
            plain[name][key] = [_absolute(p, folder) for p in path if p] if several else _absolute(path, folder)
    config = read_as(Config, plain, "")
    _check(config)
    return config


def _check(config: Config) -> None:
    for name in ("save_every", "log_every", "evaluate_every"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not config.phase:
        raise InputError("phase: there is none")
    if config.data.batch < 1:
        raise InputError(f"data.batch must be at least 1, got {config.data.batch}")
    if len(config.data.size) not in (0, 2) or min(config.data.size, default=1) < 1:
        raise InputError(f"data.size is height and width, got {list(config.data.size)}")
    if not 0 <= config.data.balance <= 1:
        raise InputError(f"data.balance is 0..1, got {config.data.balance}")
    for name, number in (
        ("seed", config.seed), ("threads", config.threads), ("data.workers", config.data.workers),
        ("data.shift", config.data.shift or 0), ("data.train_images", config.data.train_images),
        ("data.test_images", config.data.test_images),
    ):  # fmt: skip
        if not 0 <= number < 2**31:
            raise InputError(f"{name} must be at least 0 and less than 2^31, got {number}")
    if len(config.teacher.share) not in (1, 2):
        raise InputError("teacher.share is one number or two")
    network = config.network
    for scheme in (network.scheme, network.first, network.last, *network.layers.values()):
        if scheme not in ("", "none"):
            parse_scheme(scheme)
    codes = bool(config.network.start)  # it may be a network of step 1
    for phase in config.phase:
        if phase.kind == "transforms" and phase.scheme:
            raise InputError(
                f"phase {phase.name!r}: step 2 finds the weights of the scheme that step 1 had; give it there"
            )
        codes = phase.kind == "codes" or (codes and not phase.scheme)
        if phase.kind == "transforms" and not codes:
            raise InputError(f"phase {phase.name!r}: step 2 needs a phase of kind 'codes' before it")
        if phase.kind == "hints" and not (phase.guided and phase.hint and len(config.teacher.checkpoint) == 1):
            raise InputError(f"phase {phase.name!r}: hints need guided, hint and teacher.checkpoint, one file")
        if "{bits}" in phase.scheme:
            raise InputError(f"phase {phase.name!r}: scheme {phase.scheme!r} needs bits = [..]")


def _check_plain(value: object, where: str) -> None:
    """Whether JSON has it, as a run keeps its configuration; TOML has dates and times besides."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_plain(part, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            _check_plain(part, f"{where}[{i}]")
    elif not (value is None or isinstance(value, (str, int, float))):
        raise InputError(f"{where}: expected a number, a text, true or false, or lists or tables of them, got {value}")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a table, got {value!r}")
    return dict(value)


def _expanded(phase: dict[str, Any], common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A phase with what is common to all; one of ``bits`` or ``portions`` becomes several."""
    merged = {**common, **phase}
    bits, portions = merged.pop("bits", []), merged.pop("portions", [])
    name, scheme = merged.get("name") or merged.get("kind", "train"), merged.get("scheme")
    if bits and portions:
        raise InputError("phase: has bits and portions; falling bits and growing portions are phases of their own")
    if bits:
        whole = isinstance(bits, list) and all(type(b) is int for b in bits)
        if not whole or list(bits) != sorted(set(bits), reverse=True):
            raise InputError(f"phase: bits is a list of falling whole numbers, got {bits!r}")
        if not isinstance(scheme, str) or "{bits}" not in scheme:
            raise InputError(f"phase: scheme must hold {{bits}}, as there are bits, got {scheme!r}")
        return [{**merged, "scheme": scheme.replace("{bits}", str(b)), "name": f"{name}, {b} bits"} for b in bits]
    if portions:
        numbers = isinstance(portions, list) and all(type(p) in (int, float) for p in portions)
        if portions != "paper" and not numbers:
            raise InputError(f'phase: portions is a list of numbers, or "paper", got {portions!r}')
        portions = list(PORTIONS) if portions == "paper" else list(portions)
        if portions != sorted(set(portions)) or not portions[0] > 0 or portions[-1] != 1:
            raise InputError(f"phase: portions must rise above 0 and end with 1, got {portions}")
        return [
            {**merged, "fix": p, "name": f"{name}, {100 * p:g} % fixed"} | ({"epochs": 0} if p == 1 else {})
            for p in portions
        ]
    return [merged]


def _absolute(path: str, folder: Path) -> str:
    try:
        return str((folder / Path(path).expanduser()).resolve()) if path else ""
    except RuntimeError as error:  # of a user who is not there
        raise InputError(f"{path}: {error}") from None
    except ValueError as error:  # a null byte in it
        raise InputError(f"{path!r}: {error}") from None


def read_as(cls: type[T], content: object, where: str) -> T:
    """A dataclass from a table, with every key and type checked.

    Args:
        cls: the dataclass.
        content: the table.
        where: what errors call it; may be empty.

    Raises:
        InputError: an unknown or missing key, or a wrong value; names it.
    """
    table = _table(content, where or "configuration")
    assert is_dataclass(cls)
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}
    prefix = f"{where}." if where else ""
    _check_keys(table, known, prefix)
    for name, spec in known.items():
        if name not in table and spec.default is MISSING and spec.default_factory is MISSING:
            raise InputError(f"{prefix}{name}: missing")
    values = {key: _value(hints[key], value, f"{prefix}{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_keys(table: Mapping[str, object], known: Iterable[str], prefix: str) -> None:
    names = list(known)
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            raise InputError(f"{prefix}{key}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))


def _value(expected: Any, value: object, where: str) -> Any:
    origin, options = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        if isinstance(value, Mapping):
            options = tuple(kind for kind in options if get_origin(kind) is Mapping) or options
        if value is None and types.NoneType in options:
            return None
        return _value(options[0], value, where)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        spelled = (
            "{}.{}" if is_dataclass(options[0]) else "{}[{}]"
        )  # tables go by numbers from 1, as in --set phase.1.lr
        first = 1 if is_dataclass(options[0]) else 0
        return tuple(
            _value(options[0], item, spelled.format(where, i) if len(items) > 1 else where)
            for i, item in enumerate(items, first)
        )
    if is_dataclass(expected):
        return read_as(expected, value, where)  # type: ignore[arg-type]
    if origin is not None:  # a mapping
        table, kind = _table(value, where), options[1]
        return table if kind is object else {key: _value(kind, item, f"{where}.{key}") for key, item in table.items()}
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise InputError(f"{where}: expected {_WORDS[expected]}, got {value!r}")
    return value


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}

"""The command ``bitbranch``: one parser, one place where errors become one line and an exit status.

Standard output holds the result (with ``--json``: one JSON object), standard error the progress. Commands that train
or compile, and ``data``, import torch when they run; the others never do.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BitbranchError, InputError
from ..reporting.machine import package_version

Result = dict[str, object]
"""What a command found, as it goes into ``--json``; its ``text`` is what a person reads instead."""


class _Several(argparse.Action):
    """Values of an option that may be given again: they add up, and take the place of the default."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is self.default else [*before, *values])


class _Parser(argparse.ArgumentParser):
    """Wrong use raises, so that it is reported like every other error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; ``None`` takes them from ``sys.argv``.

    Returns:
        0 on success, 1 where ``verify`` finds a difference that is no rounding or a row of ``table`` fails, 2 for wrong
        use or bad input (of ``detect``, ``segment``, ``train`` and ``table``: of any picture, after the others), 130
        when interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        _register(options.models)
        with _plain_warnings():
            result = options.command(options)
    except (BitbranchError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"bitbranch: error: {text}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bitbranch"):
            raise
        package, extra = {"PIL": ("Pillow", "pictures")}.get(error.name, (error.name, "train"))
        print(f"bitbranch: error: this command needs {package}; pip install 'bitbranch[{extra}]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bitbranch: interrupted", file=sys.stderr)
        return 130
    text, status = result.pop("text", None), result.pop("status", int(bool(result.get("failed", False))))
    shown = json.dumps(result, indent=2) if options.json or text is None else text
    try:
        print(shown, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again when it ends
        if not isinstance(error, BrokenPipeError):  # else who reads has enough
            print(f"bitbranch: error: the result cannot be printed ({error.strerror})", file=sys.stderr)
            return 2
    return int(status)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our warnings are for users: what they say, without the line of code that says it."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning:
            return f"bitbranch: warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bitbranch", description="Neural networks of one to four bits on ordinary processors.")
    parser.add_argument("--version", action="version", version=f"bitbranch {package_version('bitbranch')}")
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="FILE.py", help="networks of your own: it is run"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], Result], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print one JSON object to standard output")
        sub.set_defaults(command=command)
        return sub

    demo = add("demo", _demo, "Learn, solve, compile, verify, run and report on real images of garments.")
    demo.add_argument("--out", type=Path, default=Path("bitbranch-demo"), metavar="DIR", help="where the report goes")
    demo.add_argument("--seed", type=_seed, default=0, metavar="N")
    demo.add_argument("--task", choices=("classification", "detection", "segmentation"), default="classification")
    length = demo.add_mutually_exclusive_group()
    length.add_argument("--full", action="store_true", help="the full data set and longer training")
    length.add_argument("--quick", action="store_true", help="a minute on few images: shows the way, not the accuracy")

    training = add("train", _train, "Train a network as a configuration says, or go on with an interrupted run.")
    training.add_argument("config", metavar="CONFIG", help="a TOML or JSON file, or the name of a recipe")
    training.add_argument("--out", type=Path, metavar="DIR", help="of the run; default: runs/CONFIG")
    training.add_argument(
        "--set",
        action=_Several,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the configuration: train.epochs=3 seed=1",
    )

    data = add("data", _data, "List the image sets and where each is looked for, or prepare one.")
    data.add_argument("set", nargs="?", metavar="SET")
    data.add_argument("--prepare", type=Path, metavar="SOURCE", help="bring the set there from this archive or folder")

    solve = add("solve", _solve, "Find the low-bit weights of a network layer by layer, without training.")
    solve.add_argument("net", type=Path, metavar="CHECKPOINT", help="a float network, or one of step 1 with its codes")
    solve.add_argument("--images", type=Path, required=True, metavar="IMAGES.npy", help="float32 or uint8 [N, C, H, W]")
    solve.add_argument("--out", type=Path, required=True, metavar="SOLVED")
    solve.add_argument("--state", type=Path, metavar="DIR", help="keep solved layers there; called again, it goes on")
    solve.add_argument("--scheme", metavar="S", help="of a float network: tsq:wt-a2 (default) ..")
    solve.add_argument("--first", metavar="S", help="of its first layer: w8a8 (default), none ..")
    solve.add_argument("--last", metavar="S", help="of its last layer: w8a8 (default), none ..")
    solve.add_argument(
        "--layer",
        type=_layer,
        action="append",
        default=[],
        metavar="NAME=S",
        help="of others of its layers: head.*=w8a8",
    )
    solve.add_argument("--per-channel", action="store_true", help="of a float network: a step for every channel")
    solve.add_argument("--method", choices=("tsq", "linear", "start"), default="tsq")
    solve.add_argument("--z-update", choices=("clipped", "staircase"), default="clipped")
    solve.add_argument("--lambdas", type=float, action=_Several, nargs="+", default=[0.01, 0.1, 1.0], metavar="L")
    solve.add_argument("--iterations", type=_positive, default=2, metavar="N", help="at each lambda (default 2)")
    solve.add_argument("--sweeps", type=_positive, default=2, metavar="N", help="of coordinate descent (default 2)")
    solve.add_argument(
        "--hold", type=float, default=0.1, metavar="SHARE", help="of weights at those of step 1 (default 0.1; 0: none)"
    )
    solve.add_argument("--samples", type=_positive, default=20_000, metavar="N", help="positions a layer")
    solve.add_argument("--keep-statistics", action="store_true", help="do not measure BatchNorm statistics anew")
    solve.add_argument("--keep-outputs", action="store_true", help="do not fit outputs of many bits to the codes")
    solve.add_argument("--batch", type=_positive, default=64, metavar="N", help="images at once (default 64)")
    solve.add_argument("--threads", type=_positive, metavar="N", help="default: as many as there are cores")
    solve.add_argument("--seed", type=_seed, default=0, metavar="N")

    compiling = add("compile", _compile, "Turn a checkpoint of a quantized network into a .bb file.")
    compiling.add_argument("checkpoint", type=Path)
    compiling.add_argument("--out", type=Path, required=True, metavar="NET.bb")

    verify = add("verify", _verify, "Compare the reference and the engine on every instruction set, bit for bit.")
    verify.add_argument("net", type=Path, metavar="NET.bb|CHECKPOINT", help="a checkpoint is compiled in memory")
    verify.add_argument("--checkpoint", type=Path, help="compare with this checkpoint's torch network, too")
    verify.add_argument(
        "--images", type=Path, action=_Several, nargs="+", default=[], metavar="IMAGES.npy",
        help="array [N, C, H, W] for each input, float32 where torch is compared; default: random images",
    )  # fmt: skip
    verify.add_argument("--count", type=_positive, default=16, metavar="N", help="of random images (default 16)")
    verify.add_argument("--seed", type=_seed, default=0, metavar="N", help="of random images")

    bench = add("bench", _bench, "Time networks beside PyTorch, ONNX Runtime, OpenVINO, LiteRT and ncnn.")
    bench.add_argument("net", nargs="+", metavar="NET", help=".bb files, or the name of a model (random weights)")
    bench.add_argument(
        "--scheme", action=_Several, nargs="+", default=[], metavar="S", help="of a model: tsq:wt-a2 (default) .."
    )
    bench.add_argument("--model-arguments", type=json.loads, default={}, metavar="JSON", help="of a model's function")
    bench.add_argument("--image-size", type=_size, metavar="N|HxW", help="of a model; default: its usual one")
    bench.add_argument("--float", type=Path, metavar="CHECKPOINT", help="the float network of the .bb files, for peers")
    bench.add_argument("--data", type=Path, metavar="IMAGES.npz", help="images, float32, and labels: for accuracy")
    bench.add_argument(
        "--peers",
        action=_Several,
        nargs="*",
        default=["all"],
        metavar="P",
        help="all (default), torch, openvino, int8 ..",
    )
    bench.add_argument(
        "--isa", action=_Several, nargs="+", metavar="LEVEL", help="instruction sets: avx2 avx512 avx512_vnni native .."
    )
    bench.add_argument("--threads", type=_positive, action=_Several, nargs="+", default=[1, 2], metavar="N")
    bench.add_argument("--batch", type=_positive, action=_Several, nargs="+", default=[1], metavar="N")
    bench.add_argument("--seconds", type=float, default=1.0, help="measured for each executor and setting (default 1)")
    bench.add_argument("--profile", action="store_true", help="show where the engine's time goes")
    bench.add_argument("--out", type=Path, metavar="DIR", help="write bench.json, bench.md and bench.svg there")
    bench.add_argument("--resume", action="store_true", help="keep the settings that are in --out already")

    profile = add("profile", _profile, "Say where the time of a compiled network goes, step by step.")
    profile.add_argument("net", type=Path, metavar="NET.bb")
    profile.add_argument("--threads", type=_positive, default=1, metavar="N")
    profile.add_argument("--batch", type=_positive, default=1, metavar="N")
    profile.add_argument("--isa", help="force an instruction set")
    profile.add_argument("--repeat", type=_positive, default=30, metavar="N", help="runs (default 30)")

    table = add("table", _table, "Train, compile and compare the methods of a table; what is done is not run again.")
    table.add_argument("table", type=Path, metavar="TABLE.toml")
    table.add_argument("--out", type=Path, metavar="DIR", help="of the table and its runs; default: tables/TABLE")
    table.add_argument(
        "--rows", action=_Several, nargs="+", default=[], metavar="NAME", help="only these, and what they need"
    )
    table.add_argument("--seeds", action=_Several, nargs="+", type=_seed, default=[], metavar="N", help="only these")
    table.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="begin no run after so many")
    table.add_argument("--no-latency", action="store_true", help="do not measure latencies at the end")

    tune = add("tune", _tune, "Measure this machine's kernels and keep the rates: engines then choose by them.")
    tune.add_argument(
        "--isa", action=_Several, nargs="+", default=[], metavar="SET", help="instruction sets; default: all but scalar"
    )
    tune.add_argument("--out", type=Path, metavar="FILE", help="default: in the user's cache directory")

    info = add("info", _info, "Say what a .bb file holds.")
    info.add_argument("net", type=Path, metavar="NET.bb")

    run = add("run", _run, "Run a compiled network on images and print class numbers or write the outputs.")
    run.add_argument("net", type=Path, metavar="NET.bb")
    run.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGES.npy", help="float32 or uint8 array [N, C, H, W], for each input"
    )
    run.add_argument("--out", type=Path, metavar="OUTPUTS.npy", help="write the float32 outputs here; several: .npz")
    run.add_argument("--threads", type=_positive, default=1, metavar="N")
    run.add_argument("--isa", help="force an instruction set, such as scalar, avx2, avx512, avx512_vnni, amx")

    detect = add("detect", _detect, "Find objects in pictures with a compiled detector; draw and list their boxes.")
    segment = add("segment", _segment, "Find the class of every pixel of pictures with a compiled network.")
    for seeing, folder in ((detect, "detected"), (segment, "segmented")):
        seeing.add_argument("net", type=Path, metavar="NET.bb")
        seeing.add_argument("pictures", type=Path, nargs="+", metavar="IMAGE")
        seeing.add_argument("--out", type=Path, default=Path(folder), metavar="DIR", help=f"default: {folder}")
        seeing.add_argument("--threads", type=_positive, default=1, metavar="N")
    detect.add_argument("--threshold", type=float, default=0.5, metavar="S", help="least score (default 0.5)")
    detect.add_argument(
        "--overlap", type=float, default=0.45, metavar="S", help="of two boxes that stay (default 0.45)"
    )
    return parser


def _register(files: Sequence[Path]) -> None:
    if files:
        from .. import models  # which takes torch

        for file in files:
            models.register_file(file)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a number of pixels or HEIGHTxWIDTH, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _layer(text: str) -> tuple[str, str]:
    name, _, scheme = text.partition("=")
    if not (name and scheme):
        raise argparse.ArgumentTypeError(f"expected NAME=SCHEME, got {text!r}")
    return name, scheme


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return number


def _seed(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^31 - 1, got {text!r}")
    return number


def _demo(options: argparse.Namespace) -> Result:
    from . import demo, demo_scenes

    size = "full" if options.full else "quick" if options.quick else "standard"
    if options.task != "classification":
        return demo_scenes.run(options.task, out=options.out, size=size, seed=options.seed)
    return demo.run(out=options.out, size=size, seed=options.seed)


def _train(options: argparse.Namespace) -> Result:
    from . import training

    return training.train(options.config, options.out, options.set, _say)


def _data(options: argparse.Namespace) -> Result:
    from . import training

    return training.data(options.set, options.prepare, _say)


def _solve(options: argparse.Namespace) -> Result:
    from ..twostep import Recipe
    from . import solve

    recipe = Recipe(
        method=options.method,
        samples=options.samples,
        lambdas=tuple(options.lambdas),
        iterations=options.iterations,
        sweeps=options.sweeps,
        z_update=options.z_update,
        hold=options.hold,
        reestimate=not options.keep_statistics,
        outputs=not options.keep_outputs,
        seed=options.seed,
    )
    return solve.run(
        options.net,
        options.images,
        options.out,
        scheme=options.scheme,
        first=options.first,
        last=options.last,
        layers=dict(options.layer),
        recipe=recipe,
        state=options.state,
        per_channel=options.per_channel,
        batch=options.batch,
        threads=options.threads,
        progress=_say,
    )


def _compile(options: argparse.Namespace) -> Result:
    from . import files

    return files.compile_checkpoint(options.checkpoint, options.out)


def _verify(options: argparse.Namespace) -> Result:
    from . import verify

    return verify.verify(
        options.net, options.images, checkpoint=options.checkpoint, count=options.count, seed=options.seed
    )


def _bench(options: argparse.Namespace) -> Result:
    from ..bench import command

    wanted = command.Options(
        nets=options.net,
        schemes=options.scheme,
        model_arguments=options.model_arguments,
        image_size=options.image_size,
        float_checkpoint=options.float,
        data=options.data,
        peers=options.peers,
        levels=options.isa or ["native"],
        threads=options.threads,
        batches=options.batch,
        seconds=options.seconds,
        out=options.out,
        resume=options.resume,
        profile=options.profile,
    )
    return command.run(wanted, _say)


def _profile(options: argparse.Namespace) -> Result:
    from . import files

    return files.profile(
        options.net, threads=options.threads, batch=options.batch, isa=options.isa, repeat=options.repeat
    )


def _table(options: argparse.Namespace) -> Result:
    from ..table import command

    wanted = command.Options(
        table=options.table,
        out=options.out or Path("tables") / options.table.stem,
        rows=options.rows,
        seeds=options.seeds,
        hours=options.hours,
        measure=not options.no_latency,
    )
    return command.run(wanted, _say)


def _tune(options: argparse.Namespace) -> Result:
    from ..bench import tune

    return tune.run(options.out, options.isa, _say)


def _say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def _info(options: argparse.Namespace) -> Result:
    from . import files

    return files.info(options.net)


def _run(options: argparse.Namespace) -> Result:
    from . import files

    return files.run(options.net, options.images, out=options.out, threads=options.threads, isa=options.isa)


def _detect(options: argparse.Namespace) -> Result:
    from . import pictures

    return pictures.detect(
        options.net,
        options.pictures,
        options.out,
        threshold=options.threshold,
        most=options.overlap,
        threads=options.threads,
        say=_say,
    )


def _segment(options: argparse.Namespace) -> Result:
    from . import pictures

    return pictures.segment(options.net, options.pictures, options.out, threads=options.threads, say=_say)


if __name__ == "__main__":
    sys.exit(main())

"""The command line. Commands import what they need when they run: `slimgate --help` and a cached run stay quick."""

import argparse
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from pathlib import Path

from boards.errors import SlimgateError

ROOT = Path(__file__).resolve().parent.parent


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 well, 1 a gate is shut, 2 a mistake or something missing, 3 a bug."""
    args = parser().parse_args(argv)
    # Brevitas tells, with a path of this machine, that an accelerator of something unused here is absent.
    warnings.filterwarnings("ignore", message="fast_hadamard_transform")
    try:
        return args.run(args) or 0
    except SlimgateError as error:
        if args.debug:
            traceback.print_exc()
        print(f"slimgate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("slimgate: interrupted; finished stages are kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `slimgate summary | head`: nobody reads on, and what was asked for was not finished
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - the one place that turns a bug into words
        traceback.print_exc()
        print(f"slimgate: a bug in slimgate ({type(error).__name__}); finished stages are kept", file=sys.stderr)
        return 3


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="slimgate",
        description="From real images to a trimmed, quantized, bit-exact, packaged network on a (simulated) board.",
        epilog="example: slimgate run runs/digits.toml",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    common.add_argument(
        "--build-dir", type=Path, default=Path("build"), metavar="DIR", help="where run folders are (default: build)"
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function, summary: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example: {example}", parents=[common], allow_abbrev=False
        )
        made.set_defaults(run=function)
        return made

    run = command(
        "run",
        _run,
        "Bring the stages of a recipe up to date.",
        "slimgate run runs/digits.toml --board pynq-z2 --until csim --set trim.ratio=0.6",
    )
    run.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file, see runs/")
    run.add_argument("--board", help="a board model instead of the recipe's; see `slimgate boards`")
    run.add_argument("--place", default="simulated", help="where the board stands (default: simulated)")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage (`bitstream` asks for the vendor tools)")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another value for a recipe key; repeatable"
    )
    run.add_argument("--verify", action="store_true", help="check the sha256 of every finished file, not only its size")

    status = command("status", _status, "What is finished in a run folder.", "slimgate status digits-pynq-z2")
    status.add_argument("--verify", action="store_true", help="check the sha256 of every file, not only its size")
    summary = command("summary", _summary, "The figures of a run.", "slimgate summary --json digits-pynq-z2")
    summary.add_argument("--json", action="store_true", help="one JSON object")
    report = command("report", _report, "Path of a run's report.", "slimgate report digits-pynq-z2 --open")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    for made in (status, summary, report):
        made.add_argument("name", nargs="?", metavar="RUN", help="a run folder or its name (default: the newest)")

    command("doctor", _doctor, "What is installed, and what each missing thing prevents.", "slimgate doctor")
    command("boards", _boards, "The board models.", "slimgate boards")

    verify = command(
        "verify",
        _verify,
        "Is a QONNX file carried to hardware exactly? Every output code of the C simulation compared, or the reasons.",
        "slimgate verify network.onnx --inputs samples.npz --board pynq-z2",
    )
    verify.add_argument("model", type=Path, metavar="MODEL", help="a QONNX file, such as Brevitas exports")
    verify.add_argument(
        "--inputs",
        type=Path,
        required=True,
        metavar="X.npz",
        help="samples (N, ...) as the model takes them: float values on its input's grid, or integer codes",
    )
    verify.add_argument("--board", default="pynq-z2", help="the board to plan for (default: pynq-z2)")
    verify.add_argument("--json", action="store_true", help="one JSON object")

    brought = command(
        "import",
        _import,
        "Make a recipe of a network that was trained elsewhere: a QONNX file, its labels and test data.",
        "slimgate import network.onnx --labels labels.txt --data test-images --board pynq-z2",
    )
    brought.add_argument("model", type=Path, metavar="MODEL", help="a QONNX file, such as Brevitas exports")
    brought.add_argument("--labels", help="names of the outputs: a text file, one a line, or names with commas between "
                                          "(default: the names of the class folders, sorted)")  # fmt: skip
    brought.add_argument("--data", required=True, help="test data: a folder or zip of class folders, the folder of "
                                                       "CIFAR-10, an .npz with labels and inputs or pixels, or the "
                                                       "word digits")  # fmt: skip
    brought.add_argument("--board", default="pynq-z2", help="a board model (default: pynq-z2)")
    brought.add_argument("--name", help="name of the recipe (default: the model's)")
    brought.add_argument("--to", type=Path, default=Path("imported"), metavar="DIR",
                         help="where its folder is made (default: imported)")  # fmt: skip
    brought.add_argument("--force", action="store_true", help="replace an imported network of this name")
    brought.add_argument("--input-range", nargs=2, type=_number, metavar=("LOW", "HIGH"),
                         help="what pixels 0 and 255 stood for in the training (default: 0 1)")  # fmt: skip
    brought.add_argument("--mean", nargs="+", type=_number, help="subtracted after that: one number, or one a channel")
    brought.add_argument("--std", nargs="+", type=_number, help="divided by after that")
    brought.add_argument("--resize", choices=("nearest", "bilinear", "bicubic", "lanczos", "box"), default="bilinear",
                         help="Pillow's filter for pictures of another size (default: bilinear)")  # fmt: skip

    plan = command(
        "plan",
        _plan,
        "What a network takes of a board: strategies, reuse factors, FIFO depths, resources, cycles. All estimated.",
        "slimgate plan runs/digits.toml --all-boards",
    )
    plan.add_argument("source", type=Path, metavar="RECIPE|MODEL.onnx", help="a recipe, or a QONNX file")
    plan.add_argument("--board", help="a board model instead of the recipe's; see `slimgate boards`")
    plan.add_argument("--all-boards", action="store_true", help="on which boards it fits, and how fast it is there")
    plan.add_argument("--fps", type=float, metavar="N", help="as little of the board as N frames per second take")
    plan.add_argument("--objective", choices=("interval", "latency"), help="what is made least")
    plan.add_argument("--margin", type=float, metavar="SHARE", help="part of the board that stays free (default: 0.2)")
    plan.add_argument("--clock-mhz", type=float, metavar="F", help="clock of the programmable logic")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value of the recipe")
    plan.add_argument("--json", action="store_true", help="the plan as JSON")

    estimator = command(
        "estimator",
        _estimator,
        "The cost model against published designs: reported, predicted, interval. Reports are read to compare only.",
        "slimgate estimator --designs designs --json",
    )
    estimator.add_argument("--designs", required=True, metavar="DIR", help="folder of designs (*.json) to predict")
    estimator.add_argument("--json", action="store_true", help="everything as JSON on standard output")
    estimator.add_argument("--fit", metavar="DIR2", help="fit on these designs, not the shipped coefficients")
    estimator.add_argument("--leave-one-out", action="store_true", help="fit on the other repositories of the folder")
    estimator.add_argument("--write-coefficients", metavar="FILE", help="fit on --designs and write the coefficients")
    estimator.add_argument("--page", metavar="FILE", help="write the study of held-out errors")
    estimator.add_argument("--others", metavar="FILE", help="another estimator's predictions, for the page")

    predict = command(
        "predict",
        _predict,
        "Classify pictures with a packaged network, on a board or the simulated one.",
        "slimgate predict build/digits-pynq-z2/package/package.tar.gz seven.png --top 3",
    )
    predict.add_argument("package", type=Path, metavar="PACKAGE", help="a package folder or package.tar.gz")
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    predict.add_argument("--place", default="simulated", help="where the board stands (default: simulated)")
    predict.add_argument("--top", type=_positive, default=3, metavar="K", help="labels per picture (default: 3)")
    predict.add_argument("--json", action="store_true", help="a JSON list")
    return top


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _number(text: str) -> float:
    from pipeline import importing

    try:
        return importing.number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor a fraction such as 255/256") from None


def _console():
    from rich.console import Console

    # Written to a file, a table is as wide as it needs to be.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def _prepare(recipe, args, place: str):
    from boards import board
    from pipeline import flow
    from pipeline.stage import Run

    until, stages = getattr(args, "until", None), flow.of(recipe.dump())
    if until is not None and until not in {stage.name for stage in stages}:
        stages = [*stages, flow.BITSTREAM]  # asked for, or to be listed with those that could have been meant
    return Run(
        stages,
        recipe,
        build=args.build_dir,
        place=place,
        root=ROOT,
        load_board=board.load,
        verify=getattr(args, "verify", False),
        console=_console(),
    )


def _run(args) -> int:
    from pipeline import config, summary

    run = _prepare(config.load(args.recipe, args.set, args.board), args, args.place)
    if args.place != "simulated":  # before hours of training, not after
        from boards.session import open_session

        open_session(args.place, run.board)
    _refuse_other_kind(run)
    stages = run.until(args.until)
    if "train" in {stage.name for stage in stages} and run.state(run.stages["train"])[0] != "finished":
        from pipeline import preflight  # imports torch, which a finished run does without

        preflight.check(run.recipe, run.board)
    outcomes = run.execute(stages)
    summary.show(summary.collect(run.folder), run.console)
    ran = [outcome.name for outcome in outcomes if not outcome.cached]
    if not ran:
        run.say("everything is finished already: nothing was re-run")
    return 0


def _refuse_other_kind(run) -> None:
    """A recipe with a network of its own and an imported one of the same name would take turns in one run folder."""
    from pipeline.stage import read_last_run

    last = read_last_run(run.folder)
    if last is not None and ("imported" in last["recipe"]) != ("imported" in run.recipe.dump()):
        raise SlimgateError(
            f"this run folder holds a network of another recipe, {Path(last['recipe_path']).name}", where=run.folder,
            fix="give one of the two recipes another name, or take another folder with --build-dir",
        )  # fmt: skip


def _status(args) -> int:
    from rich.table import Table

    from pipeline import config, summary

    folder = summary.find(args.name, args.build_dir)
    last = summary.last_run(folder)
    args.build_dir = folder.parent
    run = _prepare(config.restore(last["recipe"], last["recipe_path"]), args, last["place"])
    run.say(f"{folder}, last run {last['started']}: {last['command']}")
    table = Table("stage", "state", "seconds", "key")
    for stage in run.stages.values():
        state, key = run.state(stage)
        manifest = run.manifest(run.path(stage.name)) or {}
        if (folder / "failed" / stage.name).is_dir():
            state += f"; failed, see {folder / 'failed' / stage.name}"
        table.add_row(stage.name, state, f"{manifest['seconds']:.1f}" if manifest else "-", key[:12] or "-")
    run.console.print(table)
    return 0


def _summary(args) -> int:
    from pipeline import summary

    collected = summary.collect(summary.find(args.name, args.build_dir))
    if args.json:
        print(json.dumps(collected, indent=1, ensure_ascii=False))
    else:
        summary.show(collected, _console())
    return 0


def _report(args) -> int:
    import webbrowser

    from pipeline import summary

    folder = summary.find(args.name, args.build_dir)
    page = folder / "report.html"
    if not page.is_file():
        raise SlimgateError("this run has no report yet", where=folder, fix="finish it with `slimgate run`")
    print(page)
    if args.open and not webbrowser.open(page.resolve().as_uri()):
        raise SlimgateError("no browser was found", where=page, fix="open the file by hand")
    return 0


def _doctor(args) -> int:
    from pipeline import doctor

    return doctor.show(doctor.examine(args.build_dir), _console())


def _boards(args) -> int:
    from rich.table import Table

    from boards import board

    table = Table("board", "title", "part", "clock MHz", "LUT", "BRAM36", "DSP")
    for name in board.names():
        model = board.load(name)
        table.add_row(name, *_board_row(model))
    _console().print(table)
    return 0


def _board_row(model) -> list[str]:
    resources = model.resources
    figures = (model.clock_mhz, resources["lut"], resources["bram36"], resources["dsp"])
    return [model.title, model.part, *(f"{figure:g}" for figure in figures)]


def _estimator(args) -> int:
    from hls import estimator

    return estimator.run(args)


def _verify(args) -> int:
    from boards import board
    from hls.verify import Refused, verify
    from pipeline.diversity import diversity

    def say(text: str) -> None:
        if not args.json:
            print(text, file=sys.stderr, flush=True)

    try:
        found = verify(args.model, args.inputs, board.load(args.board), say=say)
    except Refused as error:
        if args.json:
            print(json.dumps({"refused": error.refusals}, indent=1, ensure_ascii=False))
        raise
    outputs, census = found.pop("outputs"), found.pop("census")
    diverse, detail, numbers = diversity(outputs, census.quantizers, census.accumulators)
    found["diversity"] = {"passed": diverse, "detail": detail, **numbers}
    mismatches, diverging = found["mismatches"], found["first_divergence"]
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(f"{found['compared']:,} codes compared, {mismatches:,} differ: {found['samples']:,} samples, "
              f"C simulation for {found['board']} against {found['oracle']}")  # fmt: skip
        if found["front"]:
            print(f"left to the host before the wire: {', '.join(found['front'])}")
        if found["agreement"]:
            print(f"scales that are no powers of two: {found['agreement']['equal']:,} of "
                  f"{found['agreement']['compared']:,} codes are those of qonnx, which rounds")  # fmt: skip
        if found["host"]:
            print(f"left to the host: {', '.join(found['host'])}")
        print(f"diversity: {detail}" if diverse else f"warning: this proves little: {detail}")
    if diverging:
        print(f"slimgate: {diverging['text']}", file=sys.stderr)
    return 1 if mismatches or not found["compared"] else 0


def _import(args) -> int:
    from boards import board
    from pipeline import importing

    if (args.mean is None) != (args.std is None):
        raise SlimgateError("--mean and --std go together", fix="give both, or none")
    recipe = importing.run(
        args.model, args.labels, args.data, board.load(args.board), name=args.name, to=args.to, force=args.force,
        say=lambda text: print(text, flush=True), input_range=args.input_range, mean=args.mean, std=args.std,
        resize=args.resize,
    )  # fmt: skip
    print(f"made {recipe}; now: slimgate run {shlex.quote(str(recipe))}")
    return 0


def _plan(args) -> int:
    from hls.folding import DoesNotFit
    from pipeline import config, planning

    asked = {"frames_per_second": args.fps, "objective": args.objective, "margin": args.margin,
             "clock_mhz": args.clock_mhz}  # fmt: skip
    asked = {key: value for key, value in asked.items() if value is not None}
    if args.all_boards and (args.board or args.clock_mhz is not None):
        raise SlimgateError("--all-boards takes every board at its own clock", fix="leave out --board and --clock-mhz")
    if args.source.suffix == ".toml":
        recipe = config.load(args.source, args.set, args.board)
        run = _prepare(recipe, args, "simulated")
        made = next(stage for stage in run.stages.values() if "export" in (stage.name, *stage.stands_for))
        finished = run.state(made)[0] == "finished"
        subject = planning.of_recipe(recipe, run.path(made.name) / "model.onnx" if finished else None, asked)
    else:
        if args.set:
            raise SlimgateError("--set changes a recipe, and this is none", where=args.source, fix="leave it out")
        subject = planning.of_file(args.source, args.board, asked)
    if args.all_boards:
        rows = planning.on_all_boards(subject)
        if args.json:
            print(json.dumps({"origin": subject.origin, "boards": rows}, indent=1, ensure_ascii=False))
        else:
            planning.show_boards(subject, rows, _console())
        if not any(row["fits"] for row in rows):
            raise planning.NoBoard(rows)
        return 0
    try:
        plan = subject.plan()
    except DoesNotFit as error:
        plan = subject.plan(over_budget=True) | {"changes": list(error.shortage.changes)}
        if args.json:
            print(json.dumps({"origin": subject.origin} | plan, indent=1, ensure_ascii=False))
        else:
            planning.show(subject, plan, _console())
        raise
    if args.json:
        print(json.dumps({"origin": subject.origin} | plan, indent=1, ensure_ascii=False))
    else:
        planning.show(subject, plan, _console())
    return 0


def _predict(args) -> int:
    from boards import predict

    answers = predict.classify(args.package, args.images, args.place, args.top)
    if args.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return 0
    for image, answer in zip(args.images, answers, strict=True):
        words = ", ".join(f"{guess['label']} ({guess['value']:g})" for guess in answer["top"])
        print(f"{image}: {words}")
    return 0

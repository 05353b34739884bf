"""The documentation names what is there: files, commands, options, keys, words, messages, licenses."""

import ast
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import tomllib
from pathlib import Path, PurePosixPath
from typing import get_args

import pytest
from pydantic import BaseModel

from boards.evidence import EVIDENCE
from pipeline import cli, config, flow

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
PACKAGES = ("pipeline", "hls", "boards")


def ident(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# -- the map of the tree ---------------------------------------------------------------------------------------------


def tree_map(text: str) -> list[str]:
    """Paths named in the README's map, nested lines joined to their folders; folders end in a slash."""
    block = re.search(r"<!-- map -->\n```\n(.*?)```", text, re.DOTALL)[1]
    named, above = [], []
    for line in block.splitlines():
        indent, name, words = re.fullmatch(r"( *)(\S+)(?: +(\S.*))?", line).groups()
        above = above[: len(indent) // 2]
        path = "".join(above) + name
        if name.endswith("/"):
            above.append(name)
        assert words or name.endswith("/"), f"{path} has no explanation"
        named.append(path)
    return named


def missing(named: list[str], root: Path) -> list[str]:
    """What the map names and the tree does not have."""
    return [name for name in named if not any(root.glob(name.rstrip("/")))]


def unnamed(named: list[str], files: list[str]) -> list[str]:
    """Files without a line: modules of the packages need one of their own, others a folder or a pattern."""

    def covered(file: str) -> bool:
        if file in named:
            return True
        if file.endswith(".py") and file.startswith(tuple(f"{package}/" for package in PACKAGES)):
            return False
        return any(PurePosixPath(file).match(name) for name in named if "*" in name) or any(
            name.endswith("/") and not inner(name, named) and file.startswith(name) for name in named
        )

    return [file for file in files if not covered(file)]


def inner(folder: str, named: list[str]) -> bool:
    return any(name.startswith(folder) and name != folder for name in named)


def tracked() -> list[str]:
    """Tracked files; without git, as in a source archive, those of the packages."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    else:
        found = [ident(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [name for name in found if not name.endswith("__init__.py")]  # those have their folder's line


def test_map_names_what_is_there():
    named = tree_map(README)
    assert len(named) > 100
    assert missing(named, ROOT) == []
    assert len(named) == len(set(named))


def test_every_file_has_a_line():
    assert unnamed(tree_map(README), tracked()) == []


def test_map_that_is_wrong_is_seen():
    named = tree_map(README)
    assert missing([*named, "pipeline/nothing.py"], ROOT) == ["pipeline/nothing.py"]
    without = [name for name in named if name not in ("hls/plan.py", "docs/adr/", "boards/*.toml")]
    files = ["hls/plan.py", "docs/adr/0001-x.md", "boards/pynq-z2.toml", "tests/unit/test_docs.py", "new.txt"]
    assert unnamed(named, files) == ["new.txt"]
    assert unnamed(without, files) == ["hls/plan.py", "docs/adr/0001-x.md", "boards/pynq-z2.toml", "new.txt"]


# -- commands --------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """Command lines in code: whole lines of blocks without a language, and inline code."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    starts = ("slimgate ", "make ", "python3 run.py", "python3 predict.py", ".venv/bin/python -m ", "python -m ")
    lines = [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in lines if line.startswith(starts)]


def targets() -> set[str]:
    return set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())


def variables() -> set[str]:
    return set(re.findall(r"^([A-Z]+) +\??=", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {"RUN", "SUPPORTED"}


def wrong(command: str) -> str | None:
    """Why a command line cannot work; None where it can."""
    words = shlex.split(command, comments=True)
    if words[0] == "slimgate":
        return wrong_slimgate(words[1:])
    if words[0] == "make":
        extra = ""
        for word in words[1:]:
            name, equals, value = word.partition("=")
            if equals and name not in variables():
                return f"{command}: the Makefile has no variable {name}"
            if not equals and word not in targets():
                return f"{command}: the Makefile has no target {word}"
            extra = value if name == "ARGS" else extra
        return wrong_slimgate(["run", "runs/digits.toml", *shlex.split(extra)])
    if words[0] == "python3":
        script = (ROOT / "boards/onboard" / words[1]).read_text()
        options = [word for word in words[2:] if word.startswith("--")]
        return next((f"{command}: no {name}" for name in options if f'"{name}"' not in script), None)
    module = words[words.index("-m") + 1]
    return None if importlib.util.find_spec(module) else f"{command}: no module {module}"


def wrong_slimgate(words: list[str]) -> str | None:
    try:
        args = cli.parser().parse_args(words)
    except SystemExit as ended:
        return None if ended.code == 0 else f"slimgate {shlex.join(words)}: not understood"
    if getattr(args, "until", None) not in (None, "STAGE", *(s.name for s in (*flow.STAGES, flow.BITSTREAM))):
        return f"no stage {args.until}"
    made = getattr(args, "recipe", None) and args.recipe.parts[0] == "imported"  # by `slimgate import`, as shown there
    if getattr(args, "recipe", None) and args.recipe.suffix == ".toml" and not made:
        try:
            config.load(ROOT / args.recipe, args.set, args.board)
        except config.RecipeError as error:
            return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_commands_work(page, capsys):
    problems = [problem for command in commands(page.read_text(encoding="utf-8")) if (problem := wrong(command))]
    assert problems == [], capsys.readouterr().err


def test_commands_are_found():
    found = commands(README) + commands(GUIDE)
    bare = {command.partition(" #")[0].strip() for command in found}
    assert {"make benchmark", "make test", "make bitstream BOARD=pynq-z2"} <= bare
    used = {shlex.split(command, comments=True)[1] for command in found if command.startswith("slimgate ")}
    assert {"run", "status", "summary", "report", "doctor", "boards", "predict", "import"} <= used


@pytest.mark.parametrize(
    "command",
    [
        "slimgate verify digits-pynq-z2",
        "slimgate run runs/digits.toml --untill csim",
        "slimgate run runs/digits.toml --until synth",
        "slimgate run runs/digits.toml --set trim.ratoi=0.6",
        "slimgate run runs/nothing.toml",
        "make flash",
        "make benchmark BORD=pynq-z2",
        'make benchmark ARGS="--sett trim.ratio=0.6"',
        "python3 run.py --output result.json",
        "python -m pipeline.nothing",
    ],
)
def test_command_that_cannot_work_is_seen(command, capsys):
    assert commands(f"text `{command}` and\n\n```\n$ {command}\n```\n") == [command, command]
    assert wrong(command)


# -- links -----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere, to a file or to a heading."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "there.md").write_text("# One `thing`, two\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md) [b](there.md#one-thing-two) [c](gone.md) [d](there.md#no-heading) [e](https://x.y)\n")
    assert dead_links(page) == ["gone.md", "there.md#no-heading"]


# -- recipes ---------------------------------------------------------------------------------------------------------


def documented(text: str) -> dict[str, dict[str, str]]:
    """{section: {key: default}} of the guide's tables."""
    found = {}
    part = text.partition("\n## Recipes\n")[2].partition("\n## ")[0]
    for heading, body in re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", part, re.DOTALL | re.MULTILINE):
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", body, re.MULTILINE)
        found["" if heading == "Top level" else heading.strip("[]")] = dict(rows)
    return found


def real() -> dict[str, dict[str, object]]:
    """The same of the recipe model; sections within sections under NAME."""
    found: dict[str, dict[str, object]] = {"": {}}

    def add(section: str, model: type[BaseModel]) -> None:
        for key, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[key] = {}
                add(key, kind)
                continue
            found[section][key] = "required" if field.is_required() else field.default
            inside = next((arg for arg in get_args(kind) if isinstance(arg, type) and issubclass(arg, BaseModel)), None)
            if inside:
                found[f"{section}.{key}.NAME"] = {}
                add(f"{section}.{key}.NAME", inside)

    for kind in (config.Recipe, config.ImportedRecipe):
        add("", kind)
    return found


def default(text: str) -> object:
    """A default as the guide writes it; None for one it leaves to prose."""
    if text in ("required", "unset"):
        return {"required": "required", "unset": None}[text]
    return ast.literal_eval(text.strip("`"))


def test_guide_has_the_recipes_keys_and_defaults():
    told, there = documented(GUIDE), real()
    assert told.keys() == there.keys()
    assert {section: set(keys) for section, keys in told.items()} == {s: set(keys) for s, keys in there.items()}
    assert told[""].pop("name") == "the file's name without `.toml`"
    there[""].pop("name")
    assert {s: {key: default(text) for key, text in keys.items()} for s, keys in told.items()} == there


def test_wrong_recipe_tables_are_seen():
    without = documented(GUIDE.replace("| `ratio` |", "| `share` |"))
    assert set(without["trim"]) != set(real()["trim"])
    other = documented(re.sub(r"\| `ratio` \| `0.5` \|", "| `ratio` | `0.4` |", GUIDE))
    assert default(other["trim"]["ratio"]) != real()["trim"]["ratio"]


# -- stages, words, messages -----------------------------------------------------------------------------------------


def first_column(text: str, heading: str) -> list[str]:
    part = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
    return re.findall(r"^\| (?!-|word |stage |message )(.+?) \|", part, re.MULTILINE)


def test_guide_names_the_stages_in_order():
    assert [name.strip("`") for name in first_column(GUIDE, "Stages")] == [stage.name for stage in flow.STAGES]


def test_glossary_has_the_words_of_evidence():
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", text.partition("## Evidence")[2], re.MULTILINE))
    assert {word: rows.get(word) for word in EVIDENCE} == EVIDENCE
    assert set(rows) == {*EVIDENCE, "word"}


def test_messages_in_the_readme_are_those_of_the_code():
    code = "\n".join(path.read_text(encoding="utf-8") for p in PACKAGES for path in (ROOT / p).rglob("*.py"))
    quoted = [m for cell in first_column(README, "When it stops") for m in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 20
    names = {"g++", "data.train"}
    assert [message for message in quoted if message not in names and message not in code] == []


def test_excerpt_ends_well_and_tells_no_path_of_a_machine():
    excerpt = re.search(r"<!-- excerpt -->\n```\n(.*?)```", README, re.DOTALL)[1]
    assert "nothing was re-run" in excerpt
    assert [name for name in (stage.name for stage in flow.STAGES) if f"{name}: done in" not in excerpt] == []
    assert re.findall(r"(?:^|\s)/(?:home|root|tmp|work)\b\S*", excerpt) == []


# -- licenses --------------------------------------------------------------------------------------------------------


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints-3.11.txt").read_text().splitlines())
    return {canonical(name): version for name, version in (line.split("==") for line in lines if line)}


def licenses() -> tuple[dict[str, tuple[str, str]], set[str]]:
    """({direct dependency: (version, license)}, {copyleft}) as docs/dependencies.md tells them."""
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    direct, copyleft = text.partition("## Copyleft")[::2]
    rows = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \| (.+?) \|", direct, re.MULTILINE)
    left = re.findall(r"^\| ([\w.-]+) \| (?!license)", copyleft.partition("\n## ")[0], re.MULTILINE)
    return {canonical(name): (version, terms) for name, version, terms in rows}, {canonical(name) for name in left}


def terms(name: str) -> str:
    """What a distribution's metadata says about its license, without the full text some put there."""
    data = importlib.metadata.metadata(name)
    words = [data.get("License-Expression") or "", (data.get("License") or "").partition("\n")[0]]
    return "; ".join(words + [c for c in data.get_all("Classifier") or [] if c.startswith("License")])


COPYLEFT = re.compile(r"GPL|GNU|MPL|Mozilla|EPL|Eclipse|CDDL|EUPL", re.IGNORECASE)


def test_direct_dependencies_are_listed_with_their_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    told, _ = licenses()
    assert set(told) == names
    assert {name: version for name, (version, _) in told.items()} == {name: pins()[name] for name in names}


def test_copyleft_is_listed():
    installed = {canonical(d.metadata["Name"]): d.metadata["Name"] for d in importlib.metadata.distributions()}
    assert set(pins()) <= set(installed)
    _, told = licenses()
    assert {name for name in pins() if COPYLEFT.search(terms(installed[name]))} == told


def test_license_is_what_is_claimed():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[1:3][0]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("license")
    assert declared in (None, "Apache-2.0")
    told, _ = licenses()
    assert told["hls4ml"][1] == "Apache-2.0" and "Apache-2.0" in terms("hls4ml")

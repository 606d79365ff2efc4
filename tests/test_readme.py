"""What the README names exists: commands with their flags, links, and tests."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpustream.config import EngineConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r"\]\(([^)#\s]+)\)", README)))
CODE = re.findall(r"```(?:bash|console)\n(.*?)```", README, re.DOTALL) + re.findall(r"`([^`\n]+)`", README)
LINES = [line for block in CODE for line in block.replace("\\\n", " ").splitlines()]


def commands() -> Iterator[tuple[Path, list[str]]]:
    """File that a command of the README runs, and its flags."""
    for line in LINES:
        for match in re.finditer(r"\bpython (?:-m (tpustream\.\w+)|(scripts/\S+\.py))([^|&]*)", line):
            module, script, rest = match.groups()
            path = Path(script) if script else Path(*module.split("."), "__main__.py")
            yield path, [word for word in shlex.split(rest) if word.startswith("--")]


def flags_of(path: Path) -> set[str]:
    """Names of the absl flags that a command defines, those of the engine and the model included."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    defined = {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("DEFINE_")
    }
    shared = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    defined |= {"model"} if "define_model_flag" in shared else set()
    options = path.with_name("options.py")  # flags of a command that has many
    defined |= flags_of(options) if path.name == "__main__.py" and options.exists() else set()
    return defined | (set(EngineConfig.__dataclass_fields__) if "define_engine_flags" in shared else set())


COMMANDS = sorted(set((path, tuple(flags)) for path, flags in commands()))


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_somewhere(link):
    """Every relative link is a file or folder of the repository."""
    assert link.startswith("http") or (ROOT / link).exists()


def test_commands_are_found():
    """The README names all four commands, so the next test tests something."""
    wanted = {"tpustream/serve/__main__.py", "tpustream/generate/__main__.py"}
    wanted |= {"scripts/bench_decode.py", "scripts/convert_weights.py"}
    assert wanted <= {path.as_posix() for path, _ in COMMANDS}


@pytest.mark.parametrize(("path", "flags"), COMMANDS, ids=lambda value: getattr(value, "name", None))
def test_commands_take_their_flags(path, flags):
    """Every command exists and defines the flags that the README gives it."""
    names = {flag.removeprefix("--").partition("=")[0] for flag in flags} - {"help"}
    assert names <= flags_of(ROOT / path)


def test_named_tests_exist():
    """The table of claims points at tests that are there."""
    named = {word for line in LINES for word in line.split() if word.startswith("tests/") and "*" not in word}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_engine_flags_are_fields():
    """Flags that the README lists by name are fields of EngineConfig."""
    listed = re.findall(r"`--(\w+)`", README.partition("## Commands")[2].partition("**A server**")[0])
    assert set(listed) - {"help"} <= set(EngineConfig.__dataclass_fields__)
    assert len(listed) > 5

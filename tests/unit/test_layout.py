"""The house rules, and the docs against the code: what scripts/check runs besides the linters."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_LINES = 400
PACKAGES = ("pipeline", "tasks", "workers")
NOT_OURS = {".git", ".venv", ".millrace", "__pycache__", "node_modules", "dist", "htmlcov"}
DRAWERS = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"}
# The client is where an application, which has no settings to hand, begins.
LOADS_SETTINGS = (
    "pipeline/assembly.py",
    "pipeline/async_client.py",
    "pipeline/client",
    "pipeline/settings/loading.py",
    "tasks/base.py",
    "workers/",
)


def project_files() -> Iterator[Path]:
    """Every text file that belongs to the project, git or no git (a source archive has none)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    for path in sorted(paths):
        if path.is_file() and b"\0" not in path.read_bytes()[:8192]:
            yield path


def python_files() -> Iterator[Path]:
    yield from (path for path in project_files() if path.suffix == ".py")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lock() -> list[str]:
    """The requirements of the lock, a package's continued lines joined."""
    return (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ").splitlines()


def test_every_metric_and_operation_is_in_the_docs_and_no_other() -> None:
    found = subprocess.run(
        [sys.executable, ROOT / "scripts" / "metrics_table.py", "--check"], capture_output=True, text=True, check=False
    )

    assert found.returncode == 0, found.stdout + found.stderr


def test_every_setting_is_in_the_docs_with_its_default_and_meaning() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "configuration.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_lock_gives_every_package_one_version_and_a_hash_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    for line in lock():
        assert re.fullmatch(r"[a-z0-9._-]+==[^ ;]+( ; [^\\]*?)?( +--hash=sha256:[0-9a-f]{64})+ *", line), line[:120]
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)


def test_the_lock_has_what_builds_the_project_and_what_it_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    locked = {re.split("==", line)[0] for line in lock()}
    wanted = [
        *project["build-system"]["requires"],
        "editables",  # hatchling asks for it where it installs editable
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
    ]
    missing = {re.split(r"[\[<>=~!; ]", one)[0].lower() for one in wanted} - locked
    assert not missing
    assert "sentence-transformers" not in locked, "the model's package asks for it and does not need it"


def test_the_wheel_has_our_three_packages_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["name"] == "millrace"
    assert tuple(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES


def test_no_package_registry_and_no_path_of_somebodys_machine_is_in_the_project() -> None:
    # Put together here, so that this file passes its own test.
    registries = ["py" + "pi.org", "python" + "hosted.org", "index" + "-url", "find" + "-links", "registry" + ".npmjs"]
    homes = ["/ho" + "me/", "/Us" + "ers/", "/ro" + "ot/", "/wo" + "rk/", "/opt/" + "wheels"]
    # scripts/lock tells uv to leave these out, by their names.
    allowed = {("scripts/lock", registries[2]), ("scripts/lock", registries[3])}
    found = [
        f"{name_of(path)}: {word}"
        for path in project_files()
        for word in (*registries, *homes)
        if (name_of(path), word) not in allowed
        and re.search(rf"(?<![\w.~/-]){re.escape(word)}", path.read_text("utf-8"))
    ]
    assert not found


def test_no_file_is_longer_than_400_lines() -> None:
    long = {
        name_of(path): lines
        for path in python_files()
        if (lines := len(path.read_text("utf-8").splitlines())) > MAX_LINES
    }
    assert not long


def test_no_pattern_has_a_possessive_group() -> None:
    """Python 3.11.2, Debian 12's, finds nothing with some of them; an atomic group, `(?>(?:...)+)`, is the same."""
    found = [
        f"{name_of(path)}:{number}"
        for path in python_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r"\)[*+?]\+[^+]", line) and re.search(r"""r(b?)["']""", line)
    ]
    assert not found


def test_no_module_is_a_drawer() -> None:
    assert not [name_of(path) for path in python_files() if path.stem in DRAWERS or path.parent.name in DRAWERS]


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in python_files() if path.name.startswith("test_")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_only_where_a_process_begins_are_settings_loaded() -> None:
    loaders = [
        name_of(path)
        for path in python_files()
        if path.relative_to(ROOT).parts[0] in PACKAGES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"load_settings", "Settings"}
        and not name_of(path).startswith(LOADS_SETTINGS)
    ]
    assert not loaders


def test_nothing_is_left_to_do_and_no_test_is_skipped() -> None:
    words = [
        "TO" + "DO",
        "FIX" + "ME",
        "XX" + "X",
        "pytest." + "skip",
        "pytest.mark." + "skip",
        "pytest.mark." + "xfail",
    ]
    found = [f"{name_of(path)}: {word}" for path in python_files() for word in words if word in path.read_text("utf-8")]
    assert not found


@pytest.mark.parametrize("script", ["setup", "demo", "test", "check", "lock"])
def test_a_script_is_executable_and_stops_at_its_first_error(script: str) -> None:
    path = ROOT / "scripts" / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text("utf-8")


@pytest.mark.parametrize("page", [name_of(path) for path in project_files() if path.suffix == ".md"])
def test_links_between_our_pages_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    dead = [
        one
        for one in targets
        if not one.startswith("#") and not (ROOT / page).parent.joinpath(one.split("#")[0]).exists()
    ]
    assert not dead

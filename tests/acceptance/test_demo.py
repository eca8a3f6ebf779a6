"""The demo, as a person runs it, on a few files of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command_line import CommandLine

ROOT = Path(__file__).parents[2]
SMALL = {"MILLRACE_WORKER__CONCURRENCY": "1"}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    directory = tmp_path / "My notes"
    directory.mkdir()
    (directory / "mill.md").write_text(
        "# The mill\n\nThis is about a mill race, which carries water to the wheel.\n", "utf-8"
    )
    (directory / "start.txt").write_text("To get started, open the sluice gate. Then the wheel turns.\n", "utf-8")
    return directory


def test_the_demo_answers_questions_about_own_files_and_leaves_nothing_when_it_is_taken_down(
    tmp_path: Path, notes: Path
) -> None:
    # Given a home that does not exist yet
    cli = CommandLine(tmp_path / "demo home", SMALL)
    try:
        # When the demo is shown a directory
        said = cli.run("demo", str(notes)).stdout

        # Then it has indexed the files, shows answers with their sources, and how to go on and to stop
        assert "2 documents: 2 indexed, 0 unchanged, 0 failed" in said
        assert "How do I get started?" in said
        assert "open the sluice gate" in said
        assert "My notes/start.txt" in said
        assert "MILLRACE_FLOWER__AUTH" in said
        assert "--down" in said
        assert "demo-my-notes" in said

        # and the stack goes on running, with what was ingested
        found = cli.json("search", "water wheel", "--collection", "demo-my-notes")
        assert "mill race" in found["results"][0]["text"]

        # and a second time nothing is embedded again
        assert "2 unchanged" in cli.run("demo", str(notes)).stdout
    finally:
        down = cli.run("demo", "--down").stdout

    # And taking it down leaves nothing
    assert "Removed" in down
    assert not cli.home.exists()
    assert "No stack runs" in cli.run("demo", "--down").stdout


def test_a_home_that_the_demo_did_not_make_outlives_it(tmp_path: Path) -> None:
    # Given a home that somebody else began
    cli = CommandLine(tmp_path / "home")
    (cli.home / "postgres").mkdir(parents=True)

    # When the demo is taken down there
    said = cli.run("demo", "--down").stdout

    # Then nothing is removed
    assert "No stack runs" in said
    assert "stays" in said
    assert (cli.home / "postgres").is_dir()


def test_the_script_refuses_paths_together_with_down(tmp_path: Path, notes: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo", "--down", notes],
        env=CommandLine(tmp_path / "home").environment(), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--down takes no paths" in done.stderr

"""A command in place of Flower's SuperLink."""

from pathlib import Path

import pytest

from experiments.running.flower import superlink


def superlink_that(monkeypatch: pytest.MonkeyPatch, folder: Path, does: str) -> Path:
    """Let `flower-superlink` be a shell script; return the file in which it notes its starts."""
    starts = folder / "starts"
    starts.touch()
    script = folder / "bin/flower-superlink"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\necho $$ $PWD >> {starts}\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setattr(superlink, "SCRIPTS", script.parent)
    return starts

"""The options of the command line: a mistake is one sentence, and never a traceback."""

import argparse
import math
import os
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.__main__ import main
from experiments.arguments import check, parse
from experiments.exit_status import ExitStatus
from experiments.running import launch
from experiments.running.presets import parse_overrides
from fedta_app.config import KEYS, RunConfig
from fedta_app.errors import ConfigError

CPUS = os.cpu_count() or 1
NUMBERS = {
    "--seeds": "run", "--jobs": "run", "--client-cpus": "run", "--client-gpus": "run",
    "--max-minutes": "run", "--trials": "tune", "--session-minutes": "plan",
}  # fmt: skip
ODD = [
    "", " ", "0", "-0", "-1", "-0.5", "nan", "-nan", "inf", "-inf", "1e309", "1e-400", "1e400",
    "2.5", "1_0", "0x10", "\u0663", "1\n2", "one", "auto", "None", "True", "9" * 30, "9" * 5000,
    "1,5", "1/2", "--", "~",
]  # fmt: skip


def options(option: str, text: str) -> argparse.Namespace:
    found = parse([NUMBERS[option], "demo", f"{option}={text}"])
    check(found)
    return found


@pytest.mark.parametrize("option", NUMBERS)
def test_an_odd_number_is_taken_or_refused_in_a_sentence(option: str) -> None:
    for text in ODD:
        check_number(option, text)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(NUMBERS)),
    st.one_of(st.integers().map(str), st.floats().map(repr), st.text(max_size=8)),
)
@example("--client-gpus", "0.00005")
def test_any_text_is_taken_or_refused_in_a_sentence(option: str, text: str) -> None:
    check_number(option, text)


def check_number(option: str, text: str) -> None:
    name = option[2:].replace("-", "_")
    try:
        value = getattr(options(option, text), name)
    except ConfigError as error:
        sentence = str(error)
        assert sentence.startswith(f"{option} ")
        assert " is not allowed: it " in sentence
        assert sentence.isprintable() and len(sentence) < 250
        return
    if value is None:
        assert (option, text) == ("--client-gpus", "auto")
        return
    assert value == (int if isinstance(value, int) else float)(text)
    assert 0 <= value < 1e6 or (option.endswith("minutes") and math.isfinite(value))
    assert value > 0 or option == "--client-gpus"


@pytest.mark.parametrize(
    ("option", "text", "allowed"),
    [
        ("--client-cpus", "0", f"a whole number from 1 to {CPUS}, the CPUs of this machine"),
        ("--client-cpus", str(CPUS + 1), f"a whole number from 1 to {CPUS}, the CPUs of this"),
        ("--client-gpus", "1.5", "auto, 0, a share from 0.0001 to 1, or a whole number of GPUs"),
        ("--client-gpus", "-1", "auto, 0, a share"),
        ("--client-gpus", "nan", "auto, 0, a share"),
        ("--jobs", "100000", f"a whole number from 1 to {4 * CPUS}, four for each of"),
        ("--seeds", "1000000000", "a whole number from 1 to 1000"),
        ("--max-minutes", "nan", "a finite number above 0"),
        ("--session-minutes", "1e-320", "a finite number of at least 1"),
    ],
)
def test_the_sentence_says_what_is_allowed(option: str, text: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        options(option, text)
    assert str(refused.value).startswith(f"{option} {text} is not allowed: it is {allowed}")


@pytest.mark.parametrize(("option", "text"), [("--client-gpus", "2"), ("--client-gpus", "0.5")])
def test_what_can_be_is_read(option: str, text: str) -> None:
    assert options(option, text).client_gpus == float(text)


def test_defaults_are_numbers() -> None:
    found: dict[str, Any] = {}
    for command in ("run", "plan", "tune"):
        parsed = parse([command, "demo"])
        check(parsed)
        found |= vars(parsed)
    assert (found["jobs"], found["client_cpus"], found["client_gpus"]) == (1, 1, None)
    assert (found["trials"], found["session_minutes"], found["seeds"]) == (20, 180.0, None)


def test_no_more_of_the_machine_is_taken_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster a job has fewer CPUs than the machine."""
    config = RunConfig(engine="flower", num_clients=10)
    monkeypatch.setattr(launch, "usable_cpus", lambda: 3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"--client-cpus 4 is .* from 1 to 3, the CPUs that this"):
        launch.preflight(config, client_cpus=4, build=False)
    with pytest.raises(ConfigError, match=r"--client-gpus 2 is .* torch finds 1 CUDA GPU on this"):
        launch.preflight(config, client_gpus=2.0, build=False)


NUMERIC_KEYS = sorted(name for name, key in KEYS.items() if key.kind in (int, float))


@pytest.mark.parametrize("key", NUMERIC_KEYS)
def test_an_odd_value_of_a_key_is_taken_or_refused_in_a_sentence(key: str) -> None:
    for text in ODD:
        try:
            RunConfig.from_mapping(parse_overrides([f"{key}={text}"]))
        except ConfigError as error:
            assert "\n" not in str(error), text
            assert key in str(error), text


@pytest.mark.parametrize("option", ["--results-dir", "--data-dir", "--out", "--records"])
@pytest.mark.parametrize("text", ["~nobody-of-that-name/x", "/etc/passwd", "/etc/passwd/x"])
def test_a_folder_that_cannot_be_one_is_refused_before_any_work(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "report" if option == "--records" else "collect"
    assert main([command, "demo", option, text]) == ExitStatus.REFUSED
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {option} {text} is not allowed: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("key", ["results-dir", "data-dir", "weights"])
def test_a_key_that_names_a_folder_is_refused_too(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "~nobody-of-that-name/x"
    assert main(["run", "demo/fedavg", "--set", f"{key}={text}"]) == ExitStatus.REFUSED
    output = capsys.readouterr()
    assert output.err.startswith(f"error: {key} = '{text}' is not allowed: ")
    assert output.err.count("\n") == 1

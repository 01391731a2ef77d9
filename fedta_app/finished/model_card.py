"""The model card of an exported model (Mitchell et al., "Model Cards for Model Reporting", 2019).

It states what the run recorded and nothing else: what was not measured is said not to have been.
"""

import json
from collections.abc import Iterable
from typing import Any

import tomli_w
from safetensors import safe_open
from timm.models import get_pretrained_cfg

from fedta_app.files import file_sha256
from fedta_app.finished.reading import Run
from fedta_app.models.architectures import ARCHITECTURES
from fedta_app.models.committed import committed_weights
from fedta_app.runs.finished_model import KeptModel

_CARD = """\
# {model}, trained on {data}

{intro}

## Load it

With {library}{version}:

```python
{code}```

## What it was trained on

{training}

## How

{how}

```toml
{config}```

sha256 of these keys: {config_sha}

## Results

{results}

## Limits

{limits}

## Licences

{licences}
"""


def model_card(run: Run, kept: KeptModel, *, library: str, code: str) -> str:
    """Return the model card, in Markdown.

    Parameters
    ----------
    library, code : str
        What the model is loaded with, and how.
    """
    facts = kept.facts
    version = f" (trained with timm {facts['versions']['timm']})" if library == "timm" else ""
    return _CARD.format(
        model=facts["model"]["name"],
        data=facts["data"]["name"],
        intro=_intro(kept),
        library=library,
        version=version,
        code=code,
        training=_list(_training(facts)),
        how=_list(_how(run, facts)),
        config=tomli_w.dumps(facts["config"]),
        config_sha=facts["config-sha256"],
        results=_results(run, facts),
        limits=_list(_limits(run, facts)),
        licences=_list(_licences(facts)),
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _intro(kept: KeptModel) -> str:
    facts, model = kept.facts, kept.facts["model"]
    entries = sum(tensor.numel() for tensor in kept.tensors.values())
    where = {"last": "after the last round", "best": "of the best round by validation accuracy"}
    what = f"An image classifier for {model['classes']} classes"
    if "alphabet" in model:
        what = f"A model of the next of {model['classes']} characters"
    return (
        f"{what} with {entries:,} weights. These are the weights "
        f"{where[facts['weights']]} ({facts['phase']} round {facts['round']}) of run "
        f"`{facts['run']}`, seed {facts['seed']}, of "
        "fedta, a research tool for federated learning and task arithmetic."
    )


def _training(facts: dict[str, Any]) -> list[str]:
    data, start = facts["data"], facts["start"]
    things = _things(facts)
    images = f"Data set `{data['name']}`: {data['training-images']:,} training {things}"
    began = "random weights"
    if start["kind"] != "random":
        began = f"the weights {start['from']} (sha256: {start['sha256']})"
    lines = [f"{images} (sha256 of all {things}: {data['sha256']}).", f"It started from {began}."]
    if names := facts["model"].get("class-names"):
        shown = ", ".join(f"`{name}`" for name in names)
        lines.append(f"Classes, in the order of the model's outputs: {shown}.")
    return lines


def _things(facts: dict[str, Any]) -> str:
    """Return what the examples are."""
    return "windows of text" if "alphabet" in facts["model"] else "images"


def _how(run: Run, facts: dict[str, Any]) -> list[str]:
    config, mask, code = run.config, run.summary.get("mask"), facts["code"]
    lines = []
    if "num-clients" in facts:
        lines.append(
            f"Federated: {facts['num-clients']} clients (partition `{config.partition}`), a share "
            f"of {config.fraction_train:g} of them in a round, algorithm `{config.strategy}`."
        )
    else:
        lines.append(f"Centralised: one optimizer on all training {_things(facts)}.")
    where = "the backbone"
    if config.trained_blocks:
        where = f"the last {config.trained_blocks} blocks"
        lines.append(
            f"Only {where}, and the norm behind them, were trained; all before them was frozen."
        )
    if mask:
        head = "" if config.head_refresh else ", and the head,"
        lines.append(
            f"{mask['trained']:,} of {mask['of']:,} weights of {where} were trained (mask "
            f"rule `{config.mask_rule}`); the others{head} were frozen."
        )
    if config.head_refresh:
        lines.append(
            f"The head was not trained, but solved again every {config.head_refresh} rounds."
        )
    changed = ", with uncommitted changes" if code.get("changed") else ""
    lines.append(f"Code: commit {code['commit']}{changed}; sha256 {code['sha256']}.")
    versions = facts["versions"]
    lines.append("Versions: " + ", ".join(f"{name} {versions[name]}" for name in versions) + ".")
    return lines


def _results(run: Run, facts: dict[str, Any]) -> str:
    """Return a table of what was measured, and what `evaluate` found since."""
    figures, data = facts["figures"], facts["data"]
    rows = [f"| {_things(facts)} | number | accuracy | loss |", "| --- | --- | --- | --- |"]
    for name, key in (("validation", "val"), ("test", "test")):
        accuracy, loss = (figures.get(f"{key}_{what}") for what in ("accuracy", "loss"))
        if accuracy is not None:
            shown = "not recorded" if loss is None else f"{loss:.4f}"
            rows.append(f"| {name} | {data[f'{name}-images']:,} | {accuracy:.2%} | {shown} |")
    lines = ["\n".join(rows)]
    device, precision = run.summary["device"], run.summary["precision"]
    lines.append(f"Measured by the run itself, in {precision}, on {device}.")
    for split in ("test", "validation"):
        if found := _evaluation(run, facts, split):
            lines.append(_list(_spread(found, split)))
    return "\n\n".join(lines)


def _evaluation(run: Run, facts: dict[str, Any], split: str) -> dict[str, Any]:
    """Return what `evaluate` wrote about these weights; empty if it did not."""
    path = run.path / "evaluation" / f"{facts['weights']}-{split}" / "summary.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if found.get("weights-sha256") == facts["weights-sha256"] else {}


def _spread(found: dict[str, Any], split: str) -> list[str]:
    lines = []
    for what in ("classes", "clients"):
        spread = found.get(what, {})
        if "mean" in spread:
            low, high = spread["lowest"]["accuracy"], spread["highest"]["accuracy"]
            how = f" ({spread['how']})" if "how" in spread else ""
            lines.append(
                f"{split} accuracy over {spread['number']} {what}: mean {spread['mean']:.2%}, "
                f"lowest {low:.2%}, highest {high:.2%}{how}."
            )
    return lines


def _limits(run: Run, facts: dict[str, Any]) -> list[str]:
    lines = ["One run with one seed: how much another seed would change was not measured here."]
    things = _things(facts)
    lines.append(
        f"It was measured on {things} of {facts['data']['name']} alone. How it does on other "
        f"{things}, on damaged ones, or on groups of people was not measured."
    )
    if facts["weights"] == "best":
        rounds = int(run.metrics["val_accuracy"].notna().sum())
        lines.append(
            f"The round was chosen among {rounds} by validation accuracy, which is therefore too "
            f"high for these weights; test {things} had no part in the choice."
        )
    if "test_accuracy" not in facts["figures"]:
        lines.append(f"The run did not measure these weights on test {things}.")
    if run.config.personal_layers != "none":
        lines.append(
            f"Layers of its clients' own (`personal-layers = '{run.config.personal_layers}'`) are "
            "not in it: in their places are the weights of the start, and no client has this model."
        )
    if run.config.eval_size:
        lines.append(f"Measured on draws of at most {run.config.eval_size} {things} (`eval-size`).")
    if not any(_evaluation(run, facts, split) for split in ("test", "validation")):
        lines.append("Accuracy by class was not measured (`fedta evaluate` does).")
    return lines


def _licences(facts: dict[str, Any]) -> list[str]:
    """Return what is known of the licences of the starting weights and of the data."""
    start, name = facts["start"], facts["model"]["name"]
    made = f"Weights: made from {start['from']}"
    if start["kind"] == "random":
        made = "Weights: made from random ones; no other model's licence applies."
    elif start["kind"] == "file":
        made += ", a file whose licence fedta does not know."
    elif name in ARCHITECTURES:
        made += f", which comes with fedta (Apache-2.0){_pretraining_data(name, start['sha256'])}."
    else:
        cfg = get_pretrained_cfg(name)
        made += f"; the licence that timm names is {(cfg and cfg.license) or 'none'}."
    name = facts["data"]["name"]
    data = f"Data: fedta does not record the licence of {name}; look it up before you publish."
    return [made, data]


def _pretraining_data(name: str, sha256: str) -> str:
    """Return what weights that come with fedta were pre-trained on, if their file says so."""
    path = committed_weights(name)
    if path is None or file_sha256(path) != sha256:
        return ""
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("about", "{}"))
    return f" and was pre-trained on {about['data']}" if "data" in about else ""

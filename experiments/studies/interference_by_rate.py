"""What an update costs other clients against what it gains its own, by rule and learning rate.

    python -m experiments.studies.interference_by_rate RUN... --out DIR

Each RUN is the folder of a run with `interference-every` above 0, such as one round of
`task-vectors/dense-nc5`. A rule whose updates interfere less only because they are shorter lies on
the same line as a rule with a lower rate; a rule that interferes less lies below it.
"""

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fedta_app.errors import ConfigError
from fedta_app.files import read_toml, write_atomically
from fedta_app.plotting import new_figure, save_figure

INTERFERENCE = "interference.csv"


def read_points(runs: list[Path]) -> pd.DataFrame:
    """Return a row per run: its rule, rate and seed, and the means of its first measured round.

    Columns `own` and `others` are changes of the cross-entropy by adding one client's update, and
    `norm` is the mean length of the updates.

    Raises
    ------
    ConfigError
        When a folder has no such measurement.
    """
    rows = []
    for folder in runs:
        if not (folder / INTERFERENCE).exists():
            raise ConfigError(
                f"{folder} holds no {INTERFERENCE}: run it with interference-every above 0"
            )
        config = read_toml(folder / "config.toml")
        first = pd.read_csv(folder / INTERFERENCE).iloc[0]
        density = 1.0 if config["mask-rule"] == "none" else round(1 - config["sparsity"], 6)
        place = {key: config[key] for key in ("mask-rule", "lr", "seed")} | {"density": density}
        means = {key: float(first[key]) for key in ("own", "others", "norm")}
        rows.append({**place, "round": int(first["round"]), **means})
    points = pd.DataFrame(rows)
    if (points.groupby("mask-rule")["density"].nunique() > 1).any():
        raise ConfigError(
            f"the runs have masks of densities {', '.join(map(str, points['density'].unique()))}: "
            "give runs of one density for each rule"
        )
    return points.sort_values(["mask-rule", "lr", "seed"], ignore_index=True)


def tradeoff_figure(points: pd.DataFrame) -> Figure:
    """Draw the loss that others gain against the loss that the own client is rid of."""
    figure = new_figure(5.2, 3.8)
    axis = figure.subplots()
    means = points.groupby(["mask-rule", "density", "lr"], as_index=False)[["own", "others"]].mean()
    for number, (rule, group) in enumerate(means.groupby("mask-rule")):
        share = group["density"].iloc[0]
        part = "a tenth" if share == 0.1 else f"{share:.1%} of the weights"
        name = "all weights" if rule == "none" else f"{part}, {rule}"
        (line,) = axis.plot(-group["own"], group["others"], "o-", markersize=4, label=name)
        for _, point in group.iterrows():
            place = (-point["own"], point["others"])
            axis.annotate(
                f"{point['lr']:g}",
                place,
                fontsize=7,
                color=line.get_color(),
                xytext=(4, 4 - 10 * number),  # so that neighbours of different rules can be read
                textcoords="offset points",
            )
    axis.set_xlabel("loss that the client's own images lose")
    axis.set_ylabel("loss that other clients' images gain")
    axis.grid(alpha=0.3)
    axis.margins(0.12)  # room for the rates at the last points
    axis.legend(frameon=False, fontsize="small")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Write the points as CSV, and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        points = read_points(options.runs)
    except ConfigError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    text = points.drop(columns="density").to_csv(
        index=False, lineterminator="\n", float_format="%.6g"
    )
    write_atomically(options.out / "points.csv", text)
    figure = tradeoff_figure(points)
    for suffix in (".svg", ".png"):
        save_figure(options.out / f"tradeoff{suffix}", figure)
    print(points.to_string(index=False))


if __name__ == "__main__":
    main()

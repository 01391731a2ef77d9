"""The points are those of the runs, and a folder without a measurement is refused."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.studies.interference_by_rate import main
from tests.server_app.masked import run


@pytest.mark.draws
def test_points_are_the_first_measurements_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"mask-rule": "none", "strategy": "fedavg", "num-server-rounds": 2}
    rates = (0.2, 0.02)
    for lr in rates:
        run(tmp_path / str(lr), lr=lr, **common, **{"interference-every": 1})
    runs = [tmp_path / str(lr) / "test/seed0" for lr in rates]
    main([*map(str, runs), "--out", str(tmp_path / "out")])
    points = pd.read_csv(tmp_path / "out/points.csv")
    assert points["lr"].tolist() == [0.02, 0.2] and points["round"].tolist() == [1, 1]
    for lr, own in zip(points["lr"], points["own"], strict=True):
        measured = pd.read_csv(tmp_path / str(lr) / "test/seed0/interference.csv")
        assert own == pytest.approx(measured["own"][0], rel=1e-5)
    assert (tmp_path / "out/tradeoff.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "other")])
    assert "run it with interference-every above 0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_masks_of_two_densities_are_not_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for sparsity in (0.9, 0.5):
        folder = tmp_path / str(sparsity)
        folder.mkdir()
        about = f'mask-rule = "random"\nsparsity = {sparsity}\nlr = 0.1\nseed = 0\n'
        (folder / "config.toml").write_text(about)
        (folder / "interference.csv").write_text("round,own,others,norm\n1,-1,0.5,2\n")
        folders.append(str(folder))
    with pytest.raises(SystemExit):
        main([*folders, "--out", str(tmp_path / "out")])
    assert "give runs of one density for each rule" in capsys.readouterr().err

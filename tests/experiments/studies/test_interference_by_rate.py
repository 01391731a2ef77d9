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

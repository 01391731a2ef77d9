"""Models by name, and their initial weights."""

from fedta_app.models.building import BuiltModel, WeightsSource, build_model, features, num_features

__all__ = ["BuiltModel", "WeightsSource", "build_model", "features", "num_features"]

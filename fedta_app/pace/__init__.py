"""How fast a run goes: the learning rate, the local steps and the batch size of each round."""

from fedta_app.pace.adacomm import AdaComm
from fedta_app.pace.noise_scale import NoiseScale
from fedta_app.pace.pace import Pace

__all__ = ["AdaComm", "NoiseScale", "Pace"]

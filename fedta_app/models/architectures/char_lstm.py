"""The character model of LEAF's Shakespeare task.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, section 3; Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
"""

import warnings

from torch import Tensor, nn

from fedta_app.models.architectures.base import Architecture, Network


class CharLSTM(Network):
    """An embedding of 8, two LSTM layers of 256, and the logits of the character that comes next.

    It has 819,920 parameters for an alphabet of 80; PyTorch's LSTM has two biases for each gate.
    """

    def __init__(self, *, image_size: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the second layer's output at the last of T characters, (B, 256), given (B, T)."""
        with warnings.catch_warnings():
            # cuDNN copies the weights for every call, because they lie in the run's one vector.
            warnings.filterwarnings("ignore", "RNN module weights are not part", UserWarning)
            outputs, _ = self.lstm(self.embedding(images))
        last: Tensor = outputs[:, -1]
        return last


ARCHITECTURE = Architecture("char_lstm", CharLSTM, image_size=0)

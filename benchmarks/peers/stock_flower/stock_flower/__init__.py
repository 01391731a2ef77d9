"""FedAvg as Flower's PyTorch quickstart writes it."""

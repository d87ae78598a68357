"""How a victim is trained: the recipe's numbers, apart from the training, which needs torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VictimConfig:
    """Recipe of the EMN and PUE configurations; a row of an attack is kept under these values."""

    arch: str = "resnet18"
    epochs: int = 60
    batch: int = 128
    lr: float = 0.1
    clip: float = 5.0
    augment: bool = True
    precision: str = "float32"

import pytest

from fastue.victims.train import VictimConfig, fit


@pytest.fixture(scope="session")
def trained(tiny):
    """(network above chance, test pictures): 12x12 in 4 classes, some of them hard to tell."""
    train, test = tiny(60, 1, contrast=18), tiny(50, 2, contrast=18)
    config = VictimConfig(arch="cnn-w8", epochs=8, batch=32, augment=False)
    model, curves = fit(train, test, config, seed=0)
    assert curves["accuracy"][-1] > 60
    return model.eval(), test

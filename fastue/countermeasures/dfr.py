"""Deep feature reweighting (Kirichenko et al. 2023; on protected pictures Sandoval-Segura et al.
2023): are useful features there anyway?

A victim is trained on the protected pictures; then its last layer alone is fitted anew to the
auxiliary pictures, by 15 steps of LBFGS. Unlike the published code, which moves BatchNorm's
statistics too, the rest of the network stays as it is.
"""

from fastue.countermeasures.base import Countermeasure
from fastue.victims.probe import features, head, refit
from fastue.victims.train import fit


def train(train, test, config, *, seed, step, means, progress) -> dict[str, list[float]]:
    model, _ = fit(train, test, config, seed=seed, step=step, progress=progress)
    _, layer = head(model)
    known, asked = (features(model, layer, d, config.precision) for d in (means.aux, test))
    return refit(known, means.aux.labels, asked, test.labels, train.num_classes)[1]


COUNTERMEASURE = Countermeasure("dfr", train=train, aux=True, cost=1.1)

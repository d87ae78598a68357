"""Weight recovery (PUE, arXiv 2405.03316): the victim's weights move within an L2 ball to fit clean
pictures.

A victim is trained on the protected pictures and recovered from there with several radii eta, for
as many epochs as it was trained. The curves run over eta, from the one that is worst on one half of
the test set to the best: the final figures are those of the eta an adversary would choose.
"""

from fastue.countermeasures.base import Countermeasure
from fastue.data.dataset import batches
from fastue.models.training import accuracy, hits
from fastue.victims.recovery import RecoveryConfig, recover
from fastue.victims.train import TEST_BATCH, fit, new_curves, score

ETAS = (0.2, 0.5, 1.0, 2.0)


def train(train, test, config, *, seed, step, means, progress) -> dict:
    c, total = config, config.epochs * (1 + len(ETAS))
    model, trained = fit(
        train,
        test,
        c,
        seed=seed,
        step=step,
        progress=lambda done, _, info: progress(done, total, info),
    )
    recovery = RecoveryConfig(
        c.epochs, c.batch, clip=c.clip, augment=c.augment, precision=c.precision
    )
    found = []
    for number, eta in enumerate(ETAS, 1):
        moved = recover(
            model,
            means.aux,
            eta,
            recovery,
            seed=seed,
            progress=lambda done, _, number=number, eta=eta: progress(
                number * c.epochs + done, total, {"eta": eta}
            ),
        )
        curves = new_curves()
        score(curves, hits(moved, batches(test, TEST_BATCH), precision=c.precision))
        curves["train_accuracy"] = [
            round(accuracy(moved, batches(train, TEST_BATCH), precision=c.precision), 3)
        ]
        found.append((curves["picking"][0], eta, curves))
    found.sort(key=lambda one: one[:2])
    joined = {name: [one[name][0] for *_, one in found] for name in new_curves() if name != "loss"}
    return {**joined, "loss": trained["loss"], "eta": found[-1][1]}


COUNTERMEASURE = Countermeasure("recovery", train=train, aux=True, cost=1.0 + len(ETAS))

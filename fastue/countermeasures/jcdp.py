"""JCDP (joint-conditional diffusion purification): noise to t = 19 of 1000 and back, four times,
guided by the protected picture, pixel by pixel and by its looks.

20 steps an iteration as published; `jcdp-2` takes 2. The published guidance is averaged over the
batch and so almost nothing at its batch size; here each step pulls the predicted picture 5 % of the
way to the protected one, and 5 % of the part of the way that makes them look alike, for each
picture on its own. Looks are the features of a small classifier of the auxiliary pictures, not
LPIPS; the noise has the posterior's variance instead of beta; and the network is fastue.purifiers'
small one, trained on the auxiliary pictures.
"""

from fastue.countermeasures._purified import countermeasure

COUNTERMEASURE = countermeasure("jcdp")


def variant(strength: str):
    """`jcdp-N`: N steps an iteration."""
    return countermeasure("jcdp", strength)

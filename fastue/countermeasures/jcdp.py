"""JCDP (joint-conditional diffusion purification): noise to t = 19 of 1000 and back, four times,
guided by the protected picture.

20 steps an iteration as published; `jcdp-2` takes 2. The published guidance is averaged over the
batch and so almost nothing at its batch size; here each step pulls the predicted picture 5 % of the
way to the protected one, for each picture on its own. No LPIPS guidance, the posterior's variance
instead of beta, and fastue.purifiers' small network, trained on the auxiliary pictures.
"""

from fastue.countermeasures._purified import countermeasure

COUNTERMEASURE = countermeasure("jcdp")


def variant(strength: str):
    """`jcdp-N`: N steps an iteration."""
    return countermeasure("jcdp", strength)

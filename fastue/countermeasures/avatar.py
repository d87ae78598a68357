"""AVATAR (Dolatabadi et al. 2023, The Devil's Advocate): noise to t = 100 of 1000, once, and back.

10 strided DDPM steps instead of 100 Euler steps of the reverse SDE, and fastue.purifiers' small
network, trained on the auxiliary pictures, instead of NCSN++. `avatar-100` takes all the steps.
"""

from fastue.countermeasures._purified import countermeasure

COUNTERMEASURE = countermeasure("avatar")


def variant(strength: str):
    """`avatar-N`: N steps."""
    return countermeasure("avatar", strength)

"""One call of a denoiser: noise to t = 60 of 1000, and the picture that the network sees in it.

The cheapest purification with a diffusion model, of no paper of its own; a lower end for AVATAR and
JCDP. The network is fastue.purifiers' small one, trained on the auxiliary pictures.
"""

from fastue.countermeasures._purified import countermeasure

COUNTERMEASURE = countermeasure("oneshot")

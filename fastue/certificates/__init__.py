"""Certified learnability: draws of a smoothed network, their statistics, and what may be said.

claim.py        what is chosen before the first draw (imports no torch: the flags' defaults)
declaration.py  declared.json, which keeps what was chosen from changing
smoothing.py    the draws · draws.py their logs · bounds.py their statistics
document.py     the content of certificate.json · text.py and plot.py say it to people
"""

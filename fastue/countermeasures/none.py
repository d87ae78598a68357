"""No countermeasure: the pictures as they are, the plain training step."""

from fastue.countermeasures.base import Countermeasure

COUNTERMEASURE = Countermeasure("none")

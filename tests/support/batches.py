"""What tests of batch jobs share."""

from tests.support.runs import noise

IMAGE = noise((20, 24, 40), dtype="int16")

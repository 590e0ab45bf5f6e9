"""What tests of `deploy/` share."""

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"

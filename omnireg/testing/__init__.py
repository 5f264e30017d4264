"""For authors of strategies: tiny checkpoints of one base, and a suite that a strategy must pass.

In a plugin's tests, one line:

    from omnireg.testing import omnireg_conformance

    TestPull = omnireg_conformance("pull")

The fixtures ``omnireg_family`` and ``omnireg_models`` come with omnireg's pytest plugin.
"""

from omnireg.testing.conformance import omnireg_conformance
from omnireg.testing.family import Family, make_family

__all__ = ["Family", "make_family", "omnireg_conformance"]

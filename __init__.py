"""Imitation and control as inference: Pyro models, guides and ELBOs.

The package has four rooms, each of which imports from those before it:

- `pyrocontrol.models`: what generates a demonstration, and the protocol of what acts;
- `pyrocontrol.guides`: what explains a demonstration, and policies for a reward;
- `pyrocontrol.envs`: Gymnasium environments and their teachers, demonstrations, acting;
- `pyrocontrol.inference`: ELBOs, training, learning from a teacher or from a reward, measuring.
"""

from torch.distributions import Distribution as _Distribution

# Some flow libraries turn off the validation of every torch distribution when they are imported. Whatever the
# rooms import, a user's setting stays as it was.
_validate_args = _Distribution._validate_args

from . import envs, guides, inference, models  # noqa: E402  (the setting has to be read first)
from ._saved import Saved, load  # noqa: E402

_Distribution.set_default_validate_args(_validate_args)

__version__ = "0.6.0"

__all__ = ["Saved", "__version__", "envs", "guides", "inference", "load", "models"]

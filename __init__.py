"""Imitation and control as inference: Pyro models, guides and ELBOs.

The library has four rooms:

- `pyrocontrol.models`: what generates a demonstration;
- `pyrocontrol.guides`: what explains one, the variational posteriors and policies;
- `pyrocontrol.inference`: ELBOs, the training loop and evaluation;
- `pyrocontrol.envs`: Gymnasium environments, their teachers, and demonstrations on disk.
"""

from torch.distributions import Distribution as _Distribution

# Some flow libraries turn off the validation of every torch distribution when they are imported. Whatever the
# rooms import, a user's setting stays as it was.
_validate_args = _Distribution._validate_args

from . import envs, guides, inference, models  # noqa: E402  (the setting has to be read first)

_Distribution.set_default_validate_args(_validate_args)

__version__ = "0.2.0"

__all__ = ["__version__", "envs", "guides", "inference", "models"]

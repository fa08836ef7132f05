"""Acting in an environment: collecting, evaluating, filming."""

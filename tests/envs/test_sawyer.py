"""Peg insertion: Gymnasium's contract, one seed one episode, and the expert."""

import sys

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

from pyrocontrol.envs import SawyerPeg, sawyer_peg_expert

pytest.importorskip("metaworld")


@pytest.mark.filterwarnings("ignore:.*Box observation space")
def test_gymnasium_accepts_it() -> None:
    check_env(SawyerPeg(), skip_render_check=True)


def test_the_expert_puts_the_peg_in_and_one_seed_is_one_episode() -> None:
    runs = []
    for seed, env in ((0, SawyerPeg()), (0, SawyerPeg()), (1, SawyerPeg())):
        observation, _ = env.reset(seed=7)  # what was before does not matter
        env.step(np.ones(4))
        observation, info = env.reset(seed=seed)
        assert not info["is_success"] and np.array_equal(observation[:18], observation[18:36])
        shown = [observation]
        for step in range(200):
            observation, reward, terminated, truncated, info = env.step(sawyer_peg_expert(observation))
            assert env.observation_space.contains(observation) and truncated == (step == 199) and not terminated
            shown.append(observation)
        assert info["is_success"] and reward == pytest.approx(10)
        with pytest.raises(RuntimeError, match="reset"):
            env.step(np.zeros(4))
        runs.append(np.stack(shown))
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0][0, -3:], runs[2][0, -3:])


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = SawyerPeg()
    env.reset(seed=0)
    for action in (np.zeros(3), np.full(4, np.nan)):
        with pytest.raises(ValueError, match="an action must"):
            env.step(action)
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'pyrocontrol-ppl\[metaworld\]'"):
        SawyerPeg()

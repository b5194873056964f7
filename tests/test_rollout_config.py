"""What a rollout may be told."""

import pytest

from kubevox.config import DeployConfig, RolloutConfig
from kubevox.config.explain import parse_section
from kubevox.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"steps": [50, 10]}, r"rollout\.steps.*each step must be above the one before"),
        ({"steps": [10, 10]}, "each step must be above the one before"),
        ({"steps": [0]}, r"rollout\.steps\.0"),
        ({"steps": [100]}, r"rollout\.steps\.0"),
        ({"steps": []}, r"rollout\.steps"),
        ({"dwell_s": 200}, r"rollout\.dwell_s.*must not exceed max_s = 120"),
        ({"errors": {"acceptable": 0.1}}, r"rollout\.errors\.acceptable.*must be below unacceptable = 0\.04"),
        ({"confidence": 1.0}, r"rollout\.confidence"),
        ({"share_margin": 0.0}, r"rollout\.share_margin"),
        ({"undecided": "wait"}, r"rollout\.undecided"),
        ({"uar_margn": 0.1}, r"did you mean 'rollout\.uar_margin'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(section, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_section(DeployConfig, {"rollout": section}, "deploy")
    assert len(str(caught.value).splitlines()) == 1


def test_the_defaults_of_a_rollout_fit_together():
    config = RolloutConfig()
    assert config.steps == [10, 50]
    assert RolloutConfig.from_json(config.to_json()) == config

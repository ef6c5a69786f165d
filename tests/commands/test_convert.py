"""What does not become an official file; what does is in tests/model/test_official.py."""

import numpy as np
import pytest
from toys import CONFIG

from jit_jax.commands import convert
from jit_jax.errors import UserError
from jit_jax.training.weights import write_weights


def test_only_a_network_that_predicts_x_becomes_an_official_file(tmp_path):
    config = {**CONFIG, 'diffusion': {'noise_scale': 1.0, 'predict': 'v'}}
    write_weights(tmp_path / 'run', config, {'w': np.zeros(2, np.float32)}, {})
    with pytest.raises(UserError, match='predicts v .config.diffusion.predict.*become a .pth'):
        convert.to_pth(tmp_path / 'run', tmp_path / 'back.pth')
    assert not (tmp_path / 'back.pth').exists()

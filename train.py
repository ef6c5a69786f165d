"""`python train.py --config=configs/uncond.py` in a clone is `jit-jax train --config=uncond`
anywhere.
"""

import sys

from jit_jax.__main__ import main
from jit_jax.commands import environment

if __name__ == '__main__':
    environment.restart_with_variables()
    main(['train', *sys.argv[1:]])

"""Generative models in JAX: one State, one training loop, one evaluation suite."""

import time as _time

IMPORTED = _time.time()  # when this process began to load, for reports of start-up time

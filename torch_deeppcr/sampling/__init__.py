# SPDX-License-Identifier: Apache-2.0
"""Denoising loops in parallel over their steps.

- `schedule`: a sampler as a table of coefficients, and its step maps
- `schedulers`: diffusers' schedulers, read as such a table
- `noise`: the loop's noise, drawn ahead of it
- `model`: calls of a denoiser on rows of several steps
- `solve`: Newton's method on a window of steps
- `sample`: the public function, its plan and its report
- `replay`: the same inside of an untouched diffusers pipeline
"""

from .plan import SampleInfo, SamplePlan
from .replay import Replay, parallel_sampling
from .sample import sample
from .schedule import Corrector, Schedule

__all__ = [
    "Corrector",
    "Replay",
    "SampleInfo",
    "SamplePlan",
    "Schedule",
    "parallel_sampling",
    "sample",
]

# SPDX-License-Identifier: Apache-2.0
"""Chains inside of the models that people have.

reading    modules that are applied one after another -> runs of equal steps, and why not
steps      what a step is; how a block of yours is described
verify     a description against the block's own forward
chain      one run as it is called: live parameters, the operator or the loop
guard      whether the modules still are what was read
stack      the parameters of a run as rows of a few
containers ParallelSequential, ParallelModuleList
applied    whether a forward applies a ModuleList in order
replace    parallelize, unparallelize
report     what became of everything
"""

from . import steps
from .reading import register_block
from .replace import parallelize, unparallelize
from .report import Report, report

__all__ = ["Report", "parallelize", "register_block", "report", "steps", "unparallelize"]

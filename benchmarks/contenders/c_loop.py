# SPDX-License-Identifier: Apache-2.0
"""A plain loop in C, compiled here and now: what one gets without any library."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from problems import Problem
from torch import Tensor

from . import Contender, Run

SOURCE = Path(__file__).with_name("c_loop.c")
# Sums in any order, so that they can be vectorised; without what -ffast-math does to denormals.
FLAGS = "-O3 -march=native -fassociative-math -fno-signed-zeros -fno-trapping-math".split()


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class CLoop(Contender):
    name = "C loop"
    title = "C, a plain loop for this width, cc -O3 -march=native"

    def cannot(self, problem: Problem) -> str:
        if problem.is_chain:
            return "recurrences only"
        if problem.trains:
            return "it has no backward"
        if problem.device != "cpu":
            return "CPU only"
        return "" if compiler() else "no C compiler: neither cc, gcc nor clang"

    def prepare(self, problem: Problem) -> Run:
        blocks, b = problem.leaves
        x = torch.empty_like(b)
        # A loaded library stays readable when its file is gone.
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / "c_loop.so")
            command = [compiler() or "cc", *FLAGS, f"-DW={problem.width}", "-shared", "-fPIC"]
            subprocess.run([*command, "-o", library, str(SOURCE)], check=True, capture_output=True)
            function = getattr(ctypes.CDLL(library), problem.kind)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (blocks, b, x)]
        sizes = [ctypes.c_long(n) for n in (problem.length, problem.batch)]

        def call() -> Tensor:
            function(*sizes, *pointers)
            return x  # and so x lives as long as this function

        return Run(call, lambda: [call().clone()])


CONTENDERS = (CLoop(),)

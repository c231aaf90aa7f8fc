# SPDX-License-Identifier: Apache-2.0
"""Whether modules still are what they were when they were read, asked at every call.

Modules can change behind their container's back: a layer replaced, a hook registered, a class
swapped (parametrizations, LoRA, FSDP), an attribute set.  Per module this costs what a dictionary
access does, so that ten thousand of them cost a millisecond: every question is one pass in C.
Stacked layers are ours and count their changes themselves.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as _module
from torch.utils.hooks import RemovableHandle
from torch.utils.module_tracker import ModuleTracker

from .reading import active_dropout, touched
from .stack import stack_of

_SIMPLE = (bool, int, float, str, type(None))
#: Read at every call anyway (parameters), or without attributes that change what is computed.
_UNWATCHED = (nn.Linear, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Identity)


class Guard:
    """containers: those that were opened.  modules: all that were read, also inside of blocks."""

    def __init__(self, containers: list[nn.Module], modules: list[nn.Module]) -> None:
        self.children = [(c._modules, list(c._modules.values())) for c in containers]
        self.modules = modules
        self.stacks = list({id(s): s for s in map(stack_of, modules) if s}.values())
        self.changes = [stack.changes for stack in self.stacks]
        self.foreign = [module for module in modules if stack_of(module) is None]
        self.types = list(map(type, self.foreign))
        self.states = list(map(vars, self.foreign))
        self.sizes = list(map(len, self.states))
        self.watched = [
            (state, name)
            for module, state in zip(self.foreign, self.states, strict=True)
            if not isinstance(module, _UNWATCHED)
            for name, value in state.items()
            if name != "training" and isinstance(value, _SIMPLE)
        ]
        self.values = self._watch()
        self.dropouts = [m for m in modules if hasattr(m, "p") and hasattr(m, "training")]
        self.active = list(map(active_dropout, self.dropouts))
        self.touched = [(m, touched(m)) for m in modules if touched(m)]
        self.handles = RemovableHandle.next_id

    def holds(self) -> bool:
        for now, then in self.children:
            if list(now.values()) != then:
                return False
        if [stack.changes for stack in self.stacks] != self.changes:
            return False
        if list(map(type, self.foreign)) != self.types or list(map(len, self.states)) != self.sizes:
            return False
        if self.watched and self._watch() != self.values:
            return False
        if self.dropouts and list(map(active_dropout, self.dropouts)) != self.active:
            return False
        return self._same_hooks()

    def _watch(self) -> list[Any]:
        return [state.get(name) for state, name in self.watched]

    def _same_hooks(self) -> bool:
        if any(touched(module) != reason for module, reason in self.touched):
            return False
        if self.handles != RemovableHandle.next_id:  # some hook was registered somewhere
            if len(self.touched) != sum(map(bool, map(touched, self.modules))):
                return False
            self.handles = RemovableHandle.next_id
        return True


def global_hooks() -> bool:
    """Whether hooks for all modules of the process are registered.

    Those of torch.utils.module_tracker (FLOP counters) only note which module is running.
    """
    forward = (*_module._global_forward_hooks.values(), *_module._global_forward_pre_hooks.values())
    if any(not isinstance(getattr(hook, "__self__", None), ModuleTracker) for hook in forward):
        return True
    return bool(_module._global_backward_hooks or _module._global_backward_pre_hooks)

"""The way from a kernel's Python to machine code: what numba does by default, without what is not needed here.

Compiling a kernel is nearly all of what a first reply waits for (docs/experiments.md). Parts of kernels are never made
into machine code by themselves, and optimized where they end up; passes for what no kernel has (closures, `with`,
expressions of whole arrays) are left out; garbage is not collected meanwhile. Not here: which function is compiled how,
and where the result is kept (`compiled`). Kernels of several threads take numba's own way.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import numba
from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass

_numba: Any = numba  # no types are known of what it has compiled itself


@contextlib.contextmanager
def _keeping_garbage() -> Iterator[None]:
    """A compiler makes many objects that live until it is done: looking for garbage among them takes a tenth more."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _Whole(JITCodeLibrary):
    """Code optimized once, with all its parts in it."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout
        manager, builder = self._codegen._function_pass_manager()
        for function in ll_module.functions:
            if not function.is_declaration:
                manager.run(function, builder)

    def _optimize_final_module(self) -> None:
        manager, builder = self._codegen._module_pass_manager()
        manager.run(self._final_module, builder)


class _Part(_Whole):
    """Code that is only linked into other code."""

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerWhole(typed_passes.NativeLowering):
    _name = "lower_whole"

    def run_pass(self, state: Any) -> bool:
        state.library = _Whole(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return super().run_pass(state)


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(typed_passes.NativeLowering):
    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        state.library = library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        done = super().run_pass(state)
        library.finalize()
        description, _, _, environment = state["cr"]
        # numba finds a function by its entry, so each has one, though there is nothing to enter
        entry = _numba._dynfunc.make_function(description.lookup_module(), description.qualname, "", 0, environment, ())
        state.targetctx.insert_user_function(entry, description, [library])
        state["cr"] = state["cr"]._replace(cfunc=entry)
        return done


def _passes(state: Any, lower: type) -> PassManager:
    manager = PassManager("kernel")
    for each, purpose in (
        (untyped_passes.TranslateByteCode, "read bytecode"),
        (untyped_passes.FixupArgs, "arguments"),
        (untyped_passes.IRProcessing, "control flow"),
        (untyped_passes.DeadBranchPrune, "branches that constants rule out"),
        (untyped_passes.GenericRewrites, "constant indices"),
        (untyped_passes.ReconstructSSA, "single assignment"),
        (typed_passes.NopythonTypeInference, "types"),
        (typed_passes.PreLowerStripPhis, "no phi nodes"),
        (typed_passes.IRLegalization, "ends of lives"),
        (typed_passes.AnnotateTypes, "what the next two report"),
        (lower, "LLVM's code"),
        (typed_passes.NoPythonBackend, "the result"),
    ):
        manager.add_pass(each, purpose)
    manager.finalize()
    return manager


class WholeCompiler(CompilerBase):
    """Of kernels on one thread that Python calls."""

    def define_pipelines(self) -> list[PassManager]:
        return [_passes(self.state, _LowerWhole)]

    def compile_extra(self, func: Any) -> Any:
        with _keeping_garbage():
            return super().compile_extra(func)


class PartCompiler(CompilerBase):
    """Of what only kernels call."""

    def define_pipelines(self) -> list[PassManager]:
        return [_passes(self.state, _LowerPart)]


class ParallelCompiler(Compiler):
    """Of kernels on several threads."""

    def compile_extra(self, func: Any) -> Any:
        with _keeping_garbage():
            return super().compile_extra(func)

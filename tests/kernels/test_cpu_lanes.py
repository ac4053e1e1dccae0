"""The numba kernels as other processors get them: run with narrower registers, and compiled for ARM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from numba.core.registry import cpu_target

CHECKOUT = Path(__file__).parents[2]
HAS = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
SSE = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16"
AVX = f"{SSE},+avx,+xsave"
PROCESSORS = {  # lanes, LLVM's name, features
    "SSE": (4, "nehalem", SSE),  # no FMA, no F16C
    "AVX": (8, "sandybridge", AVX),  # no FMA, no F16C
    "AVX2": (8, "haswell", f"{AVX},+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"),
}
# Every number of states that needs groups of its own, all dtypes, states, whole rows and parts of registers.
CASES = (
    "any_length or any_channel or half_precision or states or extreme or not_finite or conv or threads or cannot_run "
    "or projected"
)
RUN = """
import sys, pytest
from visionssm_kernels.cpu.simd import LANES
assert LANES == int(sys.argv[1]), LANES
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/kernels/test_cpu.py", "-k", sys.argv[2]]))
"""


def run(script, *arguments, **environment):
    paths = os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "kernels")))
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=CHECKOUT, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", PROCESSORS)
def test_kernels_of_narrower_registers(name, tmp_path):
    lanes, processor, features = PROCESSORS[name]
    if not set(features.split(",")) <= HAS:
        pytest.skip(f"this processor cannot run {name}")
    kept = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    assert " passed" in run(RUN, str(lanes), CASES, **kept)


# The kernels are written for one processor and translated for another. What they call there that they did not declare would be
# a library function, which numba may not know: that ends the process.
TRANSLATE = """
import re, sys
import llvmlite.binding as llvm
from numba.core.codegen import CPUCodeLibrary, JITCPUCodegen

triple, features = sys.argv[1:]
host = JITCPUCodegen.magic_tuple
JITCPUCodegen.magic_tuple = lambda self: (triple, "", features)
from visionssm_kernels.cpu import probe, simd, warmup
JITCPUCodegen.magic_tuple = host
assert simd.LANES == 4, simd.LANES

modules, optimise = {}, CPUCodeLibrary._optimize_final_module
def record(library):
    modules[library.name] = str(library._final_module)
    optimise(library)
CPUCodeLibrary._optimize_final_module = record
warmup()
assert probe.why_broken() is None

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=3)
kernels = [name for name in modules if name.startswith(("forward_", "backward_", "convolve_", "_sample_"))]
assert len(kernels) == 6, kernels  # with and without states
for name in kernels:
    # numba's own reference counting comes translated for this processor
    text = re.sub(r"(tail )?call i8 @llvm\\.x86\\.atomic\\.sub\\.cc.*", "add i8 0, 0", modules[name])
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    known = {f.name for f in module.functions} | {"memcpy", "memset", "memmove"}
    foreign = {f.name for f in module.functions if f.is_declaration}
    foreign = {n for n in foreign if not n.startswith(("llvm.", "NRT_", "numba_", "Py", "_Py"))}
    assembly = machine.emit_assembly(module)
    called = {n for n in re.findall(r"^\\s+bl?\\s+([\\w.$]+)", assembly, re.M)}
    called = {n.removeprefix("_") if "apple" in triple else n for n in called}
    unknown = {n for n in called if not n.startswith((".LBB", "LBB"))} - known - foreign
    vectors = assembly.count(".4s") or assembly.count("fmla.4s")
    print(f"{name}: {len(assembly.splitlines())} lines, {vectors} vector instructions, {foreign=}, {unknown=}")
    assert vectors > 20
    assert not unknown and foreign <= {"memcpy", "memset", "memmove"}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "arm64-apple-darwin"])
def test_translation_for_arm_calls_nothing_unknown(triple, tmp_path):
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    try:
        llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"this LLVM has no {triple}")
    print(run(TRANSLATE, triple, "+neon,+fp-armv8", NUMBA_CACHE_DIR=str(tmp_path)))

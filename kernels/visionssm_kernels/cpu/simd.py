"""A float32 vector type for numba: explicit SIMD, because numba's loops over gathered rows do not vectorise by themselves.

`LANES` float32 values fill one register of this CPU (16 AVX-512, 8 AVX, 4 NEON and SSE). Addresses are plain int64; every
function here is a numba intrinsic that emits LLVM IR, and the `Emitter` is what longer ones (the loops over
steps in `loops.py`) are written with. A count `n` of valid lanes makes an access that never touches memory beyond them.
"""

from __future__ import annotations

import inspect
import math
import struct
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

__all__ = [
    "BF16",
    "F16",
    "F32",
    "LANES",
    "MASKS",
    "Emitter",
    "add",
    "atomic_next",
    "copy_positions",
    "count_positions",
    "div",
    "exp2",
    "fma",
    "fresh_float_mode",
    "last_position",
    "load",
    "load_float",
    "load_int",
    "load_long",
    "mul",
    "operation",
    "positional",
    "prefetch",
    "prefetch_to_write",
    "restore_float_mode",
    "sigmoid",
    "silu",
    "softplus",
    "splat",
    "store",
    "store_float",
    "store_short_zero",
    "sub",
    "total",
    "transpose",
    "vec",
    "zeros",
]  # fmt: skip

_T = TypeVar("_T")

F32, BF16, F16 = 0, 1, 2  # how a tensor's elements are stored

_triple, _, _features = cpu_target.target_context.codegen().magic_tuple()
_HAS = {name[1:] for name in _features.split(",") if name.startswith("+")}
_AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= _HAS
_X86 = _triple.split("-")[0] in ("x86_64", "i686")
LANES: int = 16 if _AVX512 else 8 if "avx" in _HAS else 4
MASKS: bool = _AVX512  # a vector of which some lanes are left out is loaded and stored as fast as any
ARCHITECTURE: str = _triple.split("-")[0]
_FMA = not _X86 or "fma" in _HAS
_HALF = not _X86 or "f16c" in _HAS  # else LLVM would call a library that numba does not load, and end the process

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_FLOAT = ir.FloatType()
_VEC = ir.VectorType(_FLOAT, LANES)
_IVEC = ir.VectorType(_I32, LANES)
_LOG2E = math.log2(math.e)
_LN2_HIGH = 0.693145751953125  # 16 bits of ln 2: times a small integer it is exact
_LN2_LOW = math.log(2) - _LN2_HIGH


def _bits(x: float) -> int:
    """Of a float32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", x))
    return bits


# 2^f on [-1/2, 1/2], relative error 2.0e-9; the constant term is 1, so a decay near 1 is as exact as float32 allows. One
# degree less (9e-8) is no faster to speak of and doubles the error of the gradients.
_EXP2 = (1.0, 0.69314718, 0.24022648, 0.055503324, 0.0096184369, 0.0013398875, 0.00015353362)
# exp on [-ln 2 / 2, ln 2 / 2], relative error 2.0e-9.
_EXP = (1.0, 1.0, 0.49999994, 0.16666431, 0.041668004, 0.0083741787, 0.0013843627)
# log1p(e) / e on [0, 1], relative error 5.1e-9.
_LOG1P = (
    1.0, -0.49999931, 0.33330512, -0.24958587, 0.196954, -0.15355395, 0.10680553, -0.057664413, 0.020204568, -0.0033184686
)  # fmt: skip

# AVX-512 looks a value up in one or two registers by the low four or five bits of each lane, beside its multiplications, of
# which short polynomials around the values of a table need fewer.
_POWERS = tuple(2.0 ** (k / 16) for k in range(16))
# (2^r - 1) / r for a distance of at most 1/32 of a doubling, error 2.3e-9.
_EXP2_NEAR = (0.69314718, 0.24023355, 0.05550541)
# (exp(r) - 1) / r for half that distance, error 5.3e-8 of exp(r). A decay near 1 needs more: here the value itself counts.
_EXP_NEAR = (1.0000147, 0.49999997)
# The bits of 2^(k / 32), less the bits of k that `power_32nds` adds with the exponent.
_POWER_BITS = tuple(_bits(2.0 ** (k / 32)) - (k << 18) for k in range(32))
# log1p(u) / u on [-1/32, 1/30], relative error 3.8e-8, for 1 + u = (1 + e) / (1 + w) where w is about the fifteenth nearest to e
# in [0, 1]: 1 / (1 + w) has few bits, so that u is rounded once.
_LOG1P_NEAR = (1.0, -0.50000036, 0.33350492, -0.24935313)
_INVERSE = tuple(round(1024 / (1 + k / 15)) / 1024 for k in range(16))
_MINUS_LOG_INVERSE = tuple(-math.log(x) for x in _INVERSE)


class VecType(types.Type):
    """numba's type of one register of float32."""

    def __init__(self) -> None:
        super().__init__(name=f"Vec{LANES}")


vec = VecType()


@register_model(VecType)
class _VecModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _VEC)


class Emitter:
    """Writes LLVM IR for vectors; `i` arguments are int64 values (addresses, counts), the rest vectors."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def constant(self, value: float, kind: ir.VectorType = _VEC) -> ir.Constant:
        return ir.Constant(kind, [value] * kind.count)

    def offset(self, i_address: ir.Value, i_index: ir.Value | int, i_stride: ir.Value | int) -> ir.Value:
        index, stride = (ir.Constant(_I64, x) if isinstance(x, int) else x for x in (i_index, i_stride))
        return self.b.add(i_address, self.b.mul(index, stride))

    def pointer(self, i_address: ir.Value, kind: ir.Type) -> ir.Value:
        return self.b.inttoptr(i_address, kind.as_pointer())

    def load(self, i_address: ir.Value, kind: ir.Type = _VEC) -> ir.Value:
        return self.b.load(self.pointer(i_address, kind), align=2 if "i16" in str(kind) else 4)

    def store(self, value: ir.Value, i_address: ir.Value) -> None:
        self.b.store(value, self.pointer(i_address, value.type), align=2 if "i16" in str(value.type) else 4)

    def load_part(self, i_address: ir.Value, mask: ir.Value) -> ir.Value:
        return self.load_as(F32, i_address, mask)

    def load_as(self, kind: int, i_address: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """Floats stored as F32, BF16 or F16; zero where there is a mask and it is not set, and memory there is not touched."""
        wide, code = _element(kind)
        if mask is None:
            raw = self.load(i_address, wide)
        else:
            pointer, align = self.pointer(i_address, wide), ir.Constant(_I32, 4 if kind == F32 else 2)
            nothing = self.constant(0.0) if kind == F32 else self.constant(0, wide)
            raw = self.call(f"llvm.masked.load.v{LANES}{code}.p0", wide, pointer, align, mask, nothing)
        return raw if kind == F32 else _to_float(self, raw, kind)

    def store_part(self, value: ir.Value, i_address: ir.Value, mask: ir.Value) -> None:
        align, pointer = ir.Constant(_I32, 4), self.pointer(i_address, _VEC)
        self.call(f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), value, pointer, align, mask)

    def store_all(self, values: Sequence[ir.Value], i_address: ir.Value) -> None:
        """Vectors one after the other, by one address and its distances, which LLVM would not find by itself."""
        first = self.pointer(i_address, values[0].type)
        for n, value in enumerate(values):
            self.b.store(value, self.b.gep(first, [ir.Constant(_I64, n)]), align=4)

    def splat(self, scalar: ir.Value) -> ir.Value:
        one = self.b.insert_element(ir.Constant(_VEC, ir.Undefined), scalar, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, ir.Constant(_VEC, ir.Undefined), ir.Constant(_IVEC, [0] * LANES))

    def load_splat(self, i_address: ir.Value) -> ir.Value:
        return self.splat(self.load(i_address, _FLOAT))

    def call(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [a.type for a in args])
        function = self.b.module.globals.get(name) or ir.Function(self.b.module, kind, name)
        return self.b.call(function, args)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        if not _FMA:  # rounded twice: LLVM would call a library function, lane by lane
            return self.b.fadd(self.b.fmul(x, y), z)
        return self.call(f"llvm.fma.v{LANES}f32", _VEC, x, y, z)

    def prefetch(self, i_address: ir.Value, *, write: bool = False) -> None:
        hints = (ir.Constant(_I32, x) for x in (int(write), 3, 1))  # into all levels, data
        self.call("llvm.prefetch.p0", ir.VoidType(), self.pointer(i_address, _I8), *hints)

    def mask(self, i_count: ir.Value) -> ir.Value:
        """The first `i_count` lanes: any number below 2^31, also a negative one."""
        count = self.b.trunc(i_count, _I32)
        one = self.b.insert_element(ir.Constant(_IVEC, ir.Undefined), count, ir.Constant(_I32, 0))
        counts = self.b.shuffle_vector(one, ir.Constant(_IVEC, ir.Undefined), ir.Constant(_IVEC, [0] * LANES))
        return self.b.icmp_signed("<", ir.Constant(_IVEC, list(range(LANES))), counts)

    def select(self, condition: str, x: ir.Value, y: ir.Value) -> ir.Value:
        """x if `x condition y` else y: y where either is NaN."""
        return self.b.select(self.b.fcmp_ordered(condition, x, y), x, y)

    def polynomial(self, coefficients: Sequence[float], x: ir.Value) -> ir.Value:
        value = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            value = self.fma(value, x, self.constant(coefficient))
        return value

    def exp2(self, z: ir.Value, factor: ir.Value | None = None) -> ir.Value:
        """2^z, or 2^(z factor): 0 below -126.5, inf from 127.5 on (AVX-512: to the ends of float32), NaN for NaN."""
        z = z if factor is None else self.b.fmul(z, factor)
        if _AVX512:
            step, at = self.to_grid(z, 16)
            value = self.near(self.look_up(_POWERS, at), _EXP2_NEAR, self.b.fsub(z, step))
            # -inf leaves NaN here, which scalef takes to 0 for a step of -inf, as it should
            every, mode = ir.Constant(ir.IntType(16), 0xFFFF), ir.Constant(_I32, 4)  # times 2 to the floor of step
            return self.call("llvm.x86.avx512.mask.scalef.ps.512", _VEC, value, step, value, every, mode)
        z = self.select("<", self.constant(128.0), self.select(">", self.constant(-127.0), z))
        whole, power = self.nearest(z)
        return self.b.fmul(self.polynomial(_EXP2, self.b.fsub(z, whole)), power)

    def to_grid(self, x: ir.Value, parts: int, factor: ir.Value | None = None) -> tuple[ir.Value, ir.Value]:
        """x (times a factor) to the nearest multiple of 1 / parts, a power of two, and which one, in the low bits of integers."""
        magic = self.constant(1.5 * 2**23 / parts)  # its last bit is worth 1 / parts
        shifted = self.b.fadd(x, magic) if factor is None else self.fma(x, factor, magic)
        return self.b.fsub(shifted, magic), self.b.bitcast(shifted, _IVEC)

    def look_up(self, table: Sequence[float], at: ir.Value) -> ir.Value:
        """table[at % 16] (AVX-512)."""
        return self.call("llvm.x86.avx512.permvar.sf.512", _VEC, ir.Constant(_VEC, list(table)), at)

    def power_32nds(self, at: ir.Value) -> ir.Value:
        """2^(k / 32) for number `at` = k of `to_grid`, k from -127 * 32 on (AVX-512)."""
        low, high = (ir.Constant(_IVEC, list(part)) for part in (_POWER_BITS[:16], _POWER_BITS[16:]))
        bits = self.call("llvm.x86.avx512.vpermi2var.d.512", _IVEC, low, at, high)
        return self.b.bitcast(self.b.add(bits, self.b.shl(at, self.constant(18, _IVEC))), _VEC)

    def near(self, power: ir.Value, change: Sequence[float], rest: ir.Value) -> ir.Value:
        """A power of a table times 1 + rest change(rest)."""
        return self.fma(power, self.b.fmul(self.polynomial(change, rest), rest), power)

    def nearest(self, z: ir.Value) -> tuple[ir.Value, ir.Value]:
        """n and 2^n, n the integer nearest to z, for z in [-127, 128]; 2^-127 is 0 and 2^128 inf."""
        magic = self.constant(12582912.0 + 127)  # 1.5 * 2^23: adding it leaves n + 127, an exponent, in the low bits
        shifted = self.b.fadd(z, magic)
        exponent = self.b.shl(self.b.bitcast(shifted, _IVEC), self.constant(23, _IVEC))
        return self.b.fsub(shifted, magic), self.b.bitcast(exponent, _VEC)

    def exp_of_minus_abs(self, x: ir.Value) -> ir.Value:
        """exp(-|x|) to float32 accuracy: what is left of |x| after n ln 2 is computed in two parts."""
        minus = self.b.fneg(self.call(f"llvm.fabs.v{LANES}f32", _VEC, x))
        minus = self.select(">", self.constant(-87.5), minus)
        if _AVX512:
            step, at = self.to_grid(minus, 32, self.constant(_LOG2E))
            rest = self.fma(step, self.constant(-_LN2_HIGH), minus)
            rest = self.fma(step, self.constant(-_LN2_LOW), rest)
            return self.near(self.power_32nds(at), _EXP_NEAR, rest)
        whole, power = self.nearest(self.b.fmul(minus, self.constant(_LOG2E)))
        rest = self.fma(whole, self.constant(-_LN2_HIGH), minus)
        return self.b.fmul(self.polynomial(_EXP, self.fma(whole, self.constant(-_LN2_LOW), rest)), power)

    def softplus(self, x: ir.Value) -> ir.Value:
        return self.softplus_of(x, self.exp_of_minus_abs(x))

    def softplus_of(self, x: ir.Value, e: ir.Value) -> ir.Value:
        """softplus(x) where exp(-|x|) is known."""
        above = self.select(">", x, self.constant(0.0))
        if not _AVX512:
            return self.fma(e, self.polynomial(_LOG1P, e), above)
        _, at = self.to_grid(e, 1, self.constant(15.0))
        inverse = self.look_up(_INVERSE, at)
        u = self.fma(e, inverse, self.b.fsub(inverse, self.constant(1.0)))
        return self.fma(u, self.polynomial(_LOG1P_NEAR, u), self.b.fadd(self.look_up(_MINUS_LOG_INVERSE, at), above))

    def sigmoid(self, x: ir.Value) -> ir.Value:
        return self.sigmoid_of(x, self.exp_of_minus_abs(x))

    def sigmoid_of(self, x: ir.Value, e: ir.Value) -> ir.Value:
        """sigmoid(x) where exp(-|x|) is known."""
        one = self.constant(1.0)
        top, below = self.b.select(self.b.fcmp_unordered(">=", x, self.constant(0.0)), one, e), self.b.fadd(one, e)
        if not _AVX512:
            return self.b.fdiv(top, below)
        every = ir.Constant(ir.IntType(16), 0xFFFF)
        inverse = self.call("llvm.x86.avx512.rcp14.ps.512", _VEC, below, below, every)
        inverse = self.fma(inverse, self.fma(self.b.fneg(below), inverse, one), inverse)  # 14 bits are now 28
        return self.b.fmul(top, inverse)

    def silu(self, x: ir.Value) -> ir.Value:
        e = self.exp2(self.b.fmul(x, self.constant(-_LOG2E)))  # inf for very negative x: the quotient is 0
        return self.b.fdiv(x, self.b.fadd(e, self.constant(1.0)))

    def interleaved(self, chains: Sequence[Callable[[], _T]]) -> list[_T]:
        """What the calls return, their instructions in turn: a processor looks too few ahead to overlap long chains by itself.

        The chains must be independent and without branches.
        """
        block, parts, results = self.b.block.instructions, [], []
        for chain in chains:
            start = len(block)
            results.append(chain())
            parts.append(block[start:])
            del block[start:]
        block.extend(i for turn in zip_longest(*parts) for i in turn if i is not None)
        return results

    def sums(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """One vector of the horizontal sums of a power of two of vectors: a tree of shuffles, about 3 operations each."""
        count = len(vectors)
        if count > LANES:
            half = count // 2
            return self.shuffle(self.sums(vectors[:half]), self.sums(vectors[half:]), range(count))
        apart = 1  # lanes of this distance are added: from neighbours, of which one comes from each of two vectors, up to halves
        while len(vectors) > 1:
            own = [i if i & apart == 0 else LANES + i for i in range(LANES)]
            other = [i + apart if i & apart == 0 else LANES + i - apart for i in range(LANES)]
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self.b.fadd(self.shuffle(p, q, own), self.shuffle(p, q, other)) for p, q in pairs]
            apart *= 2
        (total,) = vectors
        half = LANES // 2
        while half >= count:
            first, second = (range(k, k + half) for k in (0, half))
            total = self.b.fadd(self.shuffle(total, total, first), self.shuffle(total, total, second))
            half //= 2
        return total

    def transposed(self, vectors: Sequence[ir.Value]) -> list[ir.Value]:
        """LANES vectors as the rows of a square, to its columns: perfect shuffles of the first half with the second."""
        half = LANES // 2
        low, high = ([k + i // 2 + LANES * (i % 2) for i in range(LANES)] for k in (0, half))
        for _ in range(LANES.bit_length() - 1):
            pairs = list(zip(vectors[:half], vectors[half:], strict=True))
            vectors = [self.shuffle(x, y, lanes) for x, y in pairs for lanes in (low, high)]
        return list(vectors)

    def shuffle(self, x: ir.Value, y: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def loop(
        self,
        i_count: ir.Value,
        carried: Sequence[ir.Value],
        body: Callable[..., Sequence[ir.Value]],
        *,
        backwards: bool = False,
    ) -> list[ir.Value]:
        """Runs body(i_index, *carried) -> carried for every index; the values are phis, so they stay in registers."""
        b, before = self.b, self.b.block
        head, inside, after = (b.append_basic_block(f"steps.{part}") for part in ("head", "body", "end"))
        b.branch(head)
        b.position_at_end(head)
        count = b.phi(_I64)
        count.add_incoming(ir.Constant(_I64, 0), before)
        values = [b.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", count, i_count), inside, after)
        b.position_at_end(inside)
        last = b.sub(i_count, ir.Constant(_I64, 1))
        new = body(b.sub(last, count) if backwards else count, *values)
        count.add_incoming(b.add(count, ir.Constant(_I64, 1)), b.block)
        for phi, value in zip(values, new, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values


def positional(count: int) -> inspect.Signature:
    """The signature of an intrinsic's typing function; numba would pack `*args` into a tuple."""
    names = ["typingctx", *(f"value_{i}" for i in range(count))]
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])


def operation(result: types.Type, *parameters: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Makes emit(Emitter, *values) callable from numba code, with this signature."""

    def wrap(emit: Callable[..., Any]) -> Any:
        def typed(typingctx: Any, *args: types.Type) -> tuple[Any, Callable[..., Any]]:
            def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> Any:
                value = emit(Emitter(builder), *values)
                return context.get_dummy_value() if value is None else value

            return result(*parameters), codegen

        typed.__name__ = typed.__qualname__ = emit.__name__
        typed.__doc__ = emit.__doc__
        typed.__signature__ = positional(len(parameters))  # type: ignore[attr-defined]
        return intrinsic(typed)

    return wrap


_i64, _f32, _void = types.int64, types.float32, types.void


@operation(vec)
def zeros(e: Emitter) -> ir.Value:
    return e.constant(0.0)


@operation(vec, _f32)
def splat(e: Emitter, x: ir.Value) -> ir.Value:
    return e.splat(x)


@operation(vec, vec, vec)
def add(e: Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    return e.b.fadd(x, y)


@operation(vec, vec, vec)
def sub(e: Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    return e.b.fsub(x, y)


@operation(vec, vec, vec)
def mul(e: Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    return e.b.fmul(x, y)


@operation(vec, vec, vec)
def div(e: Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    return e.b.fdiv(x, y)


@operation(vec, vec, vec, vec)
def fma(e: Emitter, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return e.fma(x, y, z)


@operation(vec, vec)
def exp2(e: Emitter, x: ir.Value) -> ir.Value:
    return e.exp2(x)


@operation(_f32, vec)
def total(e: Emitter, x: ir.Value) -> ir.Value:
    """The sum of the lanes."""
    return e.b.extract_element(e.sums([x]), ir.Constant(_I32, 0))


@operation(vec, vec)
def softplus(e: Emitter, x: ir.Value) -> ir.Value:
    return e.softplus(x)


@operation(vec, vec)
def sigmoid(e: Emitter, x: ir.Value) -> ir.Value:
    return e.sigmoid(x)


@operation(vec, vec)
def silu(e: Emitter, x: ir.Value) -> ir.Value:
    return e.silu(x)


@operation(vec, _i64)
def load(e: Emitter, address: ir.Value) -> ir.Value:
    return e.load(address)


@operation(_void, vec, _i64)
def store(e: Emitter, value: ir.Value, address: ir.Value) -> None:
    e.store(value, address)


@operation(_f32, _i64)
def load_float(e: Emitter, address: ir.Value) -> ir.Value:
    return e.load(address, _FLOAT)


@operation(_void, _f32, _i64)
def store_float(e: Emitter, value: ir.Value, address: ir.Value) -> None:
    e.store(value, address)


@operation(_i64, _i64)
def load_int(e: Emitter, address: ir.Value) -> ir.Value:
    """An int32 in memory."""
    return e.b.sext(e.load(address, _I32), _I64)


@operation(_i64, _i64)
def load_long(e: Emitter, address: ir.Value) -> ir.Value:
    """An int64 in memory."""
    return e.load(address, _I64)


def _each_ints(
    e: Emitter, address: ir.Value, count: ir.Value, start: Sequence[ir.Value], body: Callable[..., Any]
) -> Any:
    """Runs body(LANES int32 or -1 beyond, index of the first, mask, *carried) -> carried for `count` contiguous int32."""
    lanes = ir.Constant(_I64, LANES)

    def step(i: ir.Value, *carried: ir.Value) -> Sequence[ir.Value]:
        index = e.b.mul(i, lanes)
        mask, pointer = e.mask(e.b.sub(count, index)), e.pointer(e.offset(address, index, 4), _IVEC)
        name, align = f"llvm.masked.load.v{LANES}i32.p0", ir.Constant(_I32, 4)
        return body(e.call(name, _IVEC, pointer, align, mask, e.constant(-1, _IVEC)), index, mask, *carried)

    return e.loop(e.b.sdiv(e.b.add(count, ir.Constant(_I64, LANES - 1)), lanes), start, step)


@operation(_i64, _i64, _i64)
def count_positions(e: Emitter, address: ir.Value, count: ir.Value) -> ir.Value:
    """How many of `count` contiguous int32 are not negative."""

    def body(values: ir.Value, _index: ir.Value, _mask: ir.Value, total: ir.Value) -> list[ir.Value]:
        return [e.b.add(total, e.b.zext(e.b.icmp_signed(">=", values, e.constant(0, _IVEC)), _IVEC))]

    (total,) = _each_ints(e, address, count, [e.constant(0, _IVEC)], body)
    return e.b.zext(e.call(f"llvm.vector.reduce.add.v{LANES}i32", _I32, total), _I64)


@operation(_i64, _i64, _i64)
def last_position(e: Emitter, address: ir.Value, count: ir.Value) -> ir.Value:
    """The largest of `count` contiguous int32, or -1."""

    def body(values: ir.Value, _index: ir.Value, _mask: ir.Value, most: ir.Value) -> list[ir.Value]:
        return [e.b.select(e.b.icmp_signed(">", values, most), values, most)]

    (most,) = _each_ints(e, address, count, [e.constant(-1, _IVEC)], body)
    return e.b.sext(e.call(f"llvm.vector.reduce.smax.v{LANES}i32", _I32, most), _I64)


@operation(_void, _i64, _i64, _i64)
def copy_positions(e: Emitter, address: ir.Value, count: ir.Value, target: ir.Value) -> None:
    """`count` contiguous int32 to int64."""
    wide = ir.VectorType(_I64, LANES)

    def body(values: ir.Value, index: ir.Value, mask: ir.Value) -> list[ir.Value]:
        pointer = e.pointer(e.offset(target, index, 8), wide)
        name, align = f"llvm.masked.store.v{LANES}i64.p0", ir.Constant(_I32, 8)
        e.call(name, ir.VoidType(), e.b.sext(values, wide), pointer, align, mask)
        return []

    _each_ints(e, address, count, [], body)


@operation(_void, _i64)
def store_short_zero(e: Emitter, address: ir.Value) -> None:
    """Two bytes of zeros."""
    e.store(ir.Constant(_I16, 0), address)


@operation(_void, _i64)
def prefetch(e: Emitter, address: ir.Value) -> None:
    e.prefetch(address)


@operation(_void, _i64)
def prefetch_to_write(e: Emitter, address: ir.Value) -> None:
    e.prefetch(address, write=True)


@operation(_void, _i64, _i64, _i64, _i64, vec)
def transpose(
    e: Emitter, source: ir.Value, source_pitch: ir.Value, target: ir.Value, target_pitch: ir.Value, scale: ir.Value
) -> None:  # fmt: skip
    """A square of LANES rows of LANES floats to its columns, times `scale`."""
    rows = [e.load(e.offset(source, i, source_pitch)) for i in range(LANES)]
    for i, column in enumerate(e.transposed(rows)):
        e.store(e.b.fmul(column, scale), e.offset(target, i, target_pitch))


@operation(_i64, _i64)
def atomic_next(e: Emitter, address: ir.Value) -> ir.Value:
    """Takes the next number from a counter that threads share."""
    return e.b.atomic_rmw("add", e.pointer(address, _I64), ir.Constant(_I64, 1), "monotonic")


def _to_float(e: Emitter, raw: ir.Value, kind: int) -> ir.Value:
    if kind == F16 and _HALF:
        return e.b.fpext(e.b.bitcast(raw, ir.VectorType(ir.HalfType(), LANES)), _VEC)
    bits = e.b.zext(raw, _IVEC)
    return e.b.bitcast(e.b.shl(bits, e.constant(16, _IVEC)), _VEC) if kind == BF16 else _half_to_float(e, bits)


def _half_to_float(e: Emitter, bits: ir.Value) -> ir.Value:
    size = e.b.and_(bits, e.constant(0x7FFF, _IVEC))
    rebias = e.constant(112 << 23, _IVEC)
    normal = e.b.add(e.b.shl(size, e.constant(13, _IVEC)), rebias)
    infinite = e.b.icmp_unsigned(">=", size, e.constant(0x7C00, _IVEC))  # or NaN
    normal = e.b.select(infinite, e.b.add(normal, rebias), normal)
    tiny = e.b.fmul(e.b.sitofp(size, _VEC), e.constant(2.0**-24))
    subnormal = e.b.icmp_unsigned("<", size, e.constant(0x400, _IVEC))
    size = e.b.select(subnormal, e.b.bitcast(tiny, _IVEC), normal)
    sign = e.b.shl(e.b.and_(bits, e.constant(0x8000, _IVEC)), e.constant(16, _IVEC))
    return e.b.bitcast(e.b.or_(sign, size), _VEC)


def _float_to_half(e: Emitter, bits: ir.Value) -> ir.Value:
    """To nearest, ties to even; the result in the low 16 bits."""
    size = e.b.and_(bits, e.constant(0x7FFFFFFF, _IVEC))
    odd = e.b.and_(e.b.lshr(size, e.constant(13, _IVEC)), e.constant(1, _IVEC))
    rounded = e.b.add(size, e.b.add(odd, e.constant(0xFFF - (112 << 23), _IVEC)))
    normal = e.b.lshr(rounded, e.constant(13, _IVEC))
    infinity = e.constant(0x7C00, _IVEC)
    normal = e.b.select(e.b.icmp_unsigned("<", normal, infinity), normal, infinity)
    half = e.constant(0.5)  # its last bit is worth the least subnormal number: adding it rounds
    tiny = e.b.sub(e.b.bitcast(e.b.fadd(e.b.bitcast(size, _VEC), half), _IVEC), e.b.bitcast(half, _IVEC))
    short = e.b.select(e.b.icmp_unsigned("<", size, e.constant(113 << 23, _IVEC)), tiny, normal)
    nan = e.b.icmp_unsigned(">", size, e.constant(0x7F800000, _IVEC))
    short = e.b.select(nan, e.constant(0x7E00, _IVEC), short)
    return e.b.or_(short, e.b.and_(e.b.lshr(bits, e.constant(16, _IVEC)), e.constant(0x8000, _IVEC)))


def _from_float(e: Emitter, value: ir.Value, kind: int) -> ir.Value:
    short = ir.VectorType(_I16, LANES)
    if kind == F16 and _HALF:
        return e.b.bitcast(e.b.fptrunc(value, ir.VectorType(ir.HalfType(), LANES)), short)
    bits = e.b.bitcast(value, _IVEC)
    if kind == F16:
        return e.b.trunc(_float_to_half(e, bits), short)
    odd = e.b.and_(e.b.lshr(bits, e.constant(16, _IVEC)), e.constant(1, _IVEC))
    rounded = e.b.add(bits, e.b.add(odd, e.constant(0x7FFF, _IVEC)))  # to nearest, ties to even
    quiet_nan = e.b.or_(bits, e.constant(0x400000, _IVEC))
    bits = e.b.select(e.b.fcmp_unordered("uno", value, value), quiet_nan, rounded)
    return e.b.trunc(e.b.lshr(bits, e.constant(16, _IVEC)), short)


def _element(kind: int) -> tuple[ir.VectorType, str]:
    return (_VEC, "f32") if kind == F32 else (ir.VectorType(_I16, LANES), "i16")


def _load_as(kind: int, part: bool) -> Any:
    def emit(e: Emitter, address: ir.Value, count: ir.Value | None = None) -> ir.Value:
        return e.load_as(kind, address, e.mask(count) if part else None)

    return operation(vec, *([_i64, _i64] if part else [_i64]))(emit)


def _store_as(kind: int, part: bool) -> Any:
    wide, code = _element(kind)
    align = ir.Constant(_I32, 4 if kind == F32 else 2)

    def emit(e: Emitter, value: ir.Value, address: ir.Value, count: ir.Value | None = None) -> None:
        raw = value if kind == F32 else _from_float(e, value, kind)
        if part:
            pointer = e.pointer(address, wide)
            e.call(f"llvm.masked.store.v{LANES}{code}.p0", ir.VoidType(), raw, pointer, align, e.mask(count))
        else:
            e.store(raw, address)

    return operation(_void, *([vec, _i64, _i64] if part else [vec, _i64]))(emit)


load_f32_part, store_f32_part = _load_as(F32, True), _store_as(F32, True)
load_bf16, load_bf16_part = _load_as(BF16, False), _load_as(BF16, True)
load_f16, load_f16_part = _load_as(F16, False), _load_as(F16, True)
store_bf16, store_bf16_part = _store_as(BF16, False), _store_as(BF16, True)
store_f16, store_f16_part = _store_as(F16, False), _store_as(F16, True)


@operation(_i64)
def fresh_float_mode(e: Emitter) -> ir.Value:
    """Flushes denormals (x86: a state that decays towards 0 would make every operation slow); returns the old mode."""
    if not _X86:
        return ir.Constant(_I64, 0)
    slot = e.b.alloca(_I32)
    raw = e.b.bitcast(slot, _I8.as_pointer())
    e.call("llvm.x86.sse.stmxcsr", ir.VoidType(), raw)
    old = e.b.load(slot)
    e.b.store(e.b.or_(old, ir.Constant(_I32, 0x8040)), slot)
    e.call("llvm.x86.sse.ldmxcsr", ir.VoidType(), raw)
    return e.b.zext(old, _I64)


@operation(_void, _i64)
def restore_float_mode(e: Emitter, old: ir.Value) -> None:
    if _X86:
        slot = e.b.alloca(_I32)
        e.b.store(e.b.trunc(old, _I32), slot)
        e.call("llvm.x86.sse.ldmxcsr", ir.VoidType(), e.b.bitcast(slot, _I8.as_pointer()))

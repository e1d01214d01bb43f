"""What the bytes of a GGUF block mean: eleven affine formats repacked into `Packed`, the rest made dense.

Invariant: `dequantize(repack(...))` equals ggml's own dequantization bit for bit in float32, since the integers are
kept and every scale and bias is stored in a type that holds it exactly.

Layouts (ggml's, little-endian; d, m, dmin are float16; a group is 32 values):
    Q4_0  d qs[16]                 (q - 8) d         byte j: value j in its low half, value j + 16 in its high half
    Q4_1  d m qs[16]               q d + m
    Q5_0  d qh[4] qs[16]           (q - 16) d        bit i of qh is bit 4 of value i
    Q5_1  d m qh[4] qs[16]         q d + m
    Q8_0  d q[32] signed           q d
    Q4_K  d dmin sm[12] qs[128]    q d s - dmin m    8 groups; 32 bytes hold group 2j (low) and group 2j + 1 (high)
    Q5_K  d dmin sm[12] qh[32] qs[128]               bit g of qh[j] is bit 4 of value j of group g
    Q6_K  ql[128] qh[64] s[16] d   (q - 32) d s      16 groups of 16, s signed; see `_sixes`
    Q2_K  sm[16] qs[64] d dmin     q d s - dmin m    16 groups of 16; s in the low half of sm, m in the high one
    Q3_K  h[32] qs[64] s[12] d     (q - 4) d (s - 32)  16 groups of 16; bit g of h[j] is bit 2 of value 32 g + j
    MXFP4 e qs[16]                 `checkpoint/schemes/mxfp4.py`; the sign of a zero is lost
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from ...quantization import Packed, pack
from ..schemes import mxfp4

GROUP = 32
SMALL_GROUP = 16
DENSE = ("F32", "F16", "BF16", "F64")
AFFINE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K")
SMALL = ("Q6_K", "Q2_K", "Q3_K")
"""Affine as well, in groups of 16."""
_PIECE = 2**14
"""Blocks of 256 values that are taken apart at once: what is in between has a byte or more for each value."""


def block_size(type_name: str) -> int:
    """Values in a block of one of AFFINE or SMALL."""
    return 256 if type_name.endswith("_K") else GROUP


def decode(
    raw: np.ndarray, type_name: str, shape: tuple[int, ...], what: str, smallest_group: int = GROUP
) -> np.ndarray | Packed:
    """A tensor's bytes, uint8 (nbytes,), as a dense array in its own dtype, a Packed, or (other types) float32.

    smallest_group: what has smaller groups is not packed.

    CheckpointError if a scale is not finite; UnsupportedModel for a type that nobody here can read.
    """
    if type_name in DENSE:
        return _dense(raw, type_name).reshape(shape)
    if type_name in AFFINE:
        return _affine(raw, type_name, shape, what)
    if type_name in SMALL and smallest_group <= SMALL_GROUP:
        return _small_groups(raw, type_name, shape, what)
    if type_name == "MXFP4":
        blocks = raw.reshape(*shape[:-1], shape[-1] // mxfp4.GROUP, 1 + mxfp4.GROUP // 2)
        return mxfp4.repack(blocks[..., 1:], blocks[..., 0], halves=True, what=what)
    import gguf  # 0.1 s, and it knows every format that is not affine

    try:
        with np.errstate(all="ignore"):
            values = gguf.dequantize(raw.reshape(*shape[:-1], -1), gguf.GGMLQuantizationType[type_name])
    except NotImplementedError:
        raise UnsupportedModel(f"{what}: GGUF type {type_name} cannot be read") from None
    return np.ascontiguousarray(values.reshape(shape), np.float32)


def _dense(raw: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "BF16":
        import ml_dtypes

        return raw.view(ml_dtypes.bfloat16)
    return raw.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[type_name])


def _affine(raw: np.ndarray, type_name: str, shape: tuple[int, ...], what: str) -> Packed:
    bits = int(type_name[1])
    with np.errstate(all="ignore"):  # what overflows is reported below, as an error and not as a warning
        words, scales, biases = (_superblocks if type_name.endswith("_K") else _blocks)(raw, type_name)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise _damaged(what)
    *leading, n = shape
    parts = (words, n * bits // 32), (scales, n // GROUP), (biases, n // GROUP)
    return Packed(*(part.reshape(*leading, last) for part, last in parts), bits=bits, group_size=GROUP)


def _blocks(raw: np.ndarray, type_name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q4_0 to Q8_0: words uint32 (blocks, bits), scales and biases (blocks,), in float16 where that is exact."""
    bits, has_bias = int(type_name[1]), type_name.endswith("_1")
    payload = 4 * bits + (4 if has_bias else 2)
    blocks = raw.reshape(-1, payload)
    scales = _halves(blocks[:, :2])
    if has_bias:
        biases = _halves(blocks[:, 2:4])
    else:
        scales, biases = _centred(scales, 1 << (bits - 1))
    body = blocks[:, payload - 4 * bits :]
    if bits == 8:
        return (np.ascontiguousarray(body) ^ np.uint8(0x80)).view("<u4"), scales, biases
    if bits == 4:
        return _nibble_words(body), scales, biases
    high = np.unpackbits(np.ascontiguousarray(body[:, :4]), axis=-1, bitorder="little")
    return pack(_nibbles(body[:, 4:]) | (high << np.uint8(4)), 5), scales, biases


def _superblocks(raw: np.ndarray, type_name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q4_K and Q5_K: words (blocks, 8 * bits), scales and biases float32 (blocks, 8): d * s needs 17 bits."""
    five = type_name == "Q5_K"
    blocks = raw.reshape(-1, 176 if five else 144)
    s, m = _six_bit_pairs(blocks[:, 4:16])
    scales = _halves(blocks[:, :2])[:, None].astype(np.float32) * s
    biases = -(_halves(blocks[:, 2:4])[:, None].astype(np.float32) * m)
    body = blocks[:, 16:]
    halves = np.ascontiguousarray(body[:, 32:] if five else body).reshape(-1, 32)  # 4 rows a block, two groups a row
    if not five:
        return _nibble_words(halves), scales, biases
    groups = np.arange(8, dtype=np.uint8)[:, None]
    high = (body[:, None, :32] >> groups) & np.uint8(1)  # blocks, 8, 32
    low = _nibbles(halves).reshape(-1, 8, 32)
    return pack(low | (high << np.uint8(4)), 5), scales, biases


def _small_groups(raw: np.ndarray, type_name: str, shape: tuple[int, ...], what: str) -> Packed:
    """Q6_K, Q2_K and Q3_K: scales and biases float32, of 18 bits at most and with an integer of 24."""
    bits, size, parts = {"Q6_K": (6, 210, _sixes), "Q2_K": (2, 84, _twos), "Q3_K": (3, 110, _threes)}[type_name]
    blocks = raw.reshape(-1, size)
    words = np.empty((len(blocks), 8 * bits), "<u4")
    scales, biases = (np.empty((len(blocks), 16), np.float32) for _ in range(2))
    with np.errstate(all="ignore"):  # what is not finite is reported below
        for start in range(0, len(blocks), _PIECE):
            piece = slice(start, start + _PIECE)
            integers, scales[piece], biases[piece] = parts(blocks[piece])
            words[piece] = pack(integers, bits)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise _damaged(what)
    *leading, n = shape
    ends = (words, n * bits // 32), (scales, n // SMALL_GROUP), (biases, n // SMALL_GROUP)
    return Packed(*(part.reshape(*leading, last) for part, last in ends), bits=bits, group_size=SMALL_GROUP)


def _sixes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers uint8 (blocks, 256), scales and biases (blocks, 16).

    In each half of a block, 128 values, value 32 i + l has its low 4 bits in ql[l + 32 (i % 2)], in the low half of the
    byte for i < 2, and its high 2 bits in qh[l] from bit 2 i on.
    """
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & np.uint8(15), low >> np.uint8(4)], 2).reshape(-1, 256)
    scales = _wide(blocks[:, 208:]) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return low | (_pairs(blocks[:, 128:192]) << np.uint8(4)), scales, scales * np.float32(-32)


def _twos(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_sixes`."""
    scales = _wide(blocks[:, 80:82]) * (blocks[:, :16] & np.uint8(15))
    return _pairs(blocks[:, 16:80]), scales, -(_wide(blocks[:, 82:84]) * (blocks[:, :16] >> np.uint8(4)))


def _threes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_sixes`. Bytes 0-7 of s: the low four bits of scales 0-7 (low halves) and 8-15. Bits 2 k and 2 k + 1 of byte
    8 + j: the two high bits of scale 4 k + j."""
    groups, twos = np.arange(8, dtype=np.uint8)[:, None], np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = ((blocks[:, None, :32] >> groups) & np.uint8(1)).reshape(-1, 256)
    top = ((blocks[:, None, 104:108] >> twos) & np.uint8(3)).reshape(-1, 16)
    six = (_nibbles(blocks[:, 96:104]) | (top << np.uint8(4))).astype(np.int8) - np.int8(32)
    scales = _wide(blocks[:, 108:]) * six
    return _pairs(blocks[:, 32:96]) | (high << np.uint8(2)), scales, scales * np.float32(-4)


def _pairs(body: np.ndarray) -> np.ndarray:
    """Integers of two bits, uint8 (blocks, 64) to (blocks, 256): of each 32 bytes all lowest ones, then the next."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return ((body.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 256)


def _wide(two_bytes: np.ndarray) -> np.ndarray:
    """uint8 (blocks, 2), strided, a float16 each, to float32 (blocks, 1)."""
    return _halves(two_bytes)[:, None].astype(np.float32)


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"{what}: a block's scale is not a finite number; the file is damaged, fetch it again")


def _halves(two_bytes: np.ndarray) -> np.ndarray:
    """uint8 (blocks, 2), strided, to float16 (blocks,)."""
    return np.ascontiguousarray(two_bytes).view("<f2")[:, 0]


def _centred(scales: np.ndarray, centre: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and biases of `(q - centre) * scale`: a power of two times a float16 is exact unless it overflows."""
    wide = scales.astype(np.float32)
    biases = wide * np.float32(-centre)
    if np.abs(biases).max(initial=0) <= np.finfo(np.float16).max:
        return scales, biases.astype(np.float16)
    return wide, biases


def _nibble_words(body: np.ndarray) -> np.ndarray:
    """ggml's nibbles, uint8 (rows, 2n): n low halves then n high halves, to MLX's consecutive order, uint32 words.

    Eight bytes are one 64-bit number; three shifts bring its eight nibbles together into one 32-bit word.
    """
    eights = np.ascontiguousarray(body).view("<u8")  # rows, bytes / 8
    words = np.empty((eights.shape[0], 2, eights.shape[1]), "<u4")
    for half, x in enumerate((eights & np.uint64(0x0F0F0F0F0F0F0F0F), (eights >> np.uint64(4)))):
        x &= np.uint64(0x0F0F0F0F0F0F0F0F)
        for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
            x |= x >> np.uint64(shift)
            x &= np.uint64(mask)
        words[:, half] = x
    return words.reshape(eights.shape[0], -1)


def _nibbles(body: np.ndarray) -> np.ndarray:
    """uint8 (rows, n) to uint8 (rows, 2n): all low halves, then all high halves."""
    return np.concatenate([body & np.uint8(0x0F), body >> np.uint8(4)], axis=-1)


def _six_bit_pairs(packed: np.ndarray) -> tuple[Any, Any]:
    """The 12 bytes of eight 6-bit scales and eight 6-bit minima, as two float32 (blocks, 8).

    Bytes 0-3 and 4-7: scales and minima of groups 0-3 in the low six bits. Bytes 8-11: low four bits of groups 4-7,
    scales below and minima above; their two high bits are the two high bits of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    six, four, top = np.uint8(0x3F), np.uint8(0x0F), np.uint8(0x30)
    scales = np.concatenate([first & six, (third & four) | ((first >> np.uint8(2)) & top)], axis=-1)
    minima = np.concatenate([second & six, (third >> np.uint8(4)) | ((second >> np.uint8(2)) & top)], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)

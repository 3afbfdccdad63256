"""Unit-variance noise for every parameter at every Langevin step, at almost no cost.

The noise of parameter number p under a step's key is transform(hash(p, key)), a pure elementwise
function. XLA fuses it into the Langevin step instead of writing it to memory, and the random words
are the same under jit, vmap, pmap and any sharding. `jax.random` would draw the same law at several
times the cost: on CPU its threefry is written to memory round by round. A sign needs one bit, so
one word gives Rademacher noise for 32 steps: small leaves keep it, large ones hash again. The noise
of a small tree is drawn for all steps of a loop at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from entropy_sgd_jax._typing import AxisName, Key, PyTree

# Leaves of at most this many elements come first in the numbering, and out of one shared draw where
# there are many: a leaf costs the compiler the same however small it is, so that it would compile
# many copies of the arithmetic below. A few run faster, and compile as fast, on their own.
_SMALL = 4096
_FEW = 8
# Words that serve several steps are kept for leaves of at most this many elements. Several cores
# hash larger ones at once, which costs less than to read the words. At least _SMALL.
_KEPT = 1 << 14
# The noise of all steps of a loop is drawn before it if it is at most this many numbers, 1 MiB.
_AHEAD = 1 << 18
# On a CPU XLA starts other cores for a kernel of much more than this many Gaussian numbers, which
# takes ten times as long as they do. Up to _KEPT are drawn this many at a time.
_PIECE = 1 << 10
# The hash tells 2³² numbers apart; leaves beyond them have other keys.
_PAGE = 1 << 32
_PAGE_KEY = np.uint32(0x9E3779B9)


def typed_key(key: Key) -> jax.Array:
    """A typed key, in memory of its own, from an int, a typed key or a legacy uint32 key."""
    if isinstance(key, np.ndarray):  # a scalar has all its 64 bits, which JAX would cut
        key = key[()]
    if isinstance(key, int | np.integer):
        upper = 0 if -(2**31) <= int(key) < 2**32 else int(key) >> 32 & 0xFFFFFFFF
        halves = np.uint32(int(key) & 0xFFFFFFFF), np.uint32(upper)
        # Put on the device explicitly, for users who forbid implicit transfers.
        return _seeded(*jax.device_put(halves))
    array = jnp.asarray(key)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.clone(array)
    if array.ndim == 0:
        return _seeded(array.astype(jnp.uint32), _upper_half(array))
    legacy = _threefry(array) if array.shape == (2,) else _rbg(array)
    return jax.random.clone(legacy)


def _upper_half(seed: jax.Array) -> jax.Array:
    """The upper 32 bits of a seed; zero for one that is a small negative number."""
    if seed.dtype.itemsize < 8:
        return jnp.zeros((), jnp.uint32)
    upper = seed >> 32
    return jnp.where(upper == -1, 0, upper).astype(jnp.uint32)


def threefry(key: jax.Array) -> jax.Array:
    """A key of threefry, whatever `key` is: other kinds fold in what repeats, or ignore vmap."""
    return _threefry(jax.random.key_data(typed_key(key))[:2])


def replica_key(key: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Each replica's own key, from the one that all their states hold; replica 0 keeps it."""
    if axis_name is None:
        return key
    index, shared = lax.axis_index(axis_name), threefry(key)
    return jnp.where(index == 0, shared, jax.random.fold_in(shared, index))


@jax.jit
def _seeded(low: jax.Array, high: jax.Array) -> jax.Array:
    """The key of a seed of 64 bits, of which JAX alone would drop the high half."""
    key = jax.random.key(low)
    return jnp.where(high == 0, key, jax.random.fold_in(key, high))


def _threefry(words: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _rbg(words: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(words, impl="rbg")


class StepKey(NamedTuple):
    """What the noise of one Langevin step is drawn from; with a leading axis, of several steps."""

    words: jax.Array  # uint32, shape (2,)
    shift: jax.Array | None  # uint32, shape (): the bits that earlier steps used up; None for none


class Source(NamedTuple):
    """A law of noise, as a function of random words."""

    transform: Callable[[jax.Array], jax.Array]  # from words of 32 random bits
    steps: int  # how many share a word: 1, or 32 where `transform` looks at the top bit alone


def step_keys(name: str, key: jax.Array, count: ArrayLike, steps: jax.Array) -> StepKey:
    """The keys of Langevin steps `steps` of update `count`.

    Derived from the one key of the state, which is never split: what a step draws depends on no
    step before it. Only this touches `jax.random`, once for all steps, outside of their loop. The
    update goes into the key's first word, which a seed leaves zero: another `fold_in` would only be
    more to compile.
    """
    shared = SOURCES[name].steps
    words = jax.random.key_data(threefry(key))
    update_key = _threefry(words + jnp.asarray(count, jnp.uint32) * np.array([1, 0], np.uint32))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(update_key, steps // shared)
    shift = (steps % shared).astype(jnp.uint32) if shared > 1 else None
    return StepKey(jax.random.key_data(keys), shift)


def prepare(name: str, keys: StepKey | None, like: PyTree) -> tuple[Any, Callable[[Any], PyTree]]:
    """For the steps of one loop, with a row of `keys` each: their rows, and the noise of a row.

    What the steps share is drawn ahead. So is all noise of a small tree, at most `_AHEAD` numbers:
    drawn step by step, a leaf of a thousand elements is enough for XLA to start other cores, which
    takes longer on CPU than its noise.
    """
    steps, shapes = 0 if keys is None else len(keys.words), _shapes(like)
    shared, alone = SOURCES[name].steps, _alone(shapes)
    if keys is None or steps == 1:
        return keys, lambda key: draw(name, key, like)
    if steps <= shared:  # all share one word
        kept = [i for i in alone if math.prod(shapes[i]) <= _KEPT]
        ahead = _draw_leaves(lambda words: words, keys.words[0], shapes, kept)
        return keys, lambda key: draw(name, key, like, ahead)
    if len(alone) == len(shapes) and steps * _size(shapes) <= _AHEAD:
        return jax.vmap(lambda key: draw(name, key, like))(keys), lambda noise: noise
    return keys, lambda key: draw(name, key, like)


def draw(
    name: str, key: StepKey | None, like: PyTree, ahead: dict[int, jax.Array] | None = None
) -> Any:
    """Noise in the shapes and dtypes of `like`; None for each leaf where `key` is None.

    Args:
      name: of one of `SOURCES`.
      key: of one step, or None for no noise.
      like: a tree of floating arrays.
      ahead: the random words of some leaves, by their place among the leaves.
    """
    if key is None:
        return jax.tree.map(lambda _: None, like)
    source, ahead = SOURCES[name], ahead or {}

    def transform(words: jax.Array) -> jax.Array:
        return source.transform(words if key.shift is None else words << key.shift)

    leaves, treedef = jax.tree.flatten(like)
    others = [i for i in range(len(leaves)) if i not in ahead]
    noise = {i: transform(words) for i, words in ahead.items()}
    noise |= _draw_leaves(transform, key.words, _shapes(like), others)
    cast = [noise[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, cast)


def words(key: jax.Array, like: PyTree) -> PyTree:
    """32 random bits for each number in `like`, from the words of a key."""
    shapes = _shapes(like)
    starts = _first_numbers(shapes, range(len(shapes)))  # as in one array of all leaves
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [_words(start, shape, key) for start, shape in zip(starts, shapes, strict=True)],
    )


Transform = Callable[[jax.Array], jax.Array]
Shapes = list[tuple[int, ...]]


def _shapes(tree: Any) -> Shapes:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _size(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def _draw_leaves(
    transform: Transform, key: jax.Array, shapes: Shapes, places: list[int]
) -> dict[int, jax.Array]:
    """Draws the leaves at `places`: alone, or cut from one pool; the numbers are the same."""
    starts, alone = _first_numbers(shapes), set(_alone(shapes))
    drawn = {i: _draw_leaf(transform, starts[i], shapes[i], key) for i in places if i in alone}
    pooled = [i for i in places if i not in alone]
    if not pooled:
        return drawn
    pool = _pool(transform, _size([shapes[i] for i in pooled]), key)
    for i in pooled:
        # Looked up by a table instead of cut out at an offset: XLA compiles the steps of equal
        # leaves once if they differ in nothing but their operands.
        stop = starts[i] + math.prod(shapes[i])
        drawn[i] = _look_up(pool, np.arange(starts[i], stop, dtype=np.int32).reshape(shapes[i]))
    return drawn


def _draw_leaf(transform: Transform, start: int, shape: tuple[int, ...], key: jax.Array) -> Any:
    """A leaf by itself, whose first parameter has the number `start`."""

    def whole(key: jax.Array) -> jax.Array:
        return transform(_words(start, shape, key))

    size = math.prod(shape)
    if not _PIECE < size <= _KEPT or start >= _PAGE - _KEPT:
        return whole(key)
    pieces = -(-size // _PIECE)
    return lax.platform_dependent(
        key,
        cpu=lambda key: _in_rounds(transform, start, size, key, pieces).reshape(shape),
        default=whole,
    )


def _alone(shapes: Shapes) -> list[int]:
    """The places of the leaves that are drawn each on its own."""
    large = [i for i, shape in enumerate(shapes) if math.prod(shape) > _SMALL]
    return large if len(shapes) - len(large) > _FEW else list(range(len(shapes)))


@functools.partial(jax.jit, inline=True)  # traced once for each shape
def _look_up(pool: jax.Array, table: jax.Array) -> jax.Array:
    return pool.at[table].get(mode="promise_in_bounds")


def _first_numbers(shapes: Shapes, order: Iterable[int] | None = None) -> list[int]:
    """The number of each leaf's first parameter, small leaves first unless told otherwise.

    The numbers of one leaf never straddle a multiple of 2³², because the hash has 32 bits; those of
    a leaf of more elements start at one, and take whole rows of each page of 2³² numbers.
    """
    sizes = [math.prod(shape) for shape in shapes]
    starts, end = [0] * len(sizes), 0
    for i in order or sorted(range(len(sizes)), key=lambda i: sizes[i] > _SMALL):
        room = -end % _PAGE
        starts[i] = end = end + room if 0 < room < sizes[i] else end
        end += sizes[i] if sizes[i] <= _PAGE else _pages(shapes[i]) * _PAGE
    return starts


def _pages(shape: tuple[int, ...]) -> int:
    """How many pages of 2³² numbers a leaf takes that is larger than one."""
    return -(-math.prod(shape[:-1]) // (_PAGE // shape[-1]))


def _words(start: int, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """The random words of one leaf, whose first parameter has the number `start`."""
    page, start = divmod(start, _PAGE)
    if math.prod(shape) > _PAGE:
        rows = lax.iota(jnp.uint32, math.prod(shape[:-1])).reshape((*shape[:-1], 1))
        pages = rows // np.uint32(_PAGE // shape[-1]) + np.uint32(page)
        column = lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
        own = [word ^ pages * _PAGE_KEY for word in key]
        number = rows % np.uint32(_PAGE // shape[-1]) * np.uint32(shape[-1]) + own[0] + column
        return _hash(number, own)
    if page:
        key = key ^ np.uint32(page * int(_PAGE_KEY) % _PAGE)
    return _hash(_numbers(start, shape, key), key)


def _pool(transform: Transform, size: int, key: jax.Array) -> jax.Array:
    """The noise of the parameters 0 to size − 1, as one vector in memory.

    Drawn by a loop of at least two rounds, because XLA cannot look into a loop: it would repeat any
    plain expression inside the step of every leaf, and drops `optimization_barrier` before it does.
    """
    pieces = max(2, -(-size // _PIECE)) if size <= _KEPT else 2
    return lax.platform_dependent(
        key,
        cpu=lambda key: _in_rounds(transform, 0, size, key, pieces),
        default=lambda key: _in_rounds(transform, 0, size, key, 2),
    )


def _in_rounds(
    transform: Transform, start: int, size: int, key: jax.Array, rounds: int
) -> jax.Array:
    """The noise of `size` parameters from number `start` on, an equal part in each round."""
    part = -(-size // rounds)
    numbers = lax.iota(jnp.uint32, part) + key[0]
    starts = (start + part * np.arange(rounds)).astype(np.uint32)
    parts = lax.map(lambda first: transform(_hash(numbers + first, key)), starts)
    return parts.reshape(-1)[:size]


def _numbers(start: int, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Each element's number, modulo 2³², plus the key's first word.

    That word, which changes from step to step, goes in before the column does: otherwise XLA
    computes the numbers ahead of the loop, and then reads them from memory at every step.
    """
    if not shape:
        return np.uint32(start) + key[0]
    rows, columns = math.prod(shape[:-1]), shape[-1]
    starts = np.uint32(start) + lax.iota(jnp.uint32, rows) * np.uint32(columns)
    starts = (starts + key[0]).reshape((*shape[:-1], 1))
    return starts + lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)


def _hash(number: jax.Array, key: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Mixes `number`, with the key's first word added, into 32 random bits.

    Multiplications carry low bits up, shifted xors bring high bits down; the multipliers and
    shifts are those of Wellons' triple32. The key goes in between as well, where it acts
    nonlinearly: added at the start alone, it would only shift one and the same sequence along.
    """
    x = (number ^ (number >> 17)) * np.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11) ^ key[1]) * np.uint32(0xAC4C1B51)
    x = ((x ^ (x >> 15)) + key[0]) * np.uint32(0x31848BAB)
    return x ^ (x >> 14)


def _rademacher(word: jax.Array) -> jax.Array:
    """±1 by the top bit."""
    return _with_sign_of(word, jnp.ones((), jnp.float32))


def _gaussian(word: jax.Array) -> jax.Array:
    """The normal quantile of the word: the top bit is the sign, the others the tail.

    The tail's probability p lies in (0, 1/2]. The quantile is nearly a straight line in
    log(−log p), hence a polynomial in that, for the whole range and without a branch. It is within
    5e-6 of the exact quantile, which goes up to 6.3.
    """
    tail = lax.bitcast_convert_type(word & np.uint32(0x7FFFFFFF), jnp.int32)
    probability = tail.astype(jnp.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    v = _log2(-_log2(probability))
    quantile = v * _polynomial(_QUANTILE, v)
    return _with_sign_of(word, quantile)


# quantile / v where the probability is 2^-(2^v), for v from 0 to log2(33).
_QUANTILE = (
    *(0.6021593, 0.06403258, 0.007519725, 0.0007157404),
    *(6.104046e-05, 1.0969804e-06, 3.0020595e-07),
)
# log2(1 + m) / m for 1 + m from √½ to √2; the logarithm is right to 3e-7.
_LOG2 = (1.4426997, -0.7213759, 0.48046502, -0.35896188, 0.29726276, -0.27269772, 0.17063355)
_SQRT_HALF = np.int32(0x3F3504F3)  # √½ as the bits of a float32


def _log2(x: jax.Array) -> jax.Array:
    """log2 of a positive normal number, several times cheaper than `jnp.log2`."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    exponent = (bits - _SQRT_HALF) >> 23
    m = lax.bitcast_convert_type(bits - (exponent << 23), jnp.float32) - np.float32(1)
    return m * _polynomial(_LOG2, m) + exponent.astype(jnp.float32)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """Horner's rule, lowest coefficient first."""
    y = jnp.float32(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        y = y * x + np.float32(coefficient)
    return y


def _with_sign_of(word: jax.Array, magnitude: jax.Array) -> jax.Array:
    bits = lax.bitcast_convert_type(magnitude, jnp.uint32) | (word & np.uint32(1 << 31))
    return lax.bitcast_convert_type(bits, jnp.float32)


SOURCES = {"gaussian": Source(_gaussian, steps=1), "rademacher": Source(_rademacher, steps=32)}

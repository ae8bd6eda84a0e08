"""How the time to write and to read an index grows with the number of its entries.

    python benchmarks/index_growth.py [--json PATH]

One process, no network, no TensorFlow: the time is the library's alone. Each figure is the best of five.
"""

import time
from collections.abc import Callable

from report import headline, keep, parser

from ckpt_remote.bundle import Entry, Header, Index, decode_index, encode_index, tensor_key

SIZES = (1_000, 10_000, 100_000)
REPEATS = 5


def model(entries: int) -> Index:
    """Return an index such as a Keras model's: long names, many in common, and a few hundred shapes."""
    found, offset = {}, 0
    for number in range(entries):
        layer, variable = divmod(number, 6)
        block = f"model/_layer_checkpoint_dependencies/block_{layer}/_trainable_variables"
        key = tensor_key(f"{block}/{variable}/.ATTRIBUTES/VARIABLE_VALUE")
        shape = (64 + layer % 300, 128)
        size = 4 * shape[0] * shape[1]
        checksum = number * 2_654_435_761 % 2**32
        found[key] = Entry(1, shape, number % 64, offset, size, checksum)
        offset += size
    return Index(Header(64, "0123456789abcdef"), found)


def best_seconds(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(entries: int) -> dict[str, float]:
    index = model(entries)
    data = encode_index(index)
    assert decode_index(data) == index
    return {
        "entries": entries,
        "bytes": len(data),
        "encode_seconds": best_seconds(lambda: encode_index(index)),
        "decode_seconds": best_seconds(lambda: decode_index(data)),
    }


def main() -> None:
    arguments = parser(__doc__).parse_args()
    print(headline())
    print(f"{'entries':>8} {'index':>10} {'encode':>9} {'decode':>9} {'per entry':>16}")
    rows = []
    for entries in SIZES:
        row = measure(entries)
        rows.append(row)
        encode, decode = row["encode_seconds"], row["decode_seconds"]
        each = f"{encode / entries * 1e6:.1f} + {decode / entries * 1e6:.1f} us"
        print(
            f"{entries:>8,} {row['bytes'] / 1e6:>7.2f} MB {encode:>7.3f} s {decode:>7.3f} s {each:>16}",
            flush=True,
        )
    keep(arguments, rows=rows)


if __name__ == "__main__":
    main()

"""Bytes of a file as disks, networks and people spoil them."""

from __future__ import annotations

from hypothesis import strategies as st


def damage():
    """Strategy for functions that spoil a file's bytes: bits flipped, a part cut off, left out, doubled or replaced."""

    def spoil(kind, place, size, junk):
        def spoiled(content):
            start = int(place * len(content))
            if kind == "flip":
                changed = bytearray(content)
                for number, value in enumerate(junk):
                    changed[(start + 7 * number) % len(content)] ^= value | 1
                return bytes(changed)
            if kind == "cut":
                return content[:start]
            stop = start + size
            middle = {"skip": b"", "twice": 2 * content[start:stop], "junk": junk}[kind]
            return content[:start] + middle + content[stop:]

        return spoiled

    return st.builds(
        spoil,
        st.sampled_from(["flip", "cut", "skip", "twice", "junk"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 40),
        st.binary(min_size=1, max_size=20),
    )


# What may stand where JSON is expected.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

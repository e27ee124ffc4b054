"""A call that is interrupted where it shows progress."""


def interrupted(stop):
    """Progress that raises KeyboardInterrupt after so many items of all its iterables together."""
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            if len(seen) > stop:
                raise KeyboardInterrupt
            yield item

    return progress

import arpg_mini  # noqa: F401  (before torch: it says how torch's threads are to wait)

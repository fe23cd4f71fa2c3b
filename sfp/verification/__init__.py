"""The steps of ``sfp verify``, each a file with a function ``run`` that takes the session.

Each step does what it can with what is there, and its parts end in findings: ok, FAILED with the
likely cause, not possible here with the reason, or left out for want of time.
"""

STEPS = {  # in this order, the most telling first
    "a": ("environment", "versions, devices, free memory and disk"),
    "b": ("weights", "fetched or given, digest, activation, mean and deviation, text vectors"),
    "c": ("photographs", "the right word among twenty"),
    "d": ("agreement", "resizes, open_clip's forward, formulas; devices and precisions"),
    "e": ("speed", "ratio to open_clip's forward, images per second, memory, host waits"),
    "f": ("figures", "methods on the datasets that are prepared, beside published numbers"),
    "g": ("readings", "SFP's open questions against its Table 2"),
}

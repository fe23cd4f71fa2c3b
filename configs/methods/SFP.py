"""SFP as published.

Its paper gives no thresholds: those of the datasets' configs, the released code's, stay.
"""

model = dict(method="SFP", purify=True, pm="SOM")

"""The data sets, one file each.

A new data set is a file in this folder that defines a `fedta_app.data.sets.base.Dataset`; nothing
else needs to know of it.
"""

from fedta_app.data.sets.base import Dataset
from fedta_app.discovery import discover

DATASETS = discover(__name__, Dataset)

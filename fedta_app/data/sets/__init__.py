"""The data sets, one file each.

To add a data set, add a file to this folder that defines a `fedta_app.data.sets.base.Dataset`.
"""

from fedta_app.data.sets.base import Dataset
from fedta_app.discovery import discover

DATASETS = discover(__name__, Dataset)

"""What can be measured of an edit without a judge.

There is no truth to compare with, only the source, the reference and the wording; so each number answers a small
question, see :data:`METRICS`, and none says by itself whether the edit is good. A source given back unchanged is
perfectly preserved, steady and free of drift: read these numbers beside a judge's.
"""

from .meter import Meter as Meter
from .table import METRICS as METRICS
from .table import VERSION as VERSION
from .table import Metric as Metric

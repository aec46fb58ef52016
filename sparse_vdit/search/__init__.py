"""The offline search: `candidates.py` what there is, `recorder.py` what it costs in accuracy, `cost.py` in time,
`select.py` the choice, `choose.py` the one by error alone. `record` runs a pipeline under the recorder and writes
`errors.safetensors`."""

from .candidates import Candidates, ladder
from .choose import choose
from .head_errors import HeadErrors
from .recorder import Recorder, models_of
from .recording import Sample, record

__all__ = ["Candidates", "HeadErrors", "Recorder", "Sample", "choose", "ladder", "models_of", "record"]

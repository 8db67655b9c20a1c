"""``python -m psvit``: the command line, also for ``torchrun -m psvit`` and ``accelerate launch -m psvit``."""

import sys

from psvit.cli import main

sys.exit(main())

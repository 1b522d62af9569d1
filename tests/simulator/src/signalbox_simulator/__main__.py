"""`python -m signalbox_simulator`."""

import sys

from signalbox_simulator.main import main

sys.exit(main())

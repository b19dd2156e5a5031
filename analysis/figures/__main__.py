"""`python -m analysis.figures results --out figures`."""

import sys

from . import main

sys.exit(main())

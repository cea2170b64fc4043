"""``python -m diagtool``."""

import sys

from diagtool.cli import main

sys.exit(main())

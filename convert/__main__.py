"""python -m moshi_mlx.convert"""

import sys

from .cli import main

sys.exit(main())

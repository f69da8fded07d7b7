"""`python -m semobridge_ext.cli`, for installations whose scripts are not on the path."""

import sys

from semobridge_ext.cli import main

sys.exit(main())

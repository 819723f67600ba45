"""A device of a federation, and adaptation without one."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())

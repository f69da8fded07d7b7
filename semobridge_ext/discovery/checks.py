"""Numbers among constructor arguments; what checks them stands in the ground."""

from semobridge_ext._numbers import check_number as check_number

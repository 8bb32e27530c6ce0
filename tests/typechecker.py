"""The type checker that the test run puts on every annotated function of the package: shapes, and int where float is due."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

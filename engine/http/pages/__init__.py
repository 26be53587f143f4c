"""The dashboard: pages that the server renders from the same views as the API."""

from ..routing import Row

ROWS: tuple[Row, ...] = ()

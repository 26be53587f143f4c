"""Stands for the shop's other systems. In a real shop each method is a call over the network, and the memory is theirs."""

from __future__ import annotations

from stepfold import NonRetryable


class CardDeclined(NonRetryable):
    """The bank says no; trying again would not help."""


class Bank:
    """Takes money once for each idempotency key, however often it is asked."""

    def __init__(self) -> None:
        self.payments: dict[str, int] = {}  # cents, by payment id
        self.outages = 0  # so many of the next calls fail after the money was taken

    async def charge(self, customer: str, cents: int, *, idempotency_key: str) -> str:
        if customer == "mallory":
            raise CardDeclined(f"{customer} has no credit")
        payment = f"payment/{idempotency_key}"
        self.payments[payment] = cents
        if self.outages > 0:
            self.outages -= 1
            raise ConnectionError("the bank's answer was lost")
        return payment

    async def refund(self, payment: str) -> None:
        self.payments.pop(payment, None)


class Warehouse:
    """Keeps what is reserved, by order."""

    def __init__(self) -> None:
        self.reserved: dict[str, list[str]] = {}

    def reserve(self, order_id: str, items: list[str]) -> str:
        self.reserved[order_id] = items
        return order_id

    def release(self, reservation: str) -> None:
        self.reserved.pop(reservation, None)


class Carrier:
    """Picks parcels up, once per order."""

    def __init__(self) -> None:
        self.parcels: dict[str, str] = {}  # tracking number, by order

    def pick_up(self, order_id: str) -> str:
        return self.parcels.setdefault(order_id, f"PX-{order_id}")


bank = Bank()
warehouse = Warehouse()
carrier = Carrier()

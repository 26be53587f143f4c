"""Stands for the shop's other systems. In a real shop each method is a call over the network, and the memory is theirs."""

from __future__ import annotations

from stepfold import NonRetryable


class CardDeclined(NonRetryable):
    """The bank says no; trying again would not help."""


class Bank:
    """Takes money once for each idempotency key, however often it is asked, and pays back all that it has taken for an order."""

    def __init__(self) -> None:
        self.payments: dict[str, int] = {}  # cents, by payment id
        self.outages = 0  # so many of the next calls fail after the money was taken

    async def charge(self, order_id: str, customer: str, cents: int, *, idempotency_key: str) -> str:
        if customer == "mallory":
            raise CardDeclined(f"{customer} has no credit")
        payment = f"{order_id}/{idempotency_key}"
        self.payments[payment] = cents
        if self.outages > 0:
            self.outages -= 1
            raise ConnectionError("the bank's answer was lost")
        return payment

    async def refund(self, order_id: str) -> None:
        self.payments = {payment: cents for payment, cents in self.payments.items() if not payment.startswith(f"{order_id}/")}


class Warehouse:
    """Keeps what is reserved, by order."""

    def __init__(self) -> None:
        self.reserved: dict[str, list[str]] = {}

    def reserve(self, order_id: str, items: list[str]) -> None:
        self.reserved[order_id] = items

    def release(self, order_id: str) -> None:
        self.reserved.pop(order_id, None)


class Carrier:
    """Picks parcels up, once per order."""

    def __init__(self) -> None:
        self.parcels: dict[str, str] = {}  # tracking number, by order

    def pick_up(self, order_id: str) -> str:
        return self.parcels.setdefault(order_id, f"PX-{order_id}")


bank = Bank()
warehouse = Warehouse()
carrier = Carrier()

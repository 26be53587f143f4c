"""The worker side: members, owners of partitions, and attempts of steps."""

"""Everything that makes runs go on: members, owners of partitions, and attempts of steps."""

"""Values: how they are written and read, compared, copied, limited, and said. Pure."""

"""The owner of one partition, in rooms. No room but `owner` knows the owner; each gets the functions that it calls."""

"""The owner of one partition, in rooms.

`owner` makes the other rooms. They know it only as `Ownership`, and get the functions of each other that they call.
"""

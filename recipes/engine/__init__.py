"""Work carried out: a plan of steps, each made once in a store and found again."""

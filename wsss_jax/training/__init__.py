"""Training: what a method must bring (`task`), one step, the loop, and the runs it leaves."""

"""Labels by people: what each has answered, how far they agree, and the data set that follows."""

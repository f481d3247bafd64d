dataset = "shakespeare_char"
